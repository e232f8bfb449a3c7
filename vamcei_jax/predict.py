"""Segments NIfTI volumes with exported weights, or with a stage of a run.

python -m vamcei_jax.predict --weights=weights/mscmrseg_student --input=volumes --output=masks
python -m vamcei_jax.predict --workdir=runs/uda --input=volumes --output=masks

Each mask has the name, grid and header of its volume. --samples=N adds an entropy map in nats (NAME_entropy.nii.gz) and
uncertainty.csv; --probabilities adds the class probabilities (NAME_probabilities.nii.gz, classes as the fourth axis).
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
  from vamcei_jax.inference.prediction import Prediction

FLAGS = flags.FLAGS
OPTIONS = ("tta", "postprocess", "smooth", "samples", "resample")
UNCERTAINTY_FILE = "uncertainty.csv"


def define_flags() -> None:
  """Defines the flags."""
  flags.DEFINE_string("weights", None, "Folder of exported weights.")
  flags.DEFINE_string("workdir", None, "Folder of a run (its last stage predicts) or of one of its stages.")
  flags.DEFINE_string("input", None, "A NIfTI volume, or a folder of them.")
  flags.DEFINE_string("output", None, "Folder for the masks.")
  flags.DEFINE_bool("probabilities", False, "Write the class probabilities as well.")
  cli.define_inference_flags(*OPTIONS)
  flags.mark_flags_as_required(["input", "output"])
  flags.mark_flags_as_mutual_exclusive(["workdir", "weights"], required=True)


def main() -> None:
  """Runs the command."""
  from tqdm import tqdm

  from vamcei_jax.data.nifti import list_volumes
  from vamcei_jax.inference.load import load_segmenter

  paths, output = list_volumes(Path(FLAGS.input)), Path(FLAGS.output)
  refuse_inputs(paths, output)
  segmenter = load_segmenter(FLAGS.weights or FLAGS.workdir, **cli.inference_options(*OPTIONS))
  failures = []
  for path in tqdm(paths, "volumes", unit="volume", disable=None):
    try:
      prediction = segmenter(path)
      for finding in prediction.quality.findings:
        tqdm.write(f"{path}: {finding.text}")
      write_prediction(prediction, path, output, probabilities=FLAGS.probabilities)
    except InputError as error:
      failures.append(str(error))
    except MemoryError:
      failures.append(f"{path}: too large for this machine's memory. Crop it.")
  if len(failures) == len(paths):
    more = f" ({len(failures) - 1} other files failed as well)" if len(failures) > 1 else ""
    raise InputError(failures[0] + more)
  print(f"{len(paths) - len(failures)} of {len(paths)} volumes segmented: {output}")
  cli.end(failures)


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
