"""The smallest adaptation of trained weights, without a source; the command line gives init, root and folders."""

from ml_collections import ConfigDict

from configs import adapt
from tests.configs import tiny


def get_config() -> ConfigDict:
  config = adapt.get_config()
  config.data.label_values = (0, 1, 2, 3)
  config.data.spacing = 4.5
  config.data.size = (32, 32)
  config.data.crop = (24, 24)
  config.data.options = ConfigDict({"validation": 1})
  config.model.widths = tiny.get_config().model.widths
  config.train = tiny.get_config().train
  return config
