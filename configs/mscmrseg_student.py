"""A student of several teachers of MS-CMRSeg, and of bSSFP masks of the same patients: weights/mscmrseg_student.

python -m vamcei_jax.main --config=configs/mscmrseg_student.py --config.data.root=DIR \
  --config.init=weights/mscmrseg_student --config.teachers="('weights/mscmrseg_student','runs/seed2')" \
  --workdir=runs/student

It learns the mean of the teachers' predictions for the LGE images, corrected by the bSSFP masks. Teachers are weights
or runs, such as those of configs/mscmrseg_best.py with other seeds. About 22 minutes on 2 cores, after 1 to 2 minutes
for each teacher and half a minute for the masks. weights/mscmrseg_student/TRAINING.md has all commands and scores.
"""

from ml_collections import ConfigDict

from configs import adapt


def get_config() -> ConfigDict:
  config = adapt.get_config()
  config.init = "weights/mscmrseg_student"
  config.data.name = "mscmrseg"
  config.data.same_patients = "bssfp"
  config.data.label_values = (0, 200, 500, 600)

  # Weak, because the student is for the images of its training (transductive). After 2,000 steps with strong
  # augmentation, it was 0.005 Dice below its teachers. Orientations are those of the teachers.
  config.augment.rotation = 0.2
  config.augment.flip = ()
  config.augment.scale = 0.15
  config.augment.shift = 6.0
  config.augment.gamma = 0.15
  config.augment.contrast = 0.1
  config.augment.bias = 0.1
  config.augment.blur = 0.3
  config.augment.noise = 0.02

  config.distillation.smooth = 5.0
  config.optimizer.rates.segmenter = 1e-3
  config.train.steps = 5000
  config.train.eval_every = 500
  return config
