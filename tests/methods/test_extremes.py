"""Steps on inputs at the edge of what images can be, and on batches that are not finite."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vamcei_jax.stages import STAGES, stage_config

from tests.configs import tiny_multistage
from tests.methods.batches import (
  FLAT,
  IMAGES,
  LABELS,
  assert_learns,
  assert_skips_what_is_not_finite,
  guarded,
  make_batch,
)

# A stage of each method. Those that compile long have a sample in the tests of their own.
SLOW = [pytest.param(stage, marks=pytest.mark.slow) for stage in ("distill, by itself", "target_vamcei", "translate")]
METHODS = ["no_adaptation", "distill", *SLOW]


@cache
def program(stage, dtype="float32"):
  """The jitted step of a stage, and a state at which the ramp of the losses has ended."""
  run, (stage, *itself) = tiny_multistage.get_config(), stage.split(", ")
  run.stage.distill.distillation.itself = 0.5 if itself else 0.0
  config, method = stage_config(run, stage), STAGES[stage].method
  config.model.dtype = dtype
  state = jax.jit(lambda: method.init_state(config, jax.random.key(1)))()
  return jax.jit(guarded(method.make_step(config))), state.replace(step=jnp.int32(4))


@pytest.mark.parametrize("stage", METHODS)
def test_a_batch_that_is_not_finite_advances_the_step_and_nothing_else(stage):
  domains = ("source",) if stage == "no_adaptation" else ("source", "target")
  assert_skips_what_is_not_finite(*program(stage), make_batch(np.random.default_rng(0), 2), domains)


BATCHES = {
  "source": st.sampled_from(sorted(IMAGES)),
  "target": st.sampled_from(sorted(IMAGES)),
  "labels": st.sampled_from(LABELS),
  "seed": st.integers(0, 2**32 - 1),
}


@pytest.mark.parametrize("stage", METHODS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(**BATCHES)
def test_extreme_batches_are_learned_from(stage, source, target, labels, seed):
  batch = make_batch(np.random.default_rng(seed), 2, source, target, labels)
  assert_learns(*program(stage), batch, may_skip=stage == "translate" and {source, target} & set(FLAT))


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", METHODS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(**BATCHES)
def test_batches_of_one_and_bfloat16_are_learned_from(stage, dtype, images, source, target, labels, seed):
  batch = make_batch(np.random.default_rng(seed), images, source, target, labels)
  assert_learns(*program(stage, dtype), batch, may_skip=stage == "translate" and {source, target} & set(FLAT))
