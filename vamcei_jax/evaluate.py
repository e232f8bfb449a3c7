"""Predictions against labels: metrics.csv, metrics.json and report.html.

python -m vamcei_jax.evaluate --predictions=masks --labels=DIR/LGE --images=DIR/LGE --output=scores

The label of a prediction NAME is NAME_manual where --labels holds such files (its other files are images then), else
NAME. nnU-Net's channel (_0000) in names of predictions and images makes no difference. Predictions without a label are
not scored. Labels without a prediction and files that cannot be used are named at the end, and the exit code is 1.
"""

import ast
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
  from vamcei_jax.data.nifti import list_volumes, name_volumes, read_classes, read_mask
  from vamcei_jax.evaluation.pairing import list_labels, match, read_image, score_files
  from vamcei_jax.evaluation.report import Case, counted_as_empty, write_report
  from vamcei_jax.evaluation.statistics import compare, format_table, summarise, write_metrics
  from vamcei_jax.restore import run_folder
  from vamcei_jax.training import METRICS_FILE, read_log

  output, workdir = folder_of(_OUTPUT), folder_of(_WORKDIR)
  if output.exists() and not output.is_dir():
    raise InputError(f"{output}: a file; choose another --output")
  if (output / CONFIG_FILE).exists():
    raise InputError(f"{output}: a run, whose own report would be replaced; choose another --output")
  label_values = choose_label_values(_LABEL_VALUES.value, workdir)
  log = read_log(run_folder(workdir.resolve()) / METRICS_FILE) if workdir else []
  config = (workdir / CONFIG_FILE).read_text(encoding="utf-8") if workdir else ""
  labels = list_labels(folder_of(_LABELS))
  images = match(name_volumes(folder_of(_IMAGES)).values(), labels) if _IMAGES.present else {}
  if _IMAGES.present and not images:
    raise InputError(f"{_IMAGES.value}: no image bears the name of a label in {_LABELS.value}; correct --images")

  files, scores, failures = {}, {}, []
  for method, folder in name_methods().items():
    predictions = list_volumes(folder)
    files[method] = match(predictions, labels)
    if not files[method]:
      names = f"as {next(iter(labels))}; found {predictions[0].name}"
      raise InputError(f"{folder}: no prediction bears the name of a label in {_LABELS.value}, {names}. Rename them.")
    if unlabelled := len(predictions) - len(files[method]):
      print(f"{folder}: {unlabelled} of {len(predictions)} predictions have no label and are not scored")
    scores[method], failed = score_files(files[method], labels, label_values)
    if not scores[method]:
      raise InputError(failed[0])
    missing = [label for name, label in labels.items() if name not in files[method]]
    failures += failed + [f"{label}: no prediction of it in {folder}; predict it, or remove it" for label in missing]
  first, last = list(scores)[0], list(scores)[-1]
  shared = [name for name in scores[last] if name in scores[first]]
  if not shared:
    raise InputError(f"{_AGAINST.value}: no patient in common with {_PREDICTIONS.value}; nothing can be compared")
  scores = {method: {name: own[name] for name in shared} for method, own in scores.items()}

  def load_case(name: str) -> Case:
    truth = read_mask(labels[name], label_values)
    masks = {method: read_classes(files[method][name], truth, label_values) for method in files}
    image = None
    try:
      if _IMAGES.present and name not in images:
        raise InputError(f"{labels[name]}: no image of it in {_IMAGES.value}; shown without")
      image = read_image(images[name], truth) if images else None
    except InputError as error:
      failures.append(str(error))
    return Case(image, truth.voxels, masks, truth.spacing[1:])

  results = {method: summarise(own) for method, own in scores.items()}
  comparison = compare(scores[last], scores[first]) if first != last else {}
  about = {"predictions": _PREDICTIONS.value, "labels": _LABELS.value}
  other = {"against": {"predictions": _AGAINST.value, **results[first], "comparison": comparison}} if comparison else {}
  write_metrics(output, scores[last], **about, **other)
  about |= {name: flag.value for name, flag in (("against", _AGAINST), ("run", _WORKDIR)) if flag.value}
  write_report(output / "report.html", f"Evaluation of {last}", about, scores, load_case, log=log, config=config)

  tables = []
  for metric, digits in PRINTED.items():
    p_values = {name: own[metric]["p_value"] for name, own in comparison.items()}
    tables.append(format_table(results, metric, digits, p_values))
  print("\n\n".join(tables))
  if counted := counted_as_empty(scores):
    print(f"\nEmpty masks: {len(counted)}, the first {', '.join(counted[0])}; {output / 'report.html'} lists them")
  print(f"\nReport and numbers of {len(shared)} patient{'s' if len(shared) > 1 else ''}: {output}")
  command_line.end(failures)


def folder_of(flag: flags.FlagHolder) -> Path | None:
  """The folder that a flag names; None where it is not given.

  Raises:
    InputError: it is given and empty.
  """
  if flag.value == "":
    raise InputError(f"--{flag.name}=: empty; name a folder")
  return None if flag.value is None else Path(flag.value)


def name_methods() -> dict[str, Path]:
  """Name -> folder of predictions, the one to test against first; named by their last parts, if these differ.

  Raises:
    InputError: they are one folder.
  """
  folders = [folder for flag in (_AGAINST, _PREDICTIONS) if (folder := folder_of(flag)) is not None]
  if len({folder.resolve() for folder in folders}) < len(folders):
    raise InputError(f"{_AGAINST.value}: the folder of --predictions itself; correct --against")
  named = {folder.resolve().name: folder for folder in folders}
  return named if len(named) == len(folders) else {str(folder): folder for folder in folders}


def choose_label_values(given: str | None, workdir: Path | None):
  """What masks hold for each class (LabelValues): as given, as the run's configuration says, or as in MS-CMRSeg.

  Raises:
    InputError: not four different values, or tuples of them.
  """
  from vamcei_jax.config import read_config
  from vamcei_jax.data.labels import CLASSES, LABEL_VALUES, are_label_values

  config = read_config(workdir) if workdir else None
  if given is None:
    values, origin = config.data.get("label_values") if config else LABEL_VALUES, f"{workdir}: data.label_values"
  else:
    origin = "--label_values"
    try:
      values = ast.literal_eval(given)
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
      values = given
  if are_label_values(values):
    return values
  expected = f"expected {len(CLASSES)} different values, or tuples of values, such as 0,200,500,600 or (0,(1,4),2,3)"
  raise InputError(f"{origin}={values}: {expected}")


if __name__ == "__main__":
  command_line.run(main)
