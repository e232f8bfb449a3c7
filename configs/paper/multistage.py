"""The multi-stage framework on MS-CMRSeg 2019 with teachers of the published size, for one GPU.

python -m vamcei_jax.main --config=configs/paper/multistage.py --config.data.root=DIR

We have not run it yet: we know neither its time nor its scores.
"""

from ml_collections import ConfigDict

from configs import multistage, vamcei_paper


def get_config() -> ConfigDict:
  config = vamcei_paper.get_config()
  config.stages = multistage.get_config().stages
  config.stage = multistage.get_config().stage

  translate = config.stage.translate
  translate.translation.update(width=64, blocks=9, discriminator_width=64)
  translate.loss.weights.update(cycle=20.0, identity=10.0)  # 10 and 5 for images in [-1, 1]; ours are in [0, 1].
  translate.optimizer.rates.update(translators=2e-4, discriminators=2e-4)
  translate.optimizer.weight_decay = 0.0
  translate.train.update(steps=20_000, batch_size=1, steps_per_call=20, log_every=20)
  translate.train.update(eval_every=2000, checkpoint_every=2000)

  # Our choice: a plain U-Net of half the width.
  config.stage.distill.model.widths = (32, 64, 128, 256, 512)
  config.stage.distill.train.steps = config.train.steps
  return config
