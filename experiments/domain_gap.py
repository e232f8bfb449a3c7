"""Measures the gap between two domains: a network trained on source labels against one trained on target labels.

python -m experiments.domain_gap --config=configs/uda.py --workdir=runs/domain_gap

Trains the same network twice without adaptation, and scores both on the target. The network that is trained on the
source's labels is the start of domain adaptation, the one trained on the target's labels its goal. Training on the
target needs a target with labels in its training split, as the phantom has.
"""

from absl import flags
from ml_collections import config_flags

from vamcei_jax import cli
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS
STAGE = "no_adaptation"


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    config_flags.DEFINE_config_file(
      "config", None, "FILE: Configuration of both runs. --config.FIELD=VALUE changes a field."
    )
  flags.DEFINE_string("workdir", "runs/domain_gap", "DIR: Folder of the two runs.")


def main() -> None:
  """Runs the command."""
  from vamcei_jax.evaluation.statistics import format_table
  from vamcei_jax.pipeline.run import run

  config, summaries = FLAGS.config, {}
  config.stages = (STAGE,)
  for domain in (config.data.source, config.data.target):
    config.data.source = domain
    name = f"{domain}_labels"
    results = run(config, cli.required_path("workdir") / name)
    summaries[name] = results["methods"][STAGE]["summary"]
  print(f"\n{format_table(summaries)}")


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
