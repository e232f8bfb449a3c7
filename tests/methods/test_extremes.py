"""Steps on inputs at the edge of what images can be, and on batches that are not finite."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.batches import (
  FLAT,
  IMAGES,
  LABELS,
  SOURCES,
  TARGETS,
  assert_learns,
  assert_skips_what_is_not_finite,
  make_batch,
)
from tests.methods.steps import first_state, program

METHODS = ["no_adaptation", "distill", "vamcei", "translate"]  # a stage of each


def ramped_state(stage):
  """A state at which the ramp of the losses has ended."""
  return first_state(stage).replace(step=jnp.int32(9))


@pytest.mark.parametrize("stage", METHODS)
def test_a_batch_that_is_not_finite_advances_the_step_and_nothing_else(stage):
  domains = ("source",) if stage == "no_adaptation" else ("source", "target")
  batch = make_batch(np.random.default_rng(0))
  assert_skips_what_is_not_finite(program(stage).step, ramped_state(stage), batch, domains)


BATCHES = {
  "source": st.sampled_from(sorted(IMAGES)),
  "target": st.sampled_from(sorted(IMAGES)),
  "labels": st.sampled_from(LABELS),
  "seed": st.integers(0, 2**32 - 1),
}


@pytest.mark.parametrize("stage", METHODS)
@settings(max_examples=25)
@given(**BATCHES)
def test_extreme_batches_are_learned_from(stage, source, target, labels, seed):
  batch = make_batch(np.random.default_rng(seed), source, target, labels)
  may_skip = stage == "translate" and {source, target} & set(FLAT)
  assert_learns(program(stage).step, ramped_state(stage), batch, may_skip=may_skip)


@pytest.mark.slow
@pytest.mark.parametrize("images", [(1, 1), (SOURCES, TARGETS)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", METHODS)
@settings(max_examples=25)
@given(**BATCHES)
def test_batches_of_one_and_bfloat16_are_learned_from(stage, dtype, images, source, target, labels, seed):
  batch = make_batch(np.random.default_rng(seed), source, target, labels, images)
  may_skip = stage == "translate" and {source, target} & set(FLAT)
  assert_learns(program(stage, dtype).step, ramped_state(stage), batch, may_skip=may_skip)
