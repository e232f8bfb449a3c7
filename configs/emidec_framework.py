"""The multi-stage framework with EMIDEC as its target, for comparison with configs/emidec.py.

python -m vamcei_jax.main --config=configs/emidec_framework.py --config.data.root=DIR --workdir=runs/emidec_framework

DIR has the folders cine and emidec: those of experiments/lge_data.py, and EMIDEC. The recipe is that of
configs/mscmrseg_best.py with half of the steps. About an hour on 2 cores. Dice on EMIDEC's 15 validation patients
(Myo / LV): no_adaptation 0.637 / 0.831, target_vamcei 0.531 / 0.745, source_vamcei 0.459 / 0.592, student 0.516 /
0.781.
"""

import math

from ml_collections import ConfigDict

from configs import mscmrseg_best


def get_config() -> ConfigDict:
  config = mscmrseg_best.get_config()
  config.data.name = "folder"
  config.data.source = "cine"
  config.data.target = "emidec"
  config.data.label_values = (0, (1, 200), (2, 500), (3, 600))
  config.data.options = ConfigDict({"validation": 15})
  config.data.spacing = 1.0
  config.data.zoom = 1.0
  config.data.size = (144, 144)

  # EMIDEC's headers have no directions.
  config.augment.rotation = math.pi
  config.augment.flip = (0, 1)

  config.stage.no_adaptation.train.steps = 2000
  config.stage.translate.train.steps = 800
  config.stage.target_vamcei.train.steps = 1200
  config.stage.source_vamcei.train.steps = 300
  config.stage.distill.train.steps = 1000
  return config
