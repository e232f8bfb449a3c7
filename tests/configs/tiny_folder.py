"""The smallest run on own volumes, as write_nnunet writes them: data.options and label values by config alone."""

from ml_collections import ConfigDict

from configs import folder
from tests.configs import tiny


def get_config() -> ConfigDict:
  config = tiny.get_config()
  own = folder.get_config()
  config.data.update({name: own.data[name] for name in ("name", "source", "target", "label_values")})
  config.data.spacing = 4.5
  config.data.options = ConfigDict({"validation": 1})
  config.stage.locate = ConfigDict({"data": {"spacing": 9.0, "size": (32, 32), "crop": (32, 32)}})
  return config
