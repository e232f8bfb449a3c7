"""The smallest ablation grid: three rows, two seeds."""

from ml_collections import ConfigDict

from configs.ablation import term_rows
from tests.configs import tiny

LATE = {"loss.ramp": (2, 4), "optimizer.rates.segmenter": 1e-3, "loss.weights.generator": 0.2}


def get_config() -> ConfigDict:
  config = tiny.get_config()
  config.stages = ("vamcei",)
  (baseline,) = term_rows(config, {"baseline": ()})
  config.grid = ConfigDict({"rows": (baseline, ("late", LATE), ("all", {})), "seeds": (0, 1)})
  return config
