"""Steps of a method, and the same steps composed by hand: losses of the test, Adam and averages in NumPy."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.methods.settings import UNEVEN, stage_config
from vamcei_jax.methods.state import skip_nonfinite
from vamcei_jax.pipeline.stages import STAGES

STEP = 3  # steps that moved_state has behind it
DECAYED = 300  # steps of its learning rates, of 400
SCHEDULES = {"translate": "half_linear"}
# Compiled some five times as fast. Most of these programs run a few times.
_OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


class Program(NamedTuple):
  """A stage's method, its configuration, and its step, compiled, which skips what is not finite."""

  method: object
  config: object
  step: object


def compiled(function):
  return jax.jit(function, compiler_options=_OPTIONS)


@cache
def program(stage, dtype="float32"):
  """The program of a stage with uneven settings."""
  model, optimizer = UNEVEN["model"] | {"dtype": dtype}, UNEVEN["optimizer"]
  optimizer = optimizer | {"schedule": SCHEDULES.get(stage, "polynomial")}
  config, method = stage_config(stage, **UNEVEN | {"model": model, "optimizer": optimizer}), STAGES[stage].method
  step = method.make_step(config)
  return Program(method, config, compiled(lambda state, batch: skip_nonfinite(state, *step(state, batch))))


@cache
def first_state(stage):
  """A stage's state before its first step, drawn from a kind of key that compiles fast."""
  method, config, _ = program(stage)
  state = compiled(lambda: method.init_state(config, jax.random.key(1, impl="unsafe_rbg")))()
  return state.replace(key=jax.random.key(3))


@cache
def moved_state(stage):
  """A state as in the midst of a stage: parameters that no initializer gives, and an average that differs from them."""
  rng = np.random.default_rng(2)
  move = lambda tree: jax.tree.map(lambda x: np.float32(np.asarray(x) + 0.1 * rng.normal(size=x.shape)), tree)
  state = first_state(stage)
  late = lambda optimizer: (*optimizer[:2], optimizer[2]._replace(count=jnp.int32(DECAYED)))
  return state.replace(
    step=jnp.int32(STEP),
    params=move(state.params),
    ema_params=move(state.ema_params),
    opt_state={name: late(optimizer) for name, optimizer in state.opt_state.items()},
  )


def expected_step(state, batch, number, composed, schedule):
  """What a step on `batch` must give, as (networks, metrics).

  Args:
    state: before the step.
    batch: of the step.
    number: of the step, from 1.
    composed: (params, number of the step, batch) -> (gradient by network, metrics).
    schedule: step -> learning rate relative to its peak.
  """
  params, average = jax.tree.map(np.asarray, (state.params, state.ema_params))
  first, second = (jax.tree.map(np.asarray, moments(state, name)) for name in ("mu", "nu"))
  grads, metrics = composed(params, STEP + number - 1, batch)
  for name, gradient in grads.items():
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(gradient)))
    metrics = metrics | {f"gradient_{name}": norm}
    m, v, change = adam(gradient, norm, first[name], second[name], number)
    rate = UNEVEN["optimizer"]["rates"][name] * schedule(DECAYED + number - 1)
    changed = jax.tree.map(lambda p, c, rate=rate: np.float32(p - rate * c), params[name], change)
    params, first, second = params | {name: changed}, first | {name: m}, second | {name: v}
  decay = min(UNEVEN["train"]["ema_decay"], (STEP + number) / (9 + STEP + number))
  new = {name: params[name] for name in average}
  average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, new)
  return {"params": params, "average": average, "first": first, "second": second}, metrics | {"skipped": 0.0}


def adam(gradient, norm, first, second, count):
  """Moments after `count` steps, and the change of the parameters for a learning rate of -1; clips the gradient."""
  b1, b2 = UNEVEN["optimizer"]["b1"], 0.999
  clipped = jax.tree.map(lambda g: np.asarray(g) * min(1, UNEVEN["optimizer"]["clip"] / norm), gradient)
  first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, first, clipped)
  second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, second, clipped)
  change = lambda m, v: m / (1 - b1**count) / (np.sqrt(v / (1 - b2**count)) + 1e-8)
  return first, second, jax.tree.map(change, first, second)


def assert_steps(step, state, batches, composed, schedule):
  """Each step's metrics, gradients, parameters and averages are those of the composed step; returns the last state.

  The moments before the first step are zero. Each composed step starts from the state before it: Adam divides rounding
  errors of small gradients by their size, so after a second step on its own, it would be a little apart.
  """
  for name in ("mu", "nu"):
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(moments(state, name)))
  for number, batch in enumerate(batches, 1):
    networks, metrics = expected_step(state, batch, number, composed, schedule)
    state, measured = step(state, batch)
    assert_metrics(measured, metrics)
    assert_near(moments(state, "mu"), networks["first"], 1e-4, distance=1e-7)
    assert_near(moments(state, "nu"), networks["second"], 1e-4, distance=1e-14)
    # A bias before a norm has a gradient of rounding errors alone, which Adam turns into whole steps.
    has_gradient = jax.tree.map(lambda v: np.sqrt(v) > 1e-6, networks["second"])
    for got, want in (state.params, networks["params"]), (state.ema_params, networks["average"]):
      masks = {name: has_gradient[name] for name in want}
      assert_near(jax.tree.map(np.where, masks, got, want), want, distance=1e-5)
    assert int(state.step) == STEP + number
  return state


def moments(state, name):
  """Network -> Adam's first ("mu") or second ("nu") moments."""
  return {network: getattr(optimizer[1], name) for network, optimizer in state.opt_state.items()}


def assert_metrics(measured, expected):
  assert set(measured) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(measured[name], value, rtol=2e-4, atol=1e-6, err_msg=name)


def assert_near(got, expected, share=0.0, *, distance=0.0):
  """Every array differs from the expected one by at most this distance and this share of its largest value."""
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    difference, size = np.abs(a - b).max(), np.abs(b).max()
    assert difference <= share * size + distance, f"{jax.tree_util.keystr(path)}: {difference} of {size}"
