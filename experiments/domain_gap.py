"""How wide is the gap between two domains? Source labels against target labels, scored on the target.

python -m experiments.domain_gap --config=configs/uda.py --workdir=runs/domain_gap

Trains the same network twice without adaptation: on the source's labels (what UDA starts from) and on the target's
(what it can hope for). Needs target labels for training, so it is for datasets that have them, as the phantom has.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vamcei_jax import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; --config.FIELD=VALUE changes a field.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/domain_gap", "Folder of the two runs.")
flags.mark_flag_as_required("config")


def main() -> None:
  from vamcei_jax import pipeline
  from vamcei_jax.evaluation.statistics import format_table

  config, summaries = _CONFIG.value, {}
  config.stages = ("no_adaptation",)
  for labels in (config.data.source, config.data.target):
    config.data.source = labels
    name = f"{labels}_labels"
    results = pipeline.run(config, Path(_WORKDIR.value) / name)
    summaries[name] = results["methods"]["no_adaptation"]["summary"]
  print(f"\n{format_table(summaries)}")


if __name__ == "__main__":
  command_line.run(main)
