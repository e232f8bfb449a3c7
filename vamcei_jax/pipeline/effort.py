"""How long the stages of a run take, roughly: for the printed estimates before there is a measurement."""

from collections.abc import Collection, Mapping

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.methods import cyclegan, distillation, supervised, vamcei
from vamcei_jax.pipeline.stages import STAGES
from vamcei_jax.training.progress import Workload

# Measured with configs/multistage.py, its networks all scaled to 16 channels: a step, relative to that of `supervised`
# for equally many pixels, and the seconds of CPU time of its compilation.
_STEP = {supervised: 1.0, vamcei: 2.7, cyclegan: 4.9, distillation: 2.3}
_COMPILATION = {supervised: 10.0, vamcei: 30.0, cyclegan: 20.0, distillation: 15.0}


def workloads(configs: Mapping[str, StageConfig], finished: Collection[str]) -> list[Workload]:
  """The stages of a run, for the estimate of the time that is left."""
  left = lambda stage, config: 0 if stage in finished else config.train.steps
  return [Workload(stage, left(stage, config), step_cost(config)) for stage, config in configs.items()]


def step_cost(config: StageConfig) -> float:
  """The cost of a step relative to those of other stages: by method, pixels of a batch, and channels.

  The exponent of the channels lies between those of small networks and large ones.
  """
  method = STAGES[config.name].method
  channels = config.translation.width if method is cyclegan else config.model.widths[0]
  height, width = config.data.crop
  return _STEP.get(method, _STEP[vamcei]) * config.train.batch_size * height * width * channels**1.5


def compilation_seconds(config: StageConfig, platform: str) -> float | None:
  """Expected seconds of a compilation that is not in the folder of compiled programs; None if none were measured.

  That of a segmenter is in proportion to its levels.
  """
  method = STAGES[config.name].method
  if platform != "cpu" or method not in _COMPILATION:
    return None
  return _COMPILATION[method] * (1.0 if method is cyclegan else len(config.model.widths) / 4)
