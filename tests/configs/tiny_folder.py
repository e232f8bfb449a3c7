"""The smallest run on volumes that write_nnunet writes: the configuration gives data.options and label values."""

from ml_collections import ConfigDict

from configs import folder
from tests.configs import tiny


def get_config() -> ConfigDict:
  config = tiny.get_config()
  folder_config = folder.get_config()
  config.data.update({name: folder_config.data[name] for name in ("name", "source", "target", "label_values")})
  config.data.spacing = 4.5
  config.data.options = ConfigDict({"validation": 1})
  config.stage.locate = ConfigDict({"data": {"spacing": 9.0, "size": (32, 32), "crop": (32, 32)}})
  return config
