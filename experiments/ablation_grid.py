"""Compares the loss terms of VAMCEI: rows of loss weights times seeds, trained as one program.

python -m experiments.ablation_grid --config=configs/ablation.py --workdir=runs/ablation
python -m experiments.ablation_grid --config=configs/ablation.py --config.train.steps=100 --workdir=runs/short

Runs of one seed start from the same parameters and have the same batches. Each run equals the run of vamcei_jax.main
with the weights of its row. As many runs as fit into memory are trained together, the others after them. The same
command resumes. It writes ablation.csv, .json, .md and .png: Dice of the target's test patients, mean ± standard
deviation over seeds.
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
    flags.DEFINE_string("workdir", "runs/ablation", "DIR: Folder of the grid.")


def main() -> None:
  """Runs the command."""
  from experiments.grid_training import run_grid

  run_grid(FLAGS.config, Path(FLAGS.workdir))


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
