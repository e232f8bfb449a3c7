"""VAMCEI at its published size (Cui et al., IEEE TMI 2024) on MS-CMRSeg 2019, for one GPU.

python -m vamcei_jax.main --config=configs/vamcei_paper.py --config.data.root=DIR

Not yet run: no time and no score are known.
"""

from ml_collections import ConfigDict

from configs import mscmrseg


def get_config() -> ConfigDict:
  config = mscmrseg.get_config()

  config.data.zoom = 1.0
  config.data.size = (192, 192)
  config.data.crop = (160, 160)

  config.model.widths = (64, 128, 256, 512, 1024)
  config.model.logvar_range = (-1.0, 1.0)
  config.model.discriminator_width = 64

  config.loss.weights.global_alignment = (7e-7, 7e-7, 7e-8)
  config.loss.weights.generator = 0.033
  config.loss.ramp = (0, 1)

  # 686 target slices in batches of 4: 172 steps an epoch, 30 epochs.
  config.optimizer.rates.segmenter = 1e-4
  config.optimizer.rates.decoders = 1e-4
  config.optimizer.rates.discriminator = 5e-4
  config.optimizer.schedule = "exponential"
  config.optimizer.epoch_steps = 172

  config.train.steps = 5160
  config.train.batch_size = 4
  config.train.steps_per_call = 43
  config.train.log_every = 43
  config.train.eval_every = 516
  config.train.checkpoint_every = 516
  config.train.ema_decay = 0.999
  return config
