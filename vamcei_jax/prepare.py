"""Prepares the data of a run, prints a summary, and leaves out files that it cannot use.

python -m vamcei_jax.prepare --dataset=mscmrseg --source=DIR
python -m vamcei_jax.prepare --config=configs/folder.py --source=DIR

vamcei_jax.main also prepares the data, but stops at the first file that it cannot use. This command leaves such files
out, names them, and ends with exit code 1. vamcei_jax.main then trains without them.
"""

import importlib
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from vamcei_jax import cli
from vamcei_jax.errors import InputError
from vamcei_jax.usage import ONE_OF, group

FLAGS = flags.FLAGS
CONFIGS = {"phantom": "uda"}  # dataset -> name of its config, where they differ


def define_flags() -> None:
  """Defines the flags."""
  with group(ONE_OF):
    flags.DEFINE_string("dataset", None, "NAME: mscmrseg, myops, mmwhs, folder (configs/NAME.py) or phantom (uda.py).")
    config_flags.DEFINE_config_file(
      "config", None, "FILE: Configuration of the run. --config.FIELD=VALUE changes a field."
    )
  with group("input"):
    flags.DEFINE_string("source", None, "DIR: Folder of the NIfTI volumes; sets config.data.root.")


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
    InputError: there is no such config or dataset.
  """
  from vamcei_jax.datasets import BUILDERS

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
