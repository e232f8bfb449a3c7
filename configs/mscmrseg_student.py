"""The student of several teachers: weights/mscmrseg_student.

python -m vamcei_jax.main --config=configs/mscmrseg_student.py --config.data.root=DIR \
  --config.teachers="('runs/best0/no_adaptation','runs/best1/no_adaptation')" --workdir=runs/student

The teachers are runs of configs/mscmrseg_best.py, or stages of them, each trained in a sitting of its own. The student
learns the mean of their predictions for the LGE images.
"""

from ml_collections import ConfigDict

from configs import adapt


def get_config() -> ConfigDict:
  config = adapt.get_config()
  config.data.name = "mscmrseg"
  config.data.label_values = (0, 200, 500, 600)
  # Images of MS-CMRSeg lie alike, and so do those of its teachers.
  config.augment.rotation = 0.5
  config.augment.flip = ()
  config.augment.scale = 0.4
  config.distillation.smooth = 5.0
  config.train.steps = 2000
  return config
