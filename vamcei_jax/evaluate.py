"""Predictions against labels: metrics.csv, metrics.json and report.html.

python -m vamcei_jax.evaluate --predictions=masks --labels=DIR/LGE --images=DIR/LGE --output=scores

The label of a prediction NAME is NAME_manual where --labels holds such files, else NAME, less nnU-Net's channel
(_0000). Predictions without a label are not scored. Labels without a prediction and files that cannot be used are named
at the end, and the exit code is 1.
"""

import ast
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags

from vamcei_jax import command_line
from vamcei_jax.errors import InputError

_PREDICTIONS = flags.DEFINE_string("predictions", None, "Folder of predicted masks.")
_LABELS = flags.DEFINE_string("labels", None, "Folder of true masks, or of images with NAME_manual beside them.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for metrics.csv, metrics.json and report.html.")
_AGAINST = flags.DEFINE_string("against", None, "Folder of other predicted masks, to test these against.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of the images, under the predictions' names, for the report.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: its label values, curves and configuration.")
_LABEL_VALUES = flags.DEFINE_string("label_values", None, "Of background, Myo, LV and RV; default (0,200,500,600).")
flags.mark_flags_as_required(["predictions", "labels", "output"])

PRINTED = {"dice": 3, "assd_mm": 2, "hd95_mm": 2}  # metric -> digits


def main() -> None:
  from vamcei_jax.config import CONFIG_FILE
  from vamcei_jax.data.nifti import list_volumes, read_classes, read_mask
  from vamcei_jax.evaluation.metrics import METRICS
  from vamcei_jax.evaluation.report import Case, counted_as_empty, write_report
  from vamcei_jax.evaluation.statistics import compare, format_table, summarise, write_metrics
  from vamcei_jax.training import METRICS_FILE, read_log

  workdir = Path(_WORKDIR.value) if _WORKDIR.value else None
  label_values = choose_label_values(_LABEL_VALUES.value, workdir)
  labels = list_labels(Path(_LABELS.value))
  files, scores, failures = {}, {}, []
  for method, folder in name_folders([Path(flag.value) for flag in (_AGAINST, _PREDICTIONS) if flag.value]).items():
    predictions = list_volumes(folder)
    files[method] = match(predictions, labels)
    if not files[method]:
      raise InputError(f"{folder}: no prediction bears the name of a label in {_LABELS.value}; correct one of the two")
    if unlabelled := len(predictions) - len(files[method]):
      print(f"{folder}: {unlabelled} of {len(predictions)} predictions have no label and are not scored")
    scores[method], failed = score_files(files[method], labels, label_values)
    if not scores[method]:
      raise InputError(failed[0])
    missing = [label for name, label in labels.items() if name not in files[method]]
    failures += failed + [f"{label}: no prediction of it in {folder}" for label in missing]
  first, last = list(scores)[0], list(scores)[-1]

  def load_case(name: str) -> Case:
    truth = read_mask(labels[name], label_values)
    paths = {method: files[method][name] for method in scores if name in scores[method]}
    masks = {method: read_classes(path, truth, label_values) for method, path in paths.items()}
    return Case(load_image(paths[last].name, truth), {"truth": truth.voxels, **masks})

  output = Path(_OUTPUT.value)
  about = {"predictions": _PREDICTIONS.value, "labels": _LABELS.value, "against": _AGAINST.value}
  about = {name: value for name, value in about.items() if value}
  comparison = compare(scores[last], scores[first]) if first != last else {}
  write_metrics(output, scores[last], **about, comparison=comparison)
  log = read_log(workdir / METRICS_FILE) if workdir else []
  config = (workdir / CONFIG_FILE).read_text(encoding="utf-8") if workdir else ""
  write_report(output / "report.html", f"Evaluation of {last}", about, scores, [], load_case, log, config)

  results = {method: summarise(own) for method, own in scores.items()}
  print("\n\n".join(format_table(results, metric, digits) for metric, digits in PRINTED.items()))
  if comparison:
    print("\nWilcoxon's p")
  for metric in PRINTED if comparison else ():
    values = (f"{own[metric]['p_value']:>16.2g}" for own in comparison.values())
    print(f"{METRICS[metric].title:<16}" + "".join(values))
  for method, patient, structure, which in counted_as_empty(scores):
    print(f"{method}, {patient}, {structure}: {which} empty; counted as report.html says under Summary")
  print(f"Report and numbers of {len(scores[last])} patients: {output}")
  for failure in dict.fromkeys(failures):
    print(f"error: {failure}", file=sys.stderr)
  if failures:
    sys.exit(1)


def choose_label_values(given: str | None, workdir: Path | None):
  """What masks hold for each class: as given, as the run's configuration says, or as in MS-CMRSeg.

  Raises:
    InputError: not four different values, or tuples of them.
  """
  from vamcei_jax.config import read_config
  from vamcei_jax.data.labels import CLASSES, LABEL_VALUES, are_label_values

  if given is None:
    return read_config(workdir).data.label_values if workdir else LABEL_VALUES
  expected = f"expected {len(CLASSES)} different values, or tuples of values, such as 0,200,500,600 or (0,(1,4),2,3)"
  try:
    values = ast.literal_eval(given)
    if are_label_values(values):
      return values
  except (SyntaxError, TypeError, ValueError):
    pass
  raise InputError(f"--label_values={given}: {expected}")


def list_labels(folder: Path) -> dict[str, Path]:
  """Name -> mask: the files NAME_manual of a folder if it has some, else all NIfTI files."""
  from vamcei_jax.data.nifti import MANUAL, volume_name

  if not folder.is_dir():
    raise InputError(f"{folder}: no such folder; correct --labels")
  named = {name: path for path in sorted(folder.iterdir()) if (name := volume_name(path))}
  manual = {name.removesuffix(MANUAL): path for name, path in named.items() if name.endswith(MANUAL)}
  if not named:
    raise InputError(f"{folder}: no NIfTI file in it; correct --labels")
  return manual or named


def name_folders(folders: Sequence[Path]) -> dict[str, Path]:
  """What folders of predictions are called -> folder: by their last names, where these differ."""
  named = {folder.resolve().name: folder for folder in folders}
  return named if len(named) == len(folders) else {str(folder): folder for folder in folders}


def match(predictions: Iterable[Path], labels: Mapping[str, Path]) -> dict[str, Path]:
  """Name of a label -> the prediction of it, of those that have one."""
  from vamcei_jax.data.nifti import volume_name

  matched = {}
  for path in predictions:
    name = volume_name(path)
    name = name if name in labels else re.sub(r"_\d{4}$", "", name)
    if name in matched:
      raise InputError(f"{path}: a second prediction of {name}, beside {matched[name].name}; remove one of them")
    if name in labels:
      matched[name] = path
  return matched


def score_files(predictions: Mapping[str, Path], labels: Mapping[str, Path], label_values) -> tuple[dict, list[str]]:
  """Scores of the predictions by name, and one line for each that cannot be scored."""
  from tqdm import tqdm

  from vamcei_jax.data.nifti import read_classes, read_mask
  from vamcei_jax.evaluation.metrics import measure

  scores, failures = {}, []
  for name, path in tqdm(predictions.items(), "scores", unit="volume", disable=None):
    try:
      truth = read_mask(labels[name], label_values)
      scores[name] = measure(read_classes(path, truth, label_values), truth.voxels, truth.spacing)
    except InputError as error:
      failures.append(str(error))
  return scores, failures


def load_image(name: str, truth):
  """The image of that file name in --images, scaled to [0, 1]; a grey one where there is none on the label's grid."""
  import numpy as np

  from vamcei_jax.data.nifti import read_volume
  from vamcei_jax.data.preprocess import Preprocess, preprocess_image

  blank = np.full(truth.voxels.shape, 0.25, np.float32)
  if not _IMAGES.value or not (path := Path(_IMAGES.value, name)).is_file():
    return blank
  volume = read_volume(path)
  whole = Preprocess(size=volume.voxels.shape[1:])
  return preprocess_image(volume.voxels, volume.spacing, whole) if volume.voxels.shape == blank.shape else blank


if __name__ == "__main__":
  command_line.run(main)
