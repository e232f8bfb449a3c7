"""What a configuration trains, without training it: networks, parameters, loss terms, schedule."""

from collections.abc import Iterator

import jax
import numpy as np

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.inference.load import abstract_state
from vamcei_jax.methods.state import Params
from vamcei_jax.pipeline.resolve import RunConfig


def describe(config: RunConfig) -> str:
  """Of each stage: its networks with their numbers of parameters, loss terms with weights, rates and steps."""
  return "\n\n".join("\n".join([name, *describe_stage(stage)]) for name, stage in config.stages.items())


def describe_stage(config: StageConfig) -> Iterator[str]:
  """The lines of a stage."""
  for network, params in abstract_state(config).params.items():
    yield f"  {network}: {count(params):,} parameters{parts(network, params)}"
  weights = ", ".join(f"{term} {format_weight(weight)}" for term, weight in config.loss.weights.items())
  yield f"  loss: {weights}"
  settings, steps = config.optimizer, config.train.steps
  rates = ", ".join(f"{network} {rate:g}" for network, rate in settings.rates.items())
  constant = [network for network in settings.rates if network in settings.constant]
  yield f"  rates: {rates}; {settings.schedule}" + (f", but constant for {', '.join(constant)}" if constant else "")
  epochs = ""
  if settings.schedule == "exponential":
    epochs = f", {steps / settings.epoch_steps:g} epochs of {settings.epoch_steps}"
  yield f"  steps: {steps:,}{epochs}; {config.train.batch_size} of each domain in a batch"


def parts(network: str, params: Params) -> str:
  """The decoders of eq. 3 one by one; nothing of other networks."""
  if network != "decoders":
    return ""
  return f" ({', '.join(f'{name} {count(decoder):,}' for name, decoder in params.items())})"


def count(params: Params) -> int:
  """Number of parameters."""
  return int(sum(np.prod(array.shape) for array in jax.tree.leaves(params)))


def format_weight(weight: float | tuple[float, ...]) -> str:
  """A weight, or one for each scale."""
  return "/".join(f"{value:g}" for value in weight) if isinstance(weight, tuple) else f"{weight:g}"
