"""Compares predicted masks with true masks, and writes metrics.csv, metrics.json and report.html.

python -m vamcei_jax.evaluate --predictions=masks --labels=DIR/LGE --images=DIR/LGE --output=scores
python -m vamcei_jax.evaluate --predictions=masks --against=earlier --labels=DIR/LGE --output=scores

A label is a true mask. The label of the prediction sub-01/lge.nii.gz has the same subfolder and name in --labels. If
--labels has files named NAME_manual, these are the labels, and its other files are images. The command ignores the
channel of nnU-Net (_0000) in the names of predictions and images. If --labels is a single file, --predictions,
--against and --images may be single files of any name.

The command does not score predictions without a label. If predictions and labels have different values, give all values
of each class: --label_values="0,(1,200),(2,500),(3,600)".

If a label has no prediction, or if the command cannot use a file, the command names the file at the end, and ends with
exit code 1.
"""

from pathlib import Path
from typing import Any

from absl import flags

from vamcei_jax import cli
from vamcei_jax.data.labels import LABEL_VALUES, LabelValues
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("predictions", None, "PATH: Folder of predicted masks, or a single file.")
    flags.DEFINE_string("labels", None, "PATH: Folder of true masks, or of images and masks NAME_manual; or a file.")
    flags.DEFINE_string("output", None, "DIR: Folder for metrics.csv, metrics.json and report.html.")
  with group("input"):
    flags.DEFINE_string("against", None, "PATH: Other predicted masks to compare with: a folder, or a single file.")
    flags.DEFINE_string("images", None, "PATH: Images for the report, named like the predictions: a folder, or a file.")
    flags.DEFINE_string("workdir", None, "DIR: Folder of a run, for its label values, curves and configuration.")
    flags.DEFINE_string(
      "label_values",
      None,
      "N,N,N,N: Values of background, Myo, LV and RV. Default: those of the run, or 0,200,500,600.",
    )


def main() -> None:
  """Runs the command."""
  from vamcei_jax.evaluation.scoring import check_output, evaluate

  output, workdir = cli.required_path("output"), cli.path_of("workdir")
  check_output(output)
  label_values = choose_label_values(FLAGS.label_values, workdir)
  run = read_run(workdir) if workdir else {}
  predictions, labels = cli.required_path("predictions"), cli.required_path("labels")
  against, images = cli.path_of("against"), cli.path_of("images")
  table = evaluate(predictions, labels, label_values=label_values, against=against, images=images)
  without_image = table.save(output, **run)
  patients = len(table.scores)
  print(f"{table}\n\nReport and numbers of {patients} patient{'s' if patients > 1 else ''}: {output}")
  cli.end([*table.failures, *without_image])


def read_run(workdir: Path) -> dict:
  """What a run adds to the report: arguments of Table.save."""
  from vamcei_jax.config.files import CONFIG_FILE
  from vamcei_jax.inference.load import run_folder
  from vamcei_jax.pipeline.results import describe_circumstances
  from vamcei_jax.training.log import METRICS_FILE, read_log

  folder = run_folder(workdir.resolve())
  log = read_log(folder / METRICS_FILE)
  about = {"run": str(workdir), **describe_circumstances(folder, log)}
  return {"about": about, "log": log, "config": (workdir / CONFIG_FILE).read_text(encoding="utf-8")}


def choose_label_values(given: str | None, workdir: Path | None) -> LabelValues:
  """The masks' values of each class: those given, else those of the run, else those of MS-CMRSeg.

  Raises:
    InputError: not four different values, or tuples of values.
  """
  from vamcei_jax.config.files import read_config
  from vamcei_jax.evaluation.scoring import check_label_values

  config = read_config(workdir) if workdir else None
  values: Any = LABEL_VALUES
  origin = "--label_values"
  if given is not None:
    values = cli.parse_values(given)
  elif config is not None:
    values, origin = config["data"].get("label_values", LABEL_VALUES), f"{workdir}: data.label_values"
  check_label_values(values, origin)
  return values


def command() -> None:
  """Entry point of `vamcei-evaluate`."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
