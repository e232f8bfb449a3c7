"""The smallest run of the multi-stage framework."""

from ml_collections import ConfigDict

from configs import multistage
from tests.configs import tiny


def get_config() -> ConfigDict:
  config = tiny.get_config()
  full_size = multistage.get_config()
  config.stages = full_size.stages
  config.stage = full_size.stage
  config.stage.translate.translation.update(width=2, blocks=1, discriminator_width=2, history=3)
  config.stage.translate.train.update(steps=6, batch_size=3, eval_every=6, checkpoint_every=2)
  config.stage.distill.distillation.update(teachers=(3.0, 1.0, 1.0), smooth=6.0)
  config.stage.distill.model.widths = (4, 6)
  config.stage.distill.train.steps = config.train.steps
  return config
