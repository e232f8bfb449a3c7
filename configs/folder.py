"""VAMCEI on own volumes, bSSFP -> LGE, sized for a laptop CPU: copy it and say what differs. See docs/own-data.md.

python -m vamcei_jax.prepare --dataset=folder --source=DIR
python -m vamcei_jax.main --config=configs/folder.py --config.data.root=DIR

DIR holds a folder for each domain, as nnU-Net lays it out (imagesTr, labelsTr, dataset.json) or flat (images, labels).
The target's masks, if there are any, are for evaluation alone.
"""

from ml_collections import ConfigDict

from configs import mscmrseg


def get_config() -> ConfigDict:
  config = mscmrseg.get_config()
  config.data.name = "folder"
  config.data.source = "bssfp"  # folders in DIR
  config.data.target = "lge"
  config.data.label_values = (0, 1, 2, 3)  # background, Myo, LV, RV; a tuple folds several values into one class
  config.data.spacing = 1.5  # mm, by the headers
  config.data.options = ConfigDict({
    "validation": 5,  # labelled target patients, the first, that training is watched on; the other ones are the test
    "channel": 0,  # of nnU-Net's images: NAME_0000
    "images": "images",  # names of the two folders of the flat layout
    "labels": "labels",
  })

  # For images much larger than the field (96 pixels of 1.5 mm) with the heart off their middle, add the stage "locate"
  # in front: a coarse VAMCEI finds the heart, and the field is put on it. Its own field must take in the whole image.
  config.stage.locate = locate = ConfigDict()
  locate.data = ConfigDict({"spacing": 4.0, "size": (64, 64), "crop": (64, 64)})
  locate.model = ConfigDict({"widths": (8, 16, 32, 64)})
  locate.train = ConfigDict({"steps": 300})
  return config
