"""The smallest ablation grid: three rows, two seeds."""

from ml_collections import ConfigDict

from configs import ablation
from tests.configs import tiny


def get_config() -> ConfigDict:
  config = tiny.get_config()
  config.stages = ("vamcei",)
  config.grid = ablation.get_config().grid
  config.grid.rows = tuple(config.grid.rows[i] for i in (0, 2, 5))
  return config
