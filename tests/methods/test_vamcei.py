"""The step of VAMCEI against the one without adaptation, and against what its terms say of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import tiny
from tests.methods.batches import assert_learns, assert_skips_what_is_not_finite, guarded, make_batch
from vamcei_jax.methods import supervised, vamcei

UNSUPERVISED = ("reconstruction", "prior_kl", "global_alignment", "prototypes", "generator")


@pytest.fixture(scope="module")
def config():
  config = tiny.get_config()
  config.loss.prototypes.confidence = 0.0  # an untrained network is sure of nothing
  config.train.steps = 1000  # the learning rate stays up
  return config


@pytest.fixture(scope="module")
def batch():
  keys = jax.random.split(jax.random.key(0), 3)
  image = lambda key: 0.1 + 0.2 * jax.random.uniform(key, (3, 24, 24, 1))
  label = jax.random.randint(keys[2], (3, 24, 24), 0, 4)
  return {"source": {"image": image(keys[0]), "label": label}, "target": {"image": image(keys[1])}}


@pytest.fixture(scope="module")
def state(config):
  return jax.jit(lambda: vamcei.init_state(config, jax.random.key(1)))().replace(step=jnp.int32(10))


@pytest.fixture(scope="module")
def step(config):
  return jax.jit(vamcei.make_step(config))


def weighted(state, **weights):
  """The state with other loss weights; all unsupervised ones that are not named are zero."""
  zero = {name: jnp.zeros_like(state.weights[name]) for name in UNSUPERVISED}
  named = {name: jnp.full_like(state.weights[name], weight) for name, weight in weights.items()}
  return state.replace(weights=state.weights | zero | named)


def difference(a, b):
  return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)))


def test_without_unsupervised_weights_the_segmenter_learns_as_without_adaptation(config, state, step, batch):
  ours, metrics = step(weighted(state), batch)
  baseline = jax.jit(lambda: supervised.init_state(config, jax.random.key(1)))()
  baseline = baseline.replace(step=state.step, key=state.key)
  theirs, their_metrics = jax.jit(supervised.make_step(config))(baseline, batch)
  np.testing.assert_allclose(metrics["loss"], their_metrics["loss"], rtol=1e-5)
  # Adam's first step is ±rate for each parameter: equal signs of the gradients give equal steps.
  agree = jax.tree.map(lambda a, b: jnp.isclose(a, b, atol=1e-5), ours.params["segmenter"], theirs.params["segmenter"])
  assert np.mean([float(leaf.mean()) for leaf in jax.tree.leaves(agree)]) > 0.99


def test_the_total_is_the_weighted_sum_of_the_terms(state, step, batch):
  _, metrics = step(state, batch)
  total = metrics["segmentation"] + sum(
    metrics["ramp"] * state.weights[name].ravel()[0] * metrics[name] for name in UNSUPERVISED
  )
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
  assert {*UNSUPERVISED, "segmentation", "discriminator"} <= set(metrics)


@pytest.mark.parametrize("term", UNSUPERVISED)
def test_every_term_moves_the_segmenter(state, step, batch, term):
  """Were a gradient cut somewhere, a term would be logged and do nothing."""
  without, _ = step(weighted(state), batch)
  with_term, _ = step(weighted(state, **{term: 1e3}), batch)
  assert difference(with_term.params["segmenter"], without.params["segmenter"]) > 1e-4


def test_terms_descend_when_they_are_all_that_counts(config, state, step, batch):
  for term in ("reconstruction", "prior_kl", "global_alignment"):
    current = weighted(state, segmentation=0.0, **{term: 1.0})
    values = []
    for _ in range(12):
      current, metrics = step(current, batch)
      values.append(float(metrics[term]))
    assert values[-1] < 0.97 * values[0], (term, values)


def test_the_discriminator_learns_from_eq_11_alone(state, step, batch):
  """Its update does not depend on the generator's weight: the two gradients never mix."""
  without, _ = step(weighted(state), batch)
  with_generator, _ = step(weighted(state, generator=1e3), batch)
  assert difference(without.params["discriminator"], with_generator.params["discriminator"]) == 0.0
  assert difference(without.params["discriminator"], state.params["discriminator"]) > 0.0


def test_ramps_and_weights_are_arrays_that_change_without_recompilation(state, batch, config):
  step = jax.jit(vamcei.make_step(config))
  step(state, batch)
  _, early = step(weighted(state, prototypes=2.0).replace(step=jnp.int32(1), ramp=jnp.array([0.0, 4.0])), batch)
  _, late = step(state.replace(step=jnp.int32(9), ramp=jnp.array([20.0, 4.0])), batch)
  assert step._cache_size() == 1
  assert float(early["ramp"]) == 0.25
  assert float(late["ramp"]) == 0.0


def test_a_batch_without_any_structure_gives_finite_gradients(state, step, batch):
  empty = {
    "source": {"image": jnp.zeros_like(batch["source"]["image"]), "label": jnp.zeros_like(batch["source"]["label"])},
    "target": {"image": jnp.zeros_like(batch["target"]["image"])},
  }
  after, metrics = step(state, empty)
  assert all(bool(jnp.isfinite(value)) for value in metrics.values())
  assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(after.params))


def test_the_step_maps_over_loss_weights(state, step, batch, config):
  """An ablation grid is a vmap over states; a row of it equals the run made alone."""
  rows = [weighted(state), weighted(state, generator=5.0)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
  _, metrics = jax.jit(jax.vmap(vamcei.make_step(config), in_axes=(0, None)))(stacked, batch)
  for i, row in enumerate(rows):
    np.testing.assert_allclose(metrics["loss"][i], step(row, batch)[1]["loss"], rtol=1e-4)


def test_a_batch_that_is_not_finite_advances_the_step_and_nothing_else(state, step, batch):
  assert_skips_what_is_not_finite(guarded(step), state, batch, ("source", "target"))


@pytest.mark.parametrize("kind", ["zero", "one", "a pixel"])
def test_flat_images_and_single_classes_are_learned_from(state, step, batch, kind):
  for labels in ("background", "single"):
    made = make_batch(np.random.default_rng(0), 3, kind, kind, labels)
    images = {domain: {name: made[domain][name] for name in batch[domain]} for domain in batch}
    assert_learns(guarded(step), state, images)
