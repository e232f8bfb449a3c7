"""The smallest run of the multi-stage framework."""

from ml_collections import ConfigDict

from configs import multistage
from tests.configs import tiny


def get_config() -> ConfigDict:
  config = tiny.get_config()
  published = multistage.get_config()
  config.stages = published.stages
  config.stage = published.stage
  config.stage.translate.translation.update(width=2, blocks=1, discriminator_width=2, history=3)
  config.stage.translate.train.update(steps=6, batch_size=2, eval_every=3, checkpoint_every=2)
  config.augment.update(gin=0.5, ipa=0.5, scar=0.5)
  config.stage.distill.distillation.update(teachers=(3.0, 1.0, 1.0), views=True, smooth=6.0, apex=True)
  config.stage.distill.distillation.itself = 0.5
  config.stage.distill.model.widths = (4, 8, 8)
  config.stage.distill.train.steps = config.train.steps
  return config
