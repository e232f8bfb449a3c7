"""The multi-stage framework on MS-CMRSeg 2019, bSSFP -> LGE, sized for a laptop CPU.

python -m vamcei_jax.main --config=configs/mscmrseg_multistage.py --config.data.root=DIR

About 15 minutes on 2 cores. Mean Dice on LGE 1-5: no adaptation 0.557, target_vamcei 0.747, source_vamcei 0.657, their
mean 0.739, the student 0.761. The teachers' weights and the student's steps were chosen on these five patients.
"""

from ml_collections import ConfigDict

from configs import mscmrseg, multistage


def get_config() -> ConfigDict:
  config = mscmrseg.get_config()
  phantom = multistage.get_config()
  config.stages = phantom.stages
  config.stage = phantom.stage
  # At 5, little but texture changes: the translators come to stand close to the identity.
  config.stage.translate.loss.weights.identity = 1.0
  config.stage.translate.train.steps = 1600
  config.stage.distill.model.widths = (12, 24, 48, 96, 192)
  # T→S leaves scars that bSSFP does not have: source_vamcei is the weaker teacher.
  config.stage.distill.distillation.teachers = (0.75, 0.25)
  config.stage.distill.train.steps = 300  # longer, it learns the errors of its teachers by heart
  return config
