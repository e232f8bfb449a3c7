"""Trains and compares variants of VAMCEI: each variant (row) with each seed, as one program.

python -m experiments.ablation_grid --config=configs/ablation.py --workdir=runs/ablation
python -m experiments.ablation_grid --config=configs/ablation.py --config.train.steps=100 --workdir=runs/short

A row changes loss weights, the ramp of the unsupervised losses, or learning rates. Each run equals the run of
vamcei_jax.main with the seed and the fields of its row. The command trains as many runs together as fit into memory,
and the others after them. The same command resumes an interrupted grid. It writes report.html and ablation.csv, .json,
.md and .png: Dice of the target's test patients, mean ± standard deviation over seeds. See docs/ablation.md.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vamcei_jax import cli
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    config_flags.DEFINE_config_file(
      "config", None, "FILE: Configuration with a grid. --config.FIELD=VALUE changes a field."
    )
  with group("grid"):
    flags.DEFINE_string("workdir", None, "DIR: Folder of the grid. Default: runs/NAME for configs/NAME.py.")


def main() -> None:
  """Runs the command."""
  name = cli.config_path().stem
  # Imported late: an error in a flag should not wait for JAX.
  from experiments.grid_training import run_grid

  run_grid(FLAGS.config, cli.path_of("workdir") or Path("runs") / name)


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
