"""The last step of weights/mscmrseg_student: a student of several teachers of MS-CMRSeg.

python -m vamcei_jax.main --config=configs/mscmrseg_student.py --config.data.root=DIR \
  --config.init=weights/mscmrseg_student --config.teachers="('weights/mscmrseg_student','runs/best2')" \
  --workdir=runs/student

It learns the mean of the teachers' predictions for the LGE images. Teachers are weights or runs, such as those of
configs/mscmrseg_best.py with different seeds. weights/mscmrseg_student/README.md has all commands, times and scores.
"""

from ml_collections import ConfigDict, config_dict

from configs import adapt


def get_config() -> ConfigDict:
  config = adapt.get_config()
  config.init = config_dict.placeholder(str)
  config.data.name = "mscmrseg"
  config.data.label_values = (0, 200, 500, 600)
  # Images of MS-CMRSeg lie alike, and so do those of its teachers.
  config.augment.rotation = 0.5
  config.augment.flip = ()
  config.augment.scale = 0.4
  config.distillation.smooth = 5.0
  config.train.steps = 2000
  return config
