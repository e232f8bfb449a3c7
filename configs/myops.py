"""VAMCEI on MyoPS 2020, bSSFP -> LGE: oedema and scar are Myo, and the field is centred on the heart.

python -m vamcei_jax.main --config=configs/myops.py --config.data.root=DIR

We have not run it yet: we know neither its time nor its scores.
"""

from ml_collections import ConfigDict

from configs import folder


def get_config() -> ConfigDict:
  config = folder.get_config()
  config.stages = ("locate", *config.stages)
  config.stage.locate.data.size = (96, 96)  # 384 mm
  config.stage.locate.data.crop = (96, 96)
  config.data.name = "myops"
  config.data.label_values = (0, (200, 1220, 2221), 500, 600)
  # Labelled patients of the source, and validation patients of the target.
  config.data.options = ConfigDict({"sources": 13, "validation": 5})
  return config
