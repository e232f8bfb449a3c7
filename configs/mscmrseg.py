"""VAMCEI on MS-CMRSeg 2019, bSSFP -> LGE, sized for a laptop CPU.

python -m vamcei_jax.main --config=configs/mscmrseg.py --config.data.root=DIR
"""

from ml_collections import ConfigDict

from configs import uda


def get_config() -> ConfigDict:
  config = uda.get_config()

  config.data.name = "mscmrseg"
  config.data.options = ConfigDict()
  # The bSSFP headers' spacing does not describe their grid, so the pixel grid is used as it is (see datasets/mscmrseg).
  config.data.spacing = None
  config.data.zoom = 0.75
  config.data.size = (144, 144)
  config.data.crop = (128, 128)

  config.model.widths = (16, 32, 64, 128, 256)
  config.model.discriminator_width = 32

  config.train.steps = 900
  config.train.batch_size = 6
  config.train.eval_every = 150
  config.train.checkpoint_every = 150
  config.train.ema_decay = 0.99
  config.loss.ramp = (100, 200)
  return config
