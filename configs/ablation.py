"""The ablation of VAMCEI's terms on the embedded phantom: six rows, two seeds, one program.

python -m experiments.ablation_grid --config=configs/ablation.py
"""

from ml_collections import ConfigDict

from configs import uda


def get_config() -> ConfigDict:
  config = uda.get_config()
  config.stages = ("vamcei",)
  bound = ("reconstruction", "prior_kl")
  config.grid = ConfigDict({
    # Name of a row -> the unsupervised terms that it keeps; those of others have weight 0.
    "rows": (
      ("baseline", ()),
      ("+ reconstruction and prior KL", bound),
      ("+ global KL", (*bound, "global_alignment")),
      ("+ prototypes", (*bound, "prototypes")),
      ("+ discriminator", (*bound, "generator")),
      ("all", (*bound, "global_alignment", "prototypes", "generator")),
    ),
    "seeds": (0, 1),
  })
  return config
