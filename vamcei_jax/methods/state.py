"""The state of a training and its optimizer step, shared by all methods."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jaxtyping import Float, Key

from vamcei_jax.config.schema import StageConfig

_B2 = 0.999  # decay of Adam's second moment
Params = Any  # parameters of a Flax module
Metrics = dict[str, Array]  # name -> ()
Batch = Mapping[str, Mapping[str, Array]]  # domain -> name -> array; see the docstring of the package


class State(flax.struct.PyTreeNode):
  """All that a step reads and writes. Loss weights, ramp and learning rates are arrays, so that a grid varies them.

  Attributes:
    step: () int32, number of steps done.
    key: PRNG key of the stage; the keys of a step are folded from it.
    params: network -> parameters.
    opt_state: network -> optimizer state.
    ema_params: network -> exponential moving average of its parameters, for the network that evaluation uses.
    learning_rates: network -> () peak learning rate.
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
  params: dict[str, Params],
  key: Key[Array, ""],
  config: StageConfig,
  *,
  terms: Sequence[str],
  averaged: str = "segmenter",
) -> State:
  """The state before the first step.

  Args:
    params: network -> parameters.
    key: PRNG key of the steps.
    config: configuration of the stage.
    terms: loss terms of the method, keys of `config.loss.weights`.
    averaged: the network that evaluation and prediction use.
  """
  return State(
    step=jnp.zeros((), jnp.int32),
    key=key,
    params=params,
    opt_state={name: make_optimizer(config, name).init(p) for name, p in params.items()},
    # A copy: the caller may donate the state, and a buffer can be donated once.
    ema_params={averaged: jax.tree.map(jnp.copy, params[averaged])},
    **config_arrays(config, networks=params, terms=terms),
  )


def fitting_arrays(params: Mapping[str, Any], networks: Mapping[str, Params]) -> dict[tuple[str, ...], Array]:
  """The arrays of trained networks that `params`, which may be abstract, have under the same name and shape."""
  arrays = flatten_dict(params)
  trained = flatten_dict(networks).items()
  return {name: array for name, array in trained if name in arrays and array.shape == arrays[name].shape}


def start_from(state: State, networks: Mapping[str, Params]) -> tuple[State, int]:
  """The state before the first step, with the parameters that trained networks have under the same name and shape.

  Args:
    state: of a method's init_state.
    networks: network -> parameters. A U-Net with other heads gives all but its heads.

  Returns:
    The state, and the number of arrays that were taken over.
  """

  def merge(params: dict[str, Params]) -> tuple[dict[str, Params], int]:
    arrays, fits = flatten_dict(params), fitting_arrays(params, networks)
    # Copies: the state may be donated, and the buffers of the trained networks must stay.
    return unflatten_dict(arrays | {name: jnp.copy(array) for name, array in fits.items()}), len(fits)

  (params, taken), (averages, _) = merge(state.params), merge(jax.tree.map(jnp.copy, state.ema_params))
  return state.replace(params=params, ema_params=averages), taken


def config_arrays(config: StageConfig, *, networks: Iterable[str], terms: Iterable[str]) -> dict[str, Any]:
  """The arrays of a state that are fields of its configuration: a grid varies them (see config/schema.py).

  Args:
    config: of the stage.
    networks: of the method.
    terms: loss terms of the method.

  Returns:
    learning_rates, weights and ramp of State.
  """
  return {
    "learning_rates": {name: jnp.float32(config.optimizer.rates[name]) for name in networks},
    "weights": {name: jnp.asarray(config.loss.weights[name], jnp.float32) for name in terms},
    "ramp": jnp.asarray(config.loss.ramp, jnp.float32),
  }


def make_optimizer(config: StageConfig, network: str) -> optax.GradientTransformation:
  """Clipping by global norm, Adam with weight decay, and the schedule, of a network, for a peak learning rate of 1.

  The peak learning rates are arrays of the state, and `make_update` multiplies by them. Weight decay is added to the
  gradient, as in the published code. Networks of `optimizer.constant` have neither a schedule nor weight decay.
  """
  settings, constant = config.optimizer, network in config.optimizer.constant
  decay = settings.weight_decay if not constant else 0.0
  return optax.chain(
    optax.clip_by_global_norm(settings.clip),
    *([optax.add_decayed_weights(decay)] if decay else []),
    optax.scale_by_adam(b1=settings.b1, b2=settings.b2.get(network, _B2)),
    optax.scale_by_learning_rate(optax.constant_schedule(1.0) if constant else make_schedule(config)),
  )


def make_schedule(config: StageConfig) -> optax.Schedule:
  """The schedule `config.optimizer.schedule`: step -> learning rate relative to its peak."""
  steps = config.train.steps
  schedules = {
    # As in nnU-Net: (1 - step/steps)^0.9.
    "polynomial": lambda: optax.polynomial_schedule(1.0, 0.0, 0.9, steps),
    # As in VAMCEI: a factor of 0.9 per epoch.
    "exponential": lambda: optax.exponential_decay(1.0, config.optimizer.epoch_steps, 0.9, staircase=True),
    # As in CycleGAN: constant for half of the steps, then linear to zero.
    "half_linear": lambda: optax.linear_schedule(1.0, 0.0, steps - steps // 2, steps // 2),
  }
  return schedules[config.optimizer.schedule]()


def make_update(config: StageConfig, axis_name: str | None = None) -> Callable[..., tuple[State, Metrics]]:
  """Makes the optimizer step of all methods.

  Args:
    config: configuration of the stage.
    axis_name: axis over which the batch is split. Gradients and metrics are averaged over it first, so that every
      device takes the step of the global batch (see the docstring of `vamcei_jax.losses`).

  Returns:
    update(state, grads, metrics) -> (state, metrics). `grads` maps the networks that take a step to their gradients;
    other networks stay as they are. The returned metrics also have "gradient_NETWORK" for each of them: the global norm
    of the gradient before it is clipped.
  """

  def update(state: State, grads: dict[str, Params], metrics: Metrics) -> tuple[State, Metrics]:
    if axis_name is not None:
      grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    metrics = metrics | {f"gradient_{name}": optax.tree.norm(grad) for name, grad in grads.items()}
    params, opt_state = dict(state.params), dict(state.opt_state)
    for name, grad in grads.items():
      updates, opt_state[name] = make_optimizer(config, name).update(grad, state.opt_state[name], state.params[name])
      updates = jax.tree.map(lambda u, rate=state.learning_rates[name]: rate * u, updates)
      params[name] = optax.apply_updates(state.params[name], updates)
    # A smaller decay in the first steps, so that the average forgets the initial parameters.
    decay = jnp.minimum(config.train.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    average = lambda name, old: optax.incremental_update(params[name], old, 1.0 - decay)
    ema_params = {name: average(name, old) for name, old in state.ema_params.items()}
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema_params), metrics

  return update


def digest(state: State | Mapping[str, Params] | Sequence[State]) -> str:
  """SHA-256 of all arrays of a state, or of networks, with their names, shapes and types."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.ascontiguousarray(jax.random.key_data(leaf) if is_key else leaf)
    sha.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
    sha.update(array.view(np.uint8).data)
  return sha.hexdigest()


def apply_network(network: nn.Module, params: Params, *inputs: Any, **options: Any) -> Any:
  """Output of a Flax module with these parameters."""
  return network.apply({"params": params}, *inputs, **options)


def ramp_factor(state: State) -> Float[Array, ""]:
  """Ramp-up factor of the unsupervised losses at the step of the state, from 0 to 1."""
  return jnp.clip((state.step - state.ramp[0]) / jnp.maximum(state.ramp[1], 1.0), 0.0, 1.0)


def skip_nonfinite(old: State, new: State, metrics: Metrics) -> tuple[State, Metrics]:
  """Skips a step with a metric that is not finite: the new state, or the old state with the step counted.

  Finite metrics imply a finite state. Parameters, moments and averages follow from the gradients by Adam, whose steps
  are bounded, and the norms of the gradients are metrics. The memory follows from images on which the losses depend.

  Args:
    old, new: states before and after the step.
    metrics: of the step.

  Returns:
    The state, and the metrics with "skipped": 1 for a skipped step, otherwise 0.
  """
  finite = jnp.isfinite(jnp.stack(list(metrics.values()))).all()
  learned = lambda state: (state.params, state.opt_state, state.ema_params, state.memory)
  chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), learned(new), learned(old))
  params, opt_state, ema_params, memory = chosen
  state = new.replace(params=params, opt_state=opt_state, ema_params=ema_params, memory=memory)
  return state, metrics | {"skipped": 1.0 - finite}
