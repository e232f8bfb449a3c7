"""Prepares the data of a run, prints what is in it, and leaves out files that cannot be used.

python -m vamcei_jax.prepare --dataset=mscmrseg --source=DIR
python -m vamcei_jax.prepare --config=configs/folder.py --source=DIR

A run prepares its data by itself, but refuses files that it cannot use. This command leaves them out, names them, and
ends with exit code 1; the run then trains without them.
"""

import importlib
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from vamcei_jax import cli
from vamcei_jax.errors import InputError

FLAGS = flags.FLAGS
CONFIGS = {"phantom": "uda"}  # dataset -> name of its config, where they differ


def define_flags() -> None:
  """Defines the flags."""
  config_flags.DEFINE_config_file("config", None, "A file of configs/, whose data are prepared.")
  flags.DEFINE_string("dataset", None, "Short for --config=configs/DATASET.py.")
  flags.DEFINE_string("source", None, "Folder of the NIfTI volumes; short for --config.data.root.")


def main() -> None:
  """Runs the command."""
  from vamcei_jax.pipeline.preparation import prepare_run

  config = choose_config()
  if FLAGS.source is not None:
    config.data.root = FLAGS.source
  if not prepare_run(config):
    sys.exit(1)


def choose_config() -> ConfigDict:
  """The config that --config or --dataset names.

  Raises:
    InputError: both or none of them is given, or there is no such dataset.
  """
  from vamcei_jax.datasets import BUILDERS

  if FLAGS["config"].present == FLAGS["dataset"].present:
    given = "not both" if FLAGS["config"].present else "neither was given"
    raise InputError(f"name the data by --dataset=NAME or by --config=FILE; {given}")
  if FLAGS["config"].present:
    cli.config_path()
    return FLAGS.config
  if FLAGS.dataset not in BUILDERS:
    raise InputError(f"--dataset={FLAGS.dataset}: no such dataset; choose one of {', '.join(BUILDERS)}")
  name = CONFIGS.get(FLAGS.dataset, FLAGS.dataset)
  if not Path("configs", f"{name}.py").is_file():
    raise InputError(f"configs/{name}.py: not found; give the command in the repository's root")
  return importlib.import_module(f"configs.{name}").get_config()


def command() -> None:
  """Entry point of `vamcei-prepare`."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
