"""Segments NIfTI and DICOM volumes with exported weights, or with a network of a run.

python -m vamcei_jax.predict --weights=weights/lge --input=volumes --output=masks
python -m vamcei_jax.predict --workdir=runs/uda --input=volumes/patient1.nii.gz --output=mask.nii.gz

The command also searches subfolders of --input, and creates the same subfolders in --output. Each mask has the name,
grid and header of its volume. volumes.csv has a row for each volume, and report.html shows all masks.

--samples=N adds an entropy map in nats (NAME_entropy.nii.gz) and uncertainty.csv. --probabilities adds the class
probabilities (NAME_probabilities.nii.gz, classes as the fourth axis). A DICOM series gives one NIfTI mask for each
phase; --dicom_seg adds a DICOM segmentation (NAME_seg.dcm).
"""

import csv
import dataclasses
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from vamcei_jax import cli
from vamcei_jax.errors import InputError
from vamcei_jax.usage import ONE_OF, REQUIRED, group

if TYPE_CHECKING:
  from vamcei_jax.data.dicom_series import DicomVolume
  from vamcei_jax.evaluation.report import Predicted
  from vamcei_jax.inference.prediction import Prediction
  from vamcei_jax.inference.segmenter import Segmenter

FLAGS = flags.FLAGS
OPTIONS = ("tta", "postprocess", "smooth", "samples", "resample")
REPORT_FILE = "report.html"
VOLUMES_FILE = "volumes.csv"
VOLUMES_COLUMNS = ("volume", "LV_ml", "RV_ml", "myocardium_g", "score", "findings")
UNCERTAINTY_FILE = "uncertainty.csv"
UNCERTAINTY_COLUMNS = ("volume", "structure", "volume_ml", "volume_std_ml", "entropy", "agreement")


@dataclasses.dataclass(frozen=True)
class Task:
  """A volume to segment, and the place of its prediction.

  volume: its NIfTI file, or a DICOM volume.
  name: of the volume in tables and in the report: its path from the input folder, or the name of the mask's file.
  mask: file of the mask; its maps lie beside it.
  folder: of the tables and of the report.
  """

  volume: "Path | DicomVolume"
  name: str
  mask: Path
  folder: Path

  @property
  def files(self) -> list[Path]:
    """The files that hold the volume."""
    return [self.volume] if isinstance(self.volume, Path) else [frame.file for frame in self.volume.frames]

  def file(self, kind: str) -> Path:
    """The file of the mask, of a map, or of the DICOM segmentation (kind "seg")."""
    from vamcei_jax.data.nifti import split_name

    stem, suffix = split_name(self.mask)
    if kind == "seg":
      return self.mask.with_name(f"{stem}_seg.dcm")
    return self.mask if kind == "mask" else self.mask.with_name(f"{stem}_{kind}{suffix}")


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("input", None, "PATH: A volume, or a folder of NIfTI volumes or DICOM series.")
    flags.DEFINE_string("output", None, "PATH: Folder for the masks or, for one volume, the file of its mask.")
  with group(ONE_OF):
    flags.DEFINE_string("weights", None, "DIR: Folder of exported weights.")
    flags.DEFINE_string("workdir", None, "DIR: Folder of a run (uses its last stage) or of one of its stages.")
  with group("input and output"):
    flags.DEFINE_string("spacing", None, "MM,MM,MM: Voxel size along the axes of the files; overrides the headers.")
    flags.DEFINE_string(
      "label_values",
      None,
      "N,N,N,N: Values of background, Myo, LV and RV in the masks. Default: those of the training.",
    )
    flags.DEFINE_bool("probabilities", False, "Also write the class probabilities.")
    flags.DEFINE_bool("dicom_seg", False, "Also write a DICOM segmentation of each DICOM volume.")
  with group("prediction (default: as exported with the weights)"):
    cli.define_inference_flags(*OPTIONS)


def main() -> None:
  """Runs the command."""
  from vamcei_jax.data.nifti import list_unread
  from vamcei_jax.inference.load import load_segmenter
  from vamcei_jax.pipeline.record import describe_session, devices, git_state

  source, output = cli.required_path("input"), cli.required_path("output")
  network = cli.path_of("weights") or cli.required_path("workdir")
  tasks, unusable = plan_tasks(source, output, dicom_only=FLAGS.dicom_seg)
  if not tasks:
    raise InputError(unusable[0])
  check_outputs(tasks)
  spacing = None if FLAGS.spacing is None else parse_spacing(FLAGS.spacing)
  values = None if FLAGS.label_values is None else parse_mask_values(FLAGS.label_values)
  segmenter = load_segmenter(network, **cli.inference_options(*OPTIONS))
  if values is not None:
    segmenter = with_label_values(segmenter, values)
  program = describe_session({"git": git_state(Path(__file__).parent), "devices": devices()})
  about = {"Network": str(network), "Volumes": FLAGS.input, **program}
  failures = segment(
    segmenter, tasks, about, spacing=spacing, probabilities=FLAGS.probabilities, dicom_seg=FLAGS.dicom_seg
  )
  total = len(tasks) + len(unusable)
  print(f"{len(tasks) - len(failures)} of {total} volumes segmented: {output}")
  cli.end([*failures, *unusable, *list_unread(source, leave_out=output)])


def plan_tasks(source: Path, output: Path, *, dicom_only: bool = False) -> tuple[list[Task], list[str]]:
  """The volumes of a file or a folder, and the places of their predictions.

  Args:
    source: a NIfTI or DICOM file, or a folder, which is searched with the folders in it.
    output: a folder, which is not searched, or the NIfTI file of the mask of one volume.
    dicom_only: whether NIfTI files are refused.

  Returns:
    The tasks, and a line for each DICOM file or series that cannot be used.

  Raises:
    InputError: no volume, an output that cannot be one, or a NIfTI file with `dicom_only`.
  """
  from vamcei_jax.data.dicom import list_dicom
  from vamcei_jax.data.nifti import SUFFIXES, has_volumes, list_volumes

  dicom, unusable = list_dicom(source, leave_out=output)
  paths = [] if (dicom or unusable) and not has_volumes(source, output) else list_volumes(source, leave_out=output)
  if dicom_only and paths:
    raise InputError(f"{paths[0]}: a NIfTI file; --dicom_seg is for DICOM series. Leave the flag out.")
  if output.name.lower().endswith(SUFFIXES) and not output.is_dir():
    if len(paths) + len(dicom) > 1:
      raise InputError(f"{output}: one file for the masks of {len(paths) + len(dicom)} volumes; name a folder")
    tasks = [Task(path, output.name, output, output.parent) for path in paths]
    return tasks + [Task(volume, output.name, output, output.parent) for volume in dicom], unusable
  folder = source if source.is_dir() else source.parent
  names = {path: path.relative_to(folder) for path in paths}
  tasks = [Task(path, name.as_posix(), output / name, output) for path, name in names.items()]
  return tasks + [Task(volume, volume.name, output / f"{volume.name}.nii.gz", output) for volume in dicom], unusable


def check_outputs(tasks: Sequence[Task]) -> None:
  """Checks, before anything is written, that the files of all predictions can be written.

  Raises:
    InputError: a file would replace an input, through whatever link or spelling; the name of a mask is not that of a
      NIfTI file; a folder is that of a run; or a table is not one of predictions.
  """
  from vamcei_jax.data.nifti import check_name
  from vamcei_jax.evaluation.scoring import check_output

  inputs = {identity(file): file for task in tasks for file in task.files}
  for task in tasks:
    check_name(task.mask)
    for file in output_files(task):
      if (found := identity(file)) is not None and found in inputs:
        raise InputError(f"{file}: an output that would replace the input {inputs[found]}; choose another --output")
  folder = tasks[0].folder
  check_output(folder)
  for name, columns in ((VOLUMES_FILE, VOLUMES_COLUMNS), (UNCERTAINTY_FILE, UNCERTAINTY_COLUMNS)):
    read_rows(folder / name, columns)


def output_files(task: Task) -> Iterator[Path]:
  """All files that the prediction of a volume may write or remove."""
  from vamcei_jax.data.nifti import MAPS

  yield from (task.file(kind) for kind in ("mask", "seg", *MAPS))
  yield from (task.folder / name for name in (VOLUMES_FILE, UNCERTAINTY_FILE, REPORT_FILE))


def identity(path: Path) -> tuple[int, int] | None:
  """What two paths of one file have in common, whatever their links, spellings and letters; None without a file."""
  try:
    stat = path.stat()
  except OSError:
    return None
  return stat.st_dev, stat.st_ino


def parse_mask_values(text: str) -> tuple[int, ...]:
  """The label values in the text of a flag. Raises an InputError if these are not one whole number for each class."""
  from vamcei_jax.data.labels import CLASSES, are_label_values

  values = cli.parse_values(text)
  if not are_label_values(values) or not all(isinstance(value, int) for value in values):
    raise InputError(f"--label_values={text}: expected {len(CLASSES)} different whole numbers, such as 0,200,500,600")
  return tuple(values)


def with_label_values(segmenter: "Segmenter", values: Sequence[int]) -> "Segmenter":
  """The segmenter, with these values in its masks."""
  data = dataclasses.replace(segmenter.config.data, label_values=tuple(values))
  return dataclasses.replace(segmenter, config=dataclasses.replace(segmenter.config, data=data))


def segment(
  segmenter: "Segmenter",
  tasks: Sequence[Task],
  about: Mapping[str, str],
  *,
  spacing: Sequence[float] | None = None,
  probabilities: bool = False,
  dicom_seg: bool = False,
) -> list[str]:
  """Segments volumes, and writes masks, maps, tables and report.

  Args:
    segmenter: the network.
    tasks: of one folder.
    about: lines below the heading of the report: name -> value.
    spacing: mm along the axes of the files, in place of their headers'.
    probabilities: whether class probabilities are written.
    dicom_seg: whether DICOM segmentations are written.

  Returns:
    A line for each volume that cannot be segmented.

  Raises:
    InputError: all volumes cannot be segmented.
  """
  from tqdm import tqdm

  from vamcei_jax.evaluation.report import write_report
  from vamcei_jax.inference.dicom_seg import save_dicom_seg
  from vamcei_jax.inference.summary import describe
  from vamcei_jax.training.progress import format_duration

  failures: list[str] = []
  entries: list[Predicted] = []
  started = time.perf_counter()
  written: dict[tuple[int, int] | None, str] = {}
  for task in tqdm(tasks, "volumes", unit="volume", disable=None):
    try:
      prediction = segmenter(task.volume, spacing)
      for finding in prediction.quality.findings:
        tqdm.write(f"{task.volume}: {finding.text}")
      refuse_second(task, written)
      if dicom_seg:
        save_dicom_seg(task.file("seg"), prediction, segmenter.config.data.label_values)
      write_prediction(prediction, task, probabilities=probabilities, dicom_seg=dicom_seg)
      written[identity(task.mask)] = task.name
      entries.append(describe(prediction, task.name, segmenter.config.data.label_values))
    except InputError as error:
      failures.append(str(error))
    except MemoryError:
      failures.append(f"{task.volume}: too large for this machine's memory. Crop it.")
  if not entries:
    more = f" ({len(failures) - 1} other files failed as well)" if len(failures) > 1 else ""
    raise InputError(failures[0] + more)
  about = {**about, "Time": f"{format_duration(time.perf_counter() - started)}, with compilation"}
  about |= {"Not segmented": "; ".join(failures)} if failures else {}
  write_report(tasks[0].folder / REPORT_FILE, "Predictions", about, predicted=entries)
  return failures


def parse_spacing(text: str) -> list[float]:
  """The millimetres in the text of a flag. Raises an InputError if these are not three positive numbers."""
  values = cli.parse_values(text)
  numbers = [value for value in values if type(value) in (int, float)] if isinstance(values, list | tuple) else []
  if len(numbers) != 3 or not all(0 < value < float("inf") for value in numbers):
    raise InputError(f"--spacing={text}: expected three positive numbers in mm, such as 0.75,0.75,8")
  return [float(value) for value in numbers]


def refuse_second(task: Task, written: Mapping[tuple[int, int] | None, str]) -> None:
  """Raises an InputError if a mask would replace that of another volume, as names differ in letters or links only.

  Args:
    task: of the mask.
    written: identity of each mask that was written -> name of its volume.
  """
  if (found := identity(task.mask)) is not None and found in written:
    raise InputError(f"{task.volume}: its mask would replace that of {written[found]}. Rename one of the volumes.")


def write_prediction(
  prediction: "Prediction", task: Task, *, probabilities: bool = False, dicom_seg: bool = False
) -> None:
  """Writes the mask of a volume, its maps, and its rows of volumes.csv and uncertainty.csv.

  Maps and the DICOM segmentation of an earlier prediction of the volume are replaced or removed.

  Args:
    prediction: of the volume.
    task: the places of the files.
    probabilities: whether class probabilities are written.
    dicom_seg: whether the DICOM segmentation has been written.
  """
  from vamcei_jax.data.nifti import MAPS
  from vamcei_jax.inference.dicom_seg import is_by_vamcei_jax

  exists = {"probabilities": probabilities, "entropy": prediction.entropy is not None}
  kinds = ["mask", *(kind for kind in MAPS if exists[kind])]
  earlier = [task.file(kind) for kind in MAPS if kind not in kinds]
  if prediction.scan.dicom is not None and not dicom_seg and is_by_vamcei_jax(task.file("seg")):
    earlier.append(task.file("seg"))
  prediction.save_maps({kind: task.file(kind) for kind in kinds}, remove=earlier)
  uncertain = [{"volume": task.name, "structure": name, **row} for name, row in prediction.uncertainty.items()]
  update_rows(task.folder / UNCERTAINTY_FILE, UNCERTAINTY_COLUMNS, task.name, uncertain)
  update_rows(task.folder / VOLUMES_FILE, VOLUMES_COLUMNS, task.name, [volumes_row(prediction, task.name)])


def volumes_row(prediction: "Prediction", name: str) -> dict[str, str | float]:
  """The row of a volume in volumes.csv."""
  findings = "; ".join(finding.name for finding in prediction.quality.findings)
  volumes, mass, score = prediction.volumes_ml, prediction.myocardial_mass_g, prediction.quality.score
  values = (name, volumes["LV"], volumes["RV"], mass, score, findings)
  return dict(zip(VOLUMES_COLUMNS, values, strict=True))


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
  """The rows of a csv file, or none if it does not exist.

  Raises:
    InputError: the file has other columns, or is no csv file.
  """
  if not path.exists():
    return []
  try:
    with path.open(newline="", encoding="utf-8-sig") as table:
      header, *rows = list(csv.reader(table)) or [[]]
  except (csv.Error, UnicodeDecodeError):
    header, rows = [], []
  if header != list(columns) or any(len(row) != len(columns) for row in rows):
    raise InputError(f"{path}: not a table with the columns {','.join(columns)}. Move it away.")
  return [dict(zip(columns, row, strict=True)) for row in rows]


def update_rows(path: Path, columns: Sequence[str], volume: str, rows: Sequence[Mapping]) -> None:
  """Replaces the rows of a volume in a csv file; numbers get six digits. A file without rows is removed.

  Raises:
    InputError: see `read_rows`.
  """
  from vamcei_jax.files import one_at_a_time, write_text

  rounded = lambda value: f"{value:.6g}" if isinstance(value, float) else value
  with one_at_a_time(path.parent):
    others = [row for row in read_rows(path, columns) if row["volume"] != volume]
    table = [*others, *({name: rounded(value) for name, value in row.items()} for row in rows)]
    if not table:
      path.unlink(missing_ok=True)
      return
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(table, key=lambda row: row["volume"]))
    write_text(path, text.getvalue())


def command() -> None:
  """Entry point of `vamcei-predict`."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
