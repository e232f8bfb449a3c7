"""The state of a training and its update, the same for every method."""

from collections.abc import Callable
from typing import Any, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict

Params = Any
Metrics = dict[str, Array]


@no_type_check  # at run time: jax.tree.map builds a State with leaves of any type
@flax.struct.dataclass
class State:
  """All that a step reads and writes. What an ablation varies (weights, rates) is an array here, not a constant.

  Attributes:
    step: () int32, steps done.
    key: PRNG key of the stage; a step's keys are folded from it.
    params: network name -> parameters.
    opt: network name -> optimizer state.
    ema: network name -> moving average of its parameters, for the networks that evaluation and prediction use.
    rates: network name -> () peak learning rate.
    weights: loss term -> () or (scales,) weight.
    ramp: (2,) the step at which unsupervised terms set in, and how many steps they take to reach their weights.
    memory: what a method remembers besides, as arrays: the CycleGAN's history of images.
  """

  step: Array
  key: Array
  params: dict[str, Params]
  opt: dict[str, optax.OptState]
  ema: dict[str, Params]
  rates: dict[str, Array]
  weights: dict[str, Array]
  ramp: Array
  memory: Any = ()


def create_state(params: dict[str, Params], key: Array, config: ConfigDict, averaged: str = "segmenter") -> State:
  """The state before the first step; `averaged` names the network that evaluation and prediction use."""
  optimizer = make_optimizer(config)
  return State(
    step=jnp.zeros((), jnp.int32),
    key=key,
    params=params,
    opt={name: optimizer.init(p) for name, p in params.items()},
    # A copy: the state may be donated, and a buffer can be donated once.
    ema={averaged: jax.tree.map(jnp.copy, params[averaged])},
    rates={name: jnp.float32(config.optimizer.rates[name]) for name in params},
    weights=loss_weights(config),
    ramp=jnp.asarray(config.loss.ramp, jnp.float32),
  )


def loss_weights(config: ConfigDict) -> dict[str, Array]:
  """Loss term -> () or (scales,) weight."""
  return {name: jnp.asarray(weight, jnp.float32) for name, weight in config.loss.weights.items()}


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Adam with global-norm clipping and a decaying schedule, at a learning rate of one: the peak rate is state."""
  return optax.chain(
    optax.clip_by_global_norm(config.optimizer.clip),
    optax.scale_by_adam(b1=config.optimizer.b1),
    optax.scale_by_learning_rate(make_schedule(config)),
  )


def make_schedule(config: ConfigDict) -> optax.Schedule:
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


def make_update(config: ConfigDict, axis_name: str | None = None) -> Callable[..., tuple[State, Metrics]]:
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
    params, opt = dict(state.params), dict(state.opt)
    for name, grad in grads.items():
      updates, opt[name] = optimizer.update(grad, state.opt[name], state.params[name])
      updates = jax.tree.map(lambda u, rate=state.rates[name]: rate * u, updates)
      params[name] = optax.apply_updates(state.params[name], updates)
    # Short memory at the start, so that the average does not remember the initialisation.
    decay = jnp.minimum(config.train.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = {name: optax.incremental_update(params[name], old, 1.0 - decay) for name, old in state.ema.items()}
    return state.replace(step=state.step + 1, params=params, opt=opt, ema=ema), metrics

  return update


def ramped(state: State) -> Array:
  """What has set in of the unsupervised terms, 0 to 1."""
  return jnp.clip((state.step - state.ramp[0]) / jnp.maximum(state.ramp[1], 1.0), 0.0, 1.0)


def keep_finite(old: State, new: State, metrics: Metrics) -> tuple[State, Metrics]:
  """The state after a step, unless one of the step's metrics is not finite: then the step is skipped.

  A skipped step counts, and nothing else changes: what is not finite never reaches parameters, moments, averages or
  memory. Parameters, moments and averages follow from the gradients, whose norms are among the metrics, by steps of
  Adam, which are bounded; memory from images that the losses have seen. Metrics are (); "skipped" is 1 then, else 0.
  """
  good = jnp.isfinite(jnp.stack(list(metrics.values()))).all()
  learned = lambda state: (state.params, state.opt, state.ema, state.memory)
  params, opt, ema, memory = jax.tree.map(lambda new, old: jnp.where(good, new, old), learned(new), learned(old))
  state = new.replace(params=params, opt=opt, ema=ema, memory=memory)
  return state, metrics | {"skipped": 1.0 - good}
