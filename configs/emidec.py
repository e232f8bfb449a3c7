"""The recipe of networks 1, 2 and 4 of weights/emidec_student: adaptation to EMIDEC's 100 LGE volumes, without a mask.

python -m vamcei_jax.main --config=configs/emidec.py --config.data.root=DIR --workdir=runs/emidec

DIR is the folder that contains the EMIDEC folder, emidec/images. weights/emidec_student/TRAINING.md has all
commands and scores.
"""

from ml_collections import ConfigDict

from configs import adapt


def get_config() -> ConfigDict:
  config = adapt.get_config()
  config.data.target = "emidec"
  # All labelled patients are validation: they chose how orientations and hearts are found.
  config.data.options = ConfigDict({"validation": 15})
  return config
