"""VAMCEI on MM-WHS 2017, CT -> MR: the field is put on the heart, the atria and the great vessels are background.

python -m vamcei_jax.main --config=configs/mmwhs.py --config.data.root=DIR

Not yet run: no time and no score are known.
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
  config.data.plane = "coronal"  # CT and MR were taken along different axes
  # Both atria, aorta and pulmonary artery; 421 stands for 420 in one of the released masks.
  config.data.label_values = ((0, 420, 421, 550, 820, 850), 205, 500, 600)
  config.data.options = ConfigDict({"validation": 4})
  config.data.spacing = 2.0
  return config
