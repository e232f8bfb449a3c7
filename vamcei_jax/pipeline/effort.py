"""How long the stages of a run take, roughly: for the printed estimates before there is a measurement."""

from collections.abc import Collection, Mapping

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.methods import cyclegan, distillation, supervised, vamcei
from vamcei_jax.pipeline.stages import STAGES
from vamcei_jax.training.progress import Workload, seconds_left

# Relative CPU time of a step, for equally many pixels and channels, and of the compilation of a network with four
# levels, as measured with configs/multistage.py.
_STEP = {supervised: 1.0, vamcei: 2.7, cyclegan: 4.9, distillation: 2.3}
_COMPILATION = {supervised: 1.0, vamcei: 1.6, cyclegan: 1.1, distillation: 0.7}


def workloads(
  configs: Mapping[str, StageConfig], finished: Collection[str], compiled: Mapping[str, float]
) -> list[Workload]:
  """The stages of a run, for the estimate of the time that is left.

  Args:
    configs: of all stages.
    finished: stages whose last step is done.
    compiled: stage -> seconds that its compilation took in this session.
  """
  stages = []
  for stage, config in configs.items():
    ahead = stage not in finished
    compilation = (compilation_seconds(configs, stage, compiled) or 0.0) if ahead and stage not in compiled else 0.0
    stages.append(Workload(stage, config.train.steps if ahead else 0, step_cost(config), compilation))
  return stages


def step_cost(config: StageConfig) -> float:
  """The cost of a step relative to those of other stages: by method, pixels of a batch, and channels.

  The channels count with an exponent between that of small networks (1) and that of large ones (2).
  """
  method = STAGES[config.name].method
  channels = config.translation.width if method is cyclegan else config.model.widths[0]
  height, width = config.data.crop
  return _STEP.get(method, _STEP[vamcei]) * config.train.batch_size * height * width * channels**1.5


def compilation_seconds(configs: Mapping[str, StageConfig], stage: str, measured: Mapping[str, float]) -> float | None:
  """Expected seconds of the compilation of a stage, from those of other stages; None while there are none.

  It is too short for a stage that is compiled after stages whose programs were in the folder of compiled programs.

  Args:
    configs: of all stages.
    stage: to compile.
    measured: stage -> seconds that its compilation took in this session.
  """
  once = lambda name, config: Workload(name, int(name == stage), compilation_cost(config))
  return seconds_left([once(name, config) for name, config in configs.items()], measured)


def compilation_cost(config: StageConfig) -> float:
  """The time of a stage's compilation relative to other stages: by method and, of segmenters, by levels."""
  method = STAGES[config.name].method
  levels = 4 if method is cyclegan else len(config.model.widths)
  return _COMPILATION.get(method, _COMPILATION[vamcei]) * levels / 4
