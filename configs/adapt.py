"""Adapts trained weights to the unlabelled LGE volumes of your hospital; see docs/own-data.md.

python -m vamcei_jax.main --config=configs/adapt.py --config.data.root=DIR --config.data.target=LGE --workdir=runs/adapt

The volumes lie in DIR/LGE/images. No mask is needed, and no volume with masks. 15 minutes for the 100 volumes of
EMIDEC on 2 cores; docs/own-data.md has the scores.
"""

import math

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.init = "weights/lge"  # Teacher, and start of the student.
  config.stages = ("adapt",)

  config.data = data = ConfigDict()
  data.name = "folder"
  data.root = config_dict.placeholder(str)
  data.source = config_dict.placeholder(str)  # None: nothing but the teacher's predictions is learned from.
  data.target = "lge"  # A folder in DIR.
  data.same_patients = config_dict.placeholder(str)  # A folder in DIR with masks of the same patients, such as cine.
  # The first values are those of the masks that the weights predict; a tuple folds several values into one class.
  data.label_values = (0, (200, 1), (500, 2), (600, 3))
  data.plane = "short_axis"
  data.orientation = "header"
  data.spacing = 1.0
  data.size = (128, 128)  # Around the heart that the teacher finds.
  data.crop = (112, 112)
  data.prepared_dir = "~/.cache/vamcei_jax/data"

  config.augment = augment = ConfigDict()
  # Every orientation: the student need not know how the slices of a file lie.
  augment.rotation = math.pi
  augment.flip = (0, 1)
  augment.scale = 0.3
  augment.shift = 8.0
  augment.gamma = 0.3
  augment.contrast = 0.2
  augment.bias = 0.2
  augment.blur = 0.5
  augment.noise = 0.05

  config.model = ConfigDict({"widths": (16, 32, 64, 128, 256)})  # As of the weights.
  config.loss = ConfigDict({"weights": {"distillation": 1.0}})
  config.distillation = ConfigDict({"temperature": 1.0})
  config.optimizer = ConfigDict({"rates": {"segmenter": 5e-4}})

  config.train = train = ConfigDict()
  train.steps = 1000
  train.batch_size = 8
  train.log_every = 20
  train.eval_every = 200
  train.checkpoint_every = 100
  train.ema_decay = 0.99
  return config
