"""The published networks and losses of VAMCEI on MyoPS 2020, bSSFP -> LGE; see configs/vamcei_paper.py.

python -m vamcei_jax.main --config=configs/paper/myops.py --config.data.root=DIR

The published code reads MS-CMRSeg alone. Here its recipe follows our stage "locate", and its steps are those of
MS-CMRSeg. We have not run it: we know neither its time nor its scores.
"""

from ml_collections import ConfigDict

from configs import myops, vamcei_paper


def get_config() -> ConfigDict:
  return published_on(myops.get_config())


def published_on(lean: ConfigDict) -> ConfigDict:
  """The published recipe on the data of another configuration.

  Args:
    lean: configuration of the data, with a stage "locate". The published networks see a field of the same size in mm
      in 192×192 pixels.
  """
  config = vamcei_paper.get_config()
  config.data = lean.data
  config.data.spacing = lean.data.spacing * lean.data.size[0] / 192
  config.data.size = (192, 192)
  config.data.crop = (160, 160)

  config.stages = ("locate", *config.stages)
  config.stage.locate = ConfigDict({name: lean[name] for name in ("augment", "model", "loss", "optimizer", "train")})
  config.stage.locate.update(lean.stage.locate)
  return config
