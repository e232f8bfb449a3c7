"""The first step of weights/lge: short-axis LGE of any hospital, in any orientation, without an LGE mask.

python -m experiments.lge_data --mscmrseg=DIR --acdc=DIR --output=runs/lge_data
python -m vamcei_jax.main --config=configs/lge.py --config.data.root=runs/lge_data --workdir=runs/lge

It starts from weights/mscmrseg_student (for weights/lge: those of commit 011a62b), and learns the predictions of these
weights for the LGE of MS-CMRSeg, and the masks of cine MR of ACDC and MS-CMRSeg: about 50 minutes on 2 cores.
weights/lge/TRAINING.md has the further steps.
"""

from ml_collections import ConfigDict

from configs import adapt


def get_config() -> ConfigDict:
  config = adapt.get_config()
  config.init = "weights/mscmrseg_student"
  config.data.source = "cine"
  config.data.target = "lge"
  config.data.size = (144, 144)
  # Masks end below the valves in cine MR, and not in LGE. At the apex, the two agree.
  config.data.empty_slices = "apical"

  config.augment.scale = 0.4
  config.augment.gamma = 0.4
  config.augment.contrast = 0.3
  config.augment.bias = 0.3
  config.augment.blur = 0.7
  config.augment.gin = 0.7
  config.augment.ipa = 0.5
  config.augment.scar = 0.5
  config.augment.contraction = 0.6

  config.loss.weights.segmentation = 0.3
  config.optimizer.rates.segmenter = 1e-3
  config.train.steps = 4500
  config.train.eval_every = 500
  config.train.checkpoint_every = 250
  config.train.ema_decay = 0.995
  return config
