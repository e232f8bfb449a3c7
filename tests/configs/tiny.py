"""The smallest run with all parts of a real one: seconds on one core."""

from ml_collections import ConfigDict

from configs import uda


def get_config() -> ConfigDict:
  config = uda.get_config()
  config.data.size = (32, 32)
  config.data.crop = (24, 24)
  config.data.zoom = 1 / 3
  config.data.options = ConfigDict({"seed": 1, "train": 2, "validation": 1, "test": 2})
  config.model.widths = (4, 8)  # each scale more takes seconds to compile
  config.model.latent_scales = 1
  config.model.discriminator_width = 4
  config.loss.weights.global_alignment = (1e-6,)
  config.loss.ramp = (0, 4)
  config.train.steps = 8
  config.train.batch_size = 3  # odd: on one device, however many the tests run on
  config.train.log_every = 2
  config.train.eval_every = 4
  config.train.checkpoint_every = 2
  return config
