"""Step 4 of weights/lge: a student with a larger field, which shows what lies around hearts.

python -m vamcei_jax.main --config=configs/lge_wide.py --config.data.root=runs/lge_data --config.init=runs/lge_mean \
  --config.teachers="('runs/lge_mean','weights/mscmrseg_student')" --workdir=runs/lge_4

Both flags are needed: weights/lge, the default of config.init, is a mean that contains this student. About 20 minutes
on 2 cores. weights/lge/TRAINING.md has all commands and scores.
"""

from ml_collections import ConfigDict

from configs import lge


def get_config() -> ConfigDict:
  config = lge.get_config()
  config.init = "weights/lge"
  # Parts of 112 mm are cut out of 192 mm: in many of them, the heart lies at the border, beside other organs.
  config.data.size = (192, 192)
  config.optimizer.rates.segmenter = 5e-4
  config.train.steps = 1500
  config.train.eval_every = 750
  return config
