"""Predictions against labels: metrics.csv, metrics.json and report.html.

python -m vamcei_jax.evaluate --predictions=masks --labels=DIR/LGE --images=DIR/LGE --output=scores

The label of a prediction NAME is NAME_manual if --labels has such files (its other files are images then), else NAME.
nnU-Net's channel (_0000) in names of predictions and images is ignored. Predictions without a label are not scored.
Labels without a prediction and files that cannot be used are named at the end, and the exit code is 1.
"""

import ast
from pathlib import Path

from absl import flags

from vamcei_jax import command_line
from vamcei_jax.errors import InputError

_PREDICTIONS = flags.DEFINE_string("predictions", None, "Folder of predicted masks, or a single one.")
_LABELS = flags.DEFINE_string("labels", None, "Folder of true masks, or of images with NAME_manual beside them.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for metrics.csv, metrics.json and report.html.")
_AGAINST = flags.DEFINE_string("against", None, "Folder of other predicted masks, to test these against.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of the images, under the predictions' names, for the report.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: its label values, curves and configuration.")
_LABEL_VALUES = flags.DEFINE_string("label_values", None, "Of background, Myo, LV and RV; default (0,200,500,600).")
flags.mark_flags_as_required(["predictions", "labels", "output"])


def main() -> None:
  from vamcei_jax.evaluation.scoring import check_output, evaluate

  output, workdir = path_of(_OUTPUT), path_of(_WORKDIR)
  check_output(output)
  label_values = choose_label_values(_LABEL_VALUES.value, workdir)
  run = read_run(workdir) if workdir else {}
  files = {flag.name: path_of(flag) for flag in (_PREDICTIONS, _LABELS, _AGAINST, _IMAGES)}
  table = evaluate(**files, label_values=label_values)
  without_image = table.save(output, **run)
  patients = len(table.scores)
  print(f"{table}\n\nReport and numbers of {patients} patient{'s' if patients > 1 else ''}: {output}")
  command_line.end([*table.failures, *without_image])


def path_of(flag: flags.FlagHolder) -> Path | None:
  """The path in a flag; None if the flag is not given.

  Raises:
    InputError: the flag is given and empty.
  """
  if flag.value == "":
    raise InputError(f"--{flag.name}=: empty; name a folder")
  return None if flag.value is None else Path(flag.value)


def read_run(workdir: Path) -> dict:
  """What a run adds to the report: arguments of Table.save."""
  from vamcei_jax.config import CONFIG_FILE
  from vamcei_jax.restore import run_folder
  from vamcei_jax.training import METRICS_FILE, read_log

  log = read_log(run_folder(workdir.resolve()) / METRICS_FILE)
  return {"about": {"run": str(workdir)}, "log": log, "config": (workdir / CONFIG_FILE).read_text(encoding="utf-8")}


def choose_label_values(given: str | None, workdir: Path | None):
  """The masks' values of each class (LabelValues): those given, else those of the run, else those of MS-CMRSeg.

  Raises:
    InputError: not four different values, or tuples of values.
  """
  from vamcei_jax.config import read_config
  from vamcei_jax.data.labels import LABEL_VALUES
  from vamcei_jax.evaluation.scoring import check_label_values

  config = read_config(workdir) if workdir else None
  if given is None:
    values, origin = config.data.get("label_values") if config else LABEL_VALUES, f"{workdir}: data.label_values"
  else:
    origin = "--label_values"
    try:
      values = ast.literal_eval(given)
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
      values = given
  check_label_values(values, origin)
  return values


if __name__ == "__main__":
  command_line.run(main)
