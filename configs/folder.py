"""VAMCEI on your own volumes, bSSFP -> LGE, sized for a laptop CPU; see docs/own-training.md.

python -m vamcei_jax.prepare --dataset=folder --source=DIR
python -m vamcei_jax.main --config=configs/folder.py --config.data.root=DIR

DIR has a folder for each domain, in the layout of nnU-Net (imagesTr, labelsTr, dataset.json) or a flat one (images,
labels). If the target has masks, the program uses them for evaluation only. Copy this file, and change the fields that
differ for your data. 11 minutes for the phantoms of docs/own-training.md on 2 slow cores.
"""

from ml_collections import ConfigDict

from configs import mscmrseg


def get_config() -> ConfigDict:
  config = mscmrseg.get_config()
  config.data.name = "folder"
  config.data.source = "bssfp"  # Folders in DIR.
  config.data.target = "lge"
  config.data.label_values = (0, 1, 2, 3)  # Background, Myo, LV, RV; a tuple folds several values into one class.
  config.data.spacing = 1.5  # Pixels of the network in mm; pixel sizes of the files are those in their headers.
  # Random contrasts; docs/results-ablation.md and docs/results-hospitals.md have what they gain.
  config.augment.gamma = 0.3
  config.augment.contrast = 0.2
  config.augment.noise = 0.05
  config.augment.gin = 1.0
  config.augment.ipa = 1.0

  config.data.options = ConfigDict(
    {
      # Number of validation patients, the first labelled ones of the target. The others are test patients.
      "validation": 5,
      "channel": 0,  # Channel of nnU-Net's images: NAME_0000.
      "images": "images",  # Folders of the flat layout.
      "labels": "labels",
    }
  )

  # The field of the network is 96×96 pixels of 1.5 mm. If images are much larger and the heart is not in their middle,
  # put the stage "locate" first. It is a coarse VAMCEI that finds the heart, so its field must cover the whole image.
  # The field of the other stages is then centred on the heart.
  config.stage.locate = locate = ConfigDict()
  locate.data = ConfigDict({"spacing": 4.0, "size": (64, 64), "crop": (64, 64)})
  locate.model = ConfigDict({"widths": (8, 16, 32, 64)})
  locate.train = ConfigDict({"steps": 300})
  return config
