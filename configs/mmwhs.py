"""VAMCEI on MM-WHS 2017, CT -> MR: atria and great vessels are background, and the field is centred on the heart.

python -m vamcei_jax.main --config=configs/mmwhs.py --config.data.root=DIR

We have not run it yet: we know neither its time nor its scores.
"""

from ml_collections import ConfigDict

from configs import folder


def get_config() -> ConfigDict:
  config = folder.get_config()
  config.stages = ("locate", *config.stages)
  config.stage.locate.data.size = (96, 96)  # 384 mm
  config.stage.locate.data.crop = (96, 96)
  config.data.name = "mmwhs"
  config.data.source = "ct"
  config.data.target = "mr"
  config.data.plane = "coronal"  # CT and MR have slices along different axes.
  # Background: both atria, aorta and pulmonary artery. One of the released masks has 421 in place of 420.
  config.data.label_values = ((0, 420, 421, 550, 820, 850), 205, 500, 600)
  config.data.options = ConfigDict({"validation": 4})
  config.data.spacing = 2.0
  return config
