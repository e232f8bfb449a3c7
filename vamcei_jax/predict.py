"""Segments NIfTI volumes and DICOM series with exported weights, or with a stage of a run.

python -m vamcei_jax.predict --weights=weights/mscmrseg_student --input=volumes --output=masks
python -m vamcei_jax.predict --workdir=runs/uda --input=volumes --output=masks

Each mask has the name, grid and header of its volume. --samples=N adds an entropy map in nats (NAME_entropy.nii.gz) and
uncertainty.csv; --probabilities adds the class probabilities (NAME_probabilities.nii.gz, classes as the fourth axis).
A DICOM series gives one NIfTI mask for each phase; --dicom_seg adds a DICOM segmentation (NAME_seg.dcm).
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from vamcei_jax import cli
from vamcei_jax.errors import InputError

if TYPE_CHECKING:
  from vamcei_jax.data.dicom_series import DicomVolume
  from vamcei_jax.data.labels import LabelValues
  from vamcei_jax.inference.prediction import Prediction

FLAGS = flags.FLAGS
OPTIONS = ("tta", "postprocess", "smooth", "samples", "resample")
UNCERTAINTY_FILE = "uncertainty.csv"


def define_flags() -> None:
  """Defines the flags."""
  flags.DEFINE_string("weights", None, "Folder of exported weights.")
  flags.DEFINE_string("workdir", None, "Folder of a run (its last stage predicts) or of one of its stages.")
  flags.DEFINE_string("input", None, "A NIfTI volume, a folder of them, or a folder of DICOM series.")
  flags.DEFINE_string("output", None, "Folder for the masks.")
  flags.DEFINE_bool("probabilities", False, "Write the class probabilities as well.")
  flags.DEFINE_bool("dicom_seg", False, "Write a DICOM segmentation of each DICOM volume as well.")
  cli.define_inference_flags(*OPTIONS)
  flags.mark_flags_as_required(["input", "output"])
  flags.mark_flags_as_mutual_exclusive(["workdir", "weights"], required=True)


def main() -> None:
  """Runs the command."""
  from tqdm import tqdm

  from vamcei_jax.inference.load import load_segmenter

  volumes, failures = list_inputs(Path(FLAGS.input), dicom_only=FLAGS.dicom_seg)
  total, output = len(volumes) + len(failures), Path(FLAGS.output)
  refuse_inputs([file for volume in volumes.values() for file in files_of(volume)], output)
  segmenter = load_segmenter(FLAGS.weights or FLAGS.workdir, **cli.inference_options(*OPTIONS))
  for name, volume in tqdm(volumes.items(), "volumes", unit="volume", disable=None):
    try:
      prediction = segmenter(volume)
      for finding in prediction.quality.findings:
        tqdm.write(f"{volume}: {finding.text}")
      if FLAGS.dicom_seg:
        write_dicom_seg(prediction, name, output, segmenter.config.data.label_values)
      write_prediction(prediction, Path(name), output, probabilities=FLAGS.probabilities)
    except InputError as error:
      failures.append(str(error))
    except MemoryError:
      failures.append(f"{volume}: too large for this machine's memory. Crop it.")
  if len(failures) == total:
    more = f" ({len(failures) - 1} other files failed as well)" if len(failures) > 1 else ""
    raise InputError(failures[0] + more)
  print(f"{total - len(failures)} of {total} volumes segmented: {output}")
  cli.end(failures)


def list_inputs(source: Path, *, dicom_only: bool = False) -> "tuple[dict[str, Path | DicomVolume], list[str]]":
  """The volumes of a file or a folder.

  Args:
    source: a NIfTI or DICOM file, or a folder. DICOM files are also found in its subfolders.
    dicom_only: whether NIfTI files are refused.

  Returns:
    Name of its mask -> NIfTI file or DICOM volume, and a line for each DICOM file or series that cannot be used.

  Raises:
    InputError: no volume, two of one name, or a NIfTI file with `dicom_only`.
  """
  from vamcei_jax.data.dicom import list_dicom
  from vamcei_jax.data.nifti import list_volumes, volume_name

  dicom, failures = list_dicom(source)
  volumes: dict[str, Path | DicomVolume] = {f"{volume.name}.nii.gz": volume for volume in dicom}
  if dicom or failures:
    files = source.iterdir() if source.is_dir() else []
    nifti = list_volumes(source) if any(map(volume_name, files)) else []
  else:
    nifti = list_volumes(source)
  if dicom_only and nifti:
    raise InputError(f"{nifti[0]}: a NIfTI file; --dicom_seg is for DICOM series. Leave the flag out.")
  volumes |= {path.name: path for path in nifti}
  if len(volumes) < len(dicom) + len(nifti):
    raise InputError(f"{source}: two volumes with one name for their masks; segment them one by one")
  return volumes, failures


def files_of(volume: "Path | DicomVolume") -> list[Path]:
  """The files that hold a volume."""
  return [volume] if isinstance(volume, Path) else [frame.file for frame in volume.frames]


def write_dicom_seg(prediction: "Prediction", mask: str, output: Path, label_values: "LabelValues") -> None:
  """Writes the DICOM segmentation of a DICOM volume beside its mask, in place of an earlier one."""
  from vamcei_jax.data.nifti import volume_name
  from vamcei_jax.inference.dicom_seg import save_dicom_seg

  save_dicom_seg(output / f"{volume_name(Path(mask))}_seg.dcm", prediction, label_values)


def refuse_inputs(paths: Sequence[Path], output: Path) -> None:
  """Raises an InputError if a mask would overwrite a volume: in the same folder, or through a link."""
  identity = lambda path: (path.stat().st_dev, path.stat().st_ino)
  inputs = {identity(path) for path in paths if path.exists()}
  for path in paths:
    mask = output / path.name
    same = path.parent.resolve() == output.resolve()
    if same or (mask.exists() and identity(mask) in inputs):
      raise InputError(f"{output}: masks have the volumes' names and would replace them; choose another --output")


def write_prediction(prediction: "Prediction", path: Path, output: Path, *, probabilities: bool = False) -> None:
  """Writes the mask of a volume, its maps, and its rows of uncertainty.csv.

  Args:
    prediction: of the volume.
    path: of the volume.
    output: folder.
    probabilities: whether class probabilities are written.
  """
  from vamcei_jax.data.nifti import MAPS, volume_name

  name = volume_name(path) or path.name
  map_path = lambda kind: output / f"{name}_{kind}{path.name.removeprefix(name)}"
  for earlier in (output / path.name, *map(map_path, MAPS)):
    earlier.unlink(missing_ok=True)
  if probabilities:
    prediction.save(map_path("probabilities"), "probabilities")
  if prediction.entropy is not None:
    prediction.save(map_path("entropy"), "entropy")
  # Last, so that a volume with a mask has all its maps.
  prediction.save(output / path.name)
  rows = [{"volume": path.name, "structure": name, **values} for name, values in prediction.uncertainty.items()]
  update_rows(output / UNCERTAINTY_FILE, path.name, rows)


def update_rows(path: Path, volume: str, rows: Sequence[Mapping]) -> None:
  """Replaces the rows of a volume in a csv file; numbers get six digits. A file without rows is removed."""
  from vamcei_jax.files import write_text

  rounded = lambda value: f"{value:.6g}" if isinstance(value, float) else value
  rows = [{name: rounded(value) for name, value in row.items()} for row in rows]
  if path.exists():
    with path.open(newline="", encoding="utf-8") as table:
      rows = [row for row in csv.DictReader(table) if row["volume"] != volume] + rows
  if not rows:
    path.unlink(missing_ok=True)
    return
  text = io.StringIO()
  writer = csv.DictWriter(text, rows[0], lineterminator="\n")
  writer.writeheader()
  writer.writerows(sorted(rows, key=lambda row: row["volume"]))
  write_text(path, text.getvalue())


def command() -> None:
  """Entry point of `vamcei-predict`."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
