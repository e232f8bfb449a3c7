"""Ablation of VAMCEI's loss terms on the embedded phantom: six rows, two seeds, one program.

python -m experiments.ablation_grid --config=configs/ablation.py

13 minutes on 2 cores. Mean Dice on the target's test patients, over two seeds: baseline 0.478, + reconstruction and
prior KL 0.502, + global KL 0.526, + prototypes 0.489, + discriminator 0.738, all 0.751.
"""

from ml_collections import ConfigDict

from configs import uda


def get_config() -> ConfigDict:
  config = uda.get_config()
  config.stages = ("vamcei",)
  bound = ("reconstruction", "prior_kl")
  config.grid = ConfigDict(
    {
      # Name of a row, and its unsupervised loss terms. The other unsupervised terms have weight 0.
      "rows": (
        ("baseline", ()),
        ("+ reconstruction and prior KL", bound),
        ("+ global KL", (*bound, "global_alignment")),
        ("+ prototypes", (*bound, "prototypes")),
        ("+ discriminator", (*bound, "generator")),
        ("all", (*bound, "global_alignment", "prototypes", "generator")),
      ),
      "seeds": (0, 1),
    }
  )
  return config
