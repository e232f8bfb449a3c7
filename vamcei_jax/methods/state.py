"""The state of a training and its update, the same for every method."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from vamcei_jax.config.schema import StageConfig

Params = Any
Metrics = dict[str, Array]


class State(flax.struct.PyTreeNode):
  """All that a step reads and writes. What an ablation varies (weights, rates) is an array here, not a constant.

  Attributes:
    step: () int32, steps done.
    key: PRNG key of the stage; a step's keys are folded from it.
    params: network name -> parameters.
    opt_state: network name -> optimizer state.
    ema_params: network name -> moving average of its parameters, of the networks that evaluation and prediction use.
    learning_rates: network name -> () peak learning rate.
    weights: loss term -> () or (scales,) weight.
    ramp: (2,) step at which the unsupervised losses start, and number of steps until they have their full weight.
    memory: further arrays of a method: the CycleGAN's history of images.
  """

  step: Array
  key: Array
  params: dict[str, Params]
  opt_state: dict[str, optax.OptState]
  ema_params: dict[str, Params]
  learning_rates: dict[str, Array]
  weights: dict[str, Array]
  ramp: Array
  memory: Any = ()


def create_state(
  params: dict[str, Params], key: Array, config: StageConfig, *, terms: Sequence[str], averaged: str = "segmenter"
) -> State:
  """The state before the first step.

  Args:
    params: network name -> parameters.
    key: PRNG key of the steps.
    config: of the stage.
    terms: names of the loss terms that the method weighs.
    averaged: the network that evaluation and prediction use.
  """
  optimizer = make_optimizer(config)
  return State(
    step=jnp.zeros((), jnp.int32),
    key=key,
    params=params,
    opt_state={name: optimizer.init(p) for name, p in params.items()},
    # A copy: the state may be donated, and a buffer can be donated once.
    ema_params={averaged: jax.tree.map(jnp.copy, params[averaged])},
    learning_rates={name: jnp.float32(config.optimizer.rates[name]) for name in params},
    weights={name: jnp.asarray(config.loss.weights[name], jnp.float32) for name in terms},
    ramp=jnp.asarray(config.loss.ramp, jnp.float32),
  )


def make_optimizer(config: StageConfig) -> optax.GradientTransformation:
  """Adam with global-norm clipping and a decaying schedule, at a learning rate of one: the peak rate is state."""
  return optax.chain(
    optax.clip_by_global_norm(config.optimizer.clip),
    optax.scale_by_adam(b1=config.optimizer.b1),
    optax.scale_by_learning_rate(make_schedule(config)),
  )


def make_schedule(config: StageConfig) -> optax.Schedule:
  """Learning rate relative to its peak, by step."""
  steps = config.train.steps
  schedules = {
    # nnU-Net's: (1 - step/steps)^0.9.
    "polynomial": lambda: optax.polynomial_schedule(1.0, 0.0, 0.9, steps),
    # VAMCEI's: 0.9 an epoch.
    "exponential": lambda: optax.exponential_decay(1.0, config.optimizer.epoch_steps, 0.9, staircase=True),
    # CycleGAN's: constant for half of the steps, then a line to zero.
    "half_linear": lambda: optax.linear_schedule(1.0, 0.0, steps - steps // 2, steps // 2),
  }
  return schedules[config.optimizer.schedule]()


def make_update(config: StageConfig, axis_name: str | None = None) -> Callable[..., tuple[State, Metrics]]:
  """Returns update(state, grads by network, metrics) -> (state after one optimizer step of these networks, metrics).

  The metrics get "gradient_NETWORK", the global norm of its gradient before it is clipped, for each of the networks.
  Where the batch is split over `axis_name`, gradients and metrics are averaged over it first: every device then takes
  the step of the global batch (see vamcei_jax/losses).
  """
  optimizer = make_optimizer(config)

  def update(state: State, grads: dict[str, Params], metrics: Metrics) -> tuple[State, Metrics]:
    if axis_name is not None:
      grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    metrics = metrics | {f"gradient_{name}": optax.tree.norm(grad) for name, grad in grads.items()}
    params, opt_state = dict(state.params), dict(state.opt_state)
    for name, grad in grads.items():
      updates, opt_state[name] = optimizer.update(grad, state.opt_state[name], state.params[name])
      updates = jax.tree.map(lambda u, rate=state.learning_rates[name]: rate * u, updates)
      params[name] = optax.apply_updates(state.params[name], updates)
    # Short memory at the start, so that the average does not remember the initialisation.
    decay = jnp.minimum(config.train.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    average = lambda name, old: optax.incremental_update(params[name], old, 1.0 - decay)
    ema_params = {name: average(name, old) for name, old in state.ema_params.items()}
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema_params), metrics

  return update


def apply_network(network: nn.Module, params: Params, *inputs: Any) -> Any:
  """The output of a Flax module for these parameters."""
  return network.apply({"params": params}, *inputs)


def ramp_factor(state: State) -> Array:
  """() ramp-up factor of the unsupervised losses at the state's step, from 0 to 1."""
  return jnp.clip((state.step - state.ramp[0]) / jnp.maximum(state.ramp[1], 1.0), 0.0, 1.0)


def skip_nonfinite(old: State, new: State, metrics: Metrics) -> tuple[State, Metrics]:
  """The state after a step, or the state before it with the step counted if a metric is not finite.

  Parameters, moments and averages follow from the gradients, whose norms are among the metrics, by steps of Adam, which
  are bounded; the memory follows from images that the losses depend on. So finite metrics mean a finite state.

  Args:
    old, new: before and after the step.
    metrics: name -> () of the step.

  Returns:
    The state, and the metrics with "skipped": 1 for a skipped step, else 0.
  """
  finite = jnp.isfinite(jnp.stack(list(metrics.values()))).all()
  learned = lambda state: (state.params, state.opt_state, state.ema_params, state.memory)
  chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), learned(new), learned(old))
  params, opt_state, ema_params, memory = chosen
  state = new.replace(params=params, opt_state=opt_state, ema_params=ema_params, memory=memory)
  return state, metrics | {"skipped": 1.0 - finite}
