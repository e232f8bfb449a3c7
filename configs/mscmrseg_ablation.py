"""Ablation of VAMCEI's loss terms on MS-CMRSeg 2019, bSSFP -> LGE: six rows, three seeds.

python -m experiments.ablation_grid --config=configs/mscmrseg_ablation.py --config.data.root=DIR --workdir=runs/terms

About 40 minutes on 2 cores. Mean Dice on LGE 1-5, three seeds: baseline 0.492, + reconstruction and prior KL 0.500,
+ global KL 0.518, + prototypes 0.498, + discriminator 0.553, all 0.567. docs/results-ablation.md has the same with
strong augmentation.
"""

from ml_collections import ConfigDict

from configs import mscmrseg
from configs.ablation import TERMS, term_rows


def get_config() -> ConfigDict:
  config = mscmrseg.get_config()
  config.stages = ("vamcei",)
  # Smaller than configs/mscmrseg.py, because of three seeds.
  config.train.batch_size = 4
  config.train.steps = 400
  config.train.eval_every = 200
  config.grid = ConfigDict({"rows": term_rows(config, TERMS), "seeds": (0, 1, 2)})
  return config
