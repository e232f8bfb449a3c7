"""The second and third student of step 3 of weights/lge.

python -m vamcei_jax.main --config=configs/lge_student.py --config.data.root=runs/lge_data --config.init=runs/lge3a \
  --config.teachers="('runs/lge2','weights/mscmrseg_student')" --workdir=runs/lge_3b

About 10 minutes on 2 cores, after 1 minute for each teacher. weights/lge/TRAINING.md has all commands and scores.
"""

from ml_collections import ConfigDict

from configs import adapt


def get_config() -> ConfigDict:
  config = adapt.get_config()
  # Weaker than in configs/adapt.py, except for the orientations: the student must imitate its teachers closely.
  config.augment.scale = 0.2
  config.augment.shift = 6.0
  config.augment.gamma = 0.2
  config.augment.contrast = 0.15
  config.augment.bias = 0.1
  config.augment.blur = 0.3
  config.augment.noise = 0.03

  config.optimizer.rates.segmenter = 1e-3
  config.train.steps = 2500
  config.train.eval_every = 500
  return config
