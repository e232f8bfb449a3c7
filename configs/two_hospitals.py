"""The small recipe by which experiments/two_hospitals.py compares methods: bSSFP -> LGE of MS-CMRSeg or of EMIDEC.

python -m experiments.two_hospitals --data=DIR --workdir=runs/two_hospitals

docs/results-hospitals.md has the time and the Dice of each method.
"""

from ml_collections import ConfigDict

from configs import folder, mscmrseg_multistage


def get_config() -> ConfigDict:
  config = folder.get_config()
  config.data.source = "cine"
  # The values of EMIDEC, and those of MS-CMRSeg.
  config.data.label_values = (0, (1, 200), (2, 500), (3, 600))
  config.data.empty_slices = "apical"
  config.data.options = ConfigDict({"validation": 15})

  config.augment.scale = 0.3

  # As in configs/mscmrseg_ablation.py, because of three seeds.
  config.train.batch_size = 4
  config.train.steps = 400
  config.train.eval_every = 400

  config.stage = mscmrseg_multistage.get_config().stage
  config.stage.translate.train.update(steps=400, eval_every=400)
  config.stage.distill.augment = ConfigDict({"gin": 0.0, "ipa": 0.0})
  return config
