"""The CycleGAN's step and its history of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vamcei_jax.stages import stage_config

from tests.configs import tiny_multistage
from tests.methods.batches import assert_skips_what_is_not_finite, guarded
from vamcei_jax.methods import cyclegan

TERMS = ("adversarial", "cycle", "identity")


@pytest.fixture(scope="module")
def config():
  config = stage_config(tiny_multistage.get_config(), "translate")
  config.train.steps = 1000  # the learning rate stays up
  return config


@pytest.fixture(scope="module")
def batch():
  keys = jax.random.split(jax.random.key(0))
  image = lambda key: jax.random.uniform(key, (2, 24, 24, 1))
  return {"source": {"image": image(keys[0])}, "target": {"image": image(keys[1])}}


@pytest.fixture(scope="module")
def state(config):
  return jax.jit(lambda: cyclegan.init_state(config, jax.random.key(1)))()


@pytest.fixture(scope="module")
def step(config):
  return jax.jit(cyclegan.make_step(config))


def weighted(state, **weights):
  return state.replace(weights=state.weights | {name: jnp.float32(weights.get(name, 0.0)) for name in TERMS})


def differs(a, b):
  return any(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), a, b)))


def translated(config, state, domain, image):
  direction = {"target": "to_target", "source": "to_source"}[domain]
  return cyclegan.make_predict(config)(state.params["translators"][direction], image)


class PlainHistory:
  """The history of images as CycleGAN's authors write it, on a list; `draws` yields (place, swap) of each image."""

  def __init__(self, size):
    self.size, self.images = size, []

  def exchange(self, images, draws):
    back = []
    for image, (place, swap) in zip(images, draws, strict=True):
      if len(self.images) < self.size:
        self.images.append(image)
        back.append(image)
      elif swap:
        back.append(self.images[place])
        self.images[place] = image
      else:
        back.append(image)
    return back


def test_the_history_is_that_of_a_plain_list():
  size, images = 3, np.arange(24.0, dtype=np.float32)
  plain = PlainHistory(size)
  history = {"images": jnp.zeros((size, 1, 1, 1)), "count": jnp.int32(0)}
  exchange, swaps = jax.jit(cyclegan.exchange), 0
  for number, four in enumerate(np.split(images, 6)):
    key = jax.random.key(number)
    draws = []
    for index in range(4):
      place, coin = jax.random.split(jax.random.fold_in(key, index))
      draws.append((int(jax.random.randint(place, (), 0, size)), bool(jax.random.bernoulli(coin))))
    swaps += sum(swap for _, swap in draws)
    expected = plain.exchange(four, draws)
    history, back = exchange(history, jnp.asarray(four).reshape(4, 1, 1, 1), key)
    np.testing.assert_array_equal(back.ravel(), expected)
    np.testing.assert_array_equal(history["images"].ravel()[: len(plain.images)], plain.images)
    assert int(history["count"]) == len(plain.images)
  assert 4 < swaps < 20


def test_what_comes_back_from_a_full_history_is_old_half_of_the_time():
  history = {"images": -jnp.ones((50, 1, 1, 1)), "count": jnp.int32(50)}
  _, back = cyclegan.exchange(history, jnp.arange(1000.0).reshape(-1, 1, 1, 1), jax.random.key(0))
  old = float((back.ravel() != jnp.arange(1000.0)).mean())
  assert 0.45 < old < 0.55


def test_the_total_is_the_weighted_sum_of_the_terms(state, step, batch):
  _, metrics = step(state, batch)
  total = sum(state.weights[name] * metrics[name] for name in TERMS)
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


def test_terms_are_what_they_are_called(config, state, step, batch):
  """Each against its definition, from the networks alone; what an empty history gives back is what it was given."""
  _, metrics = step(state, batch)
  source, target = batch["source"]["image"], batch["target"]["image"]
  there = {"target": translated(config, state, "target", source), "source": translated(config, state, "source", target)}
  again = {
    "source": translated(config, state, "source", there["target"]),
    "target": translated(config, state, "target", there["source"]),
  }
  error = lambda a, b: float(jnp.abs(a - b).mean())
  cycle = error(again["source"], source) + error(again["target"], target)
  np.testing.assert_allclose(metrics["cycle"], cycle, rtol=1e-4)
  identity = error(translated(config, state, "source", source), source)
  identity += error(translated(config, state, "target", target), target)
  np.testing.assert_allclose(metrics["identity"], identity, rtol=1e-4)

  networks = state.params["discriminators"]
  answers = lambda domain, x: np.asarray(cyclegan.make_discriminator(config).apply({"params": networks[domain]}, x))
  adversarial = sum(np.mean((answers(domain, there[domain]) - 1) ** 2) for domain in networks)
  np.testing.assert_allclose(metrics["adversarial"], adversarial, rtol=1e-4)
  real = {"source": source, "target": target}
  discriminator = sum(
    (np.mean((answers(domain, real[domain]) - 1) ** 2) + np.mean(answers(domain, there[domain]) ** 2)) / 2
    for domain in networks
  )
  np.testing.assert_allclose(metrics["discriminator"], discriminator, rtol=1e-4)


@pytest.mark.parametrize("term", TERMS)
def test_every_term_moves_both_translators(state, step, batch, term):
  after, _ = step(weighted(state, **{term: 1.0}), batch)
  for direction in cyclegan.DIRECTIONS:
    assert differs(after.params["translators"][direction], state.params["translators"][direction])


def test_discriminators_learn_from_the_history_and_no_weight(state, step, batch):
  a, _ = step(weighted(state, adversarial=1.0), batch)
  b, _ = step(weighted(state, cycle=5.0), batch)
  assert not differs(a.params["discriminators"], b.params["discriminators"])
  full = {
    domain: {"images": jnp.ones_like(history["images"]), "count": jnp.int32(len(history["images"]))}
    for domain, history in state.memory.items()
  }
  remembered = [step(state.replace(memory=full, key=jax.random.key(seed)), batch)[0] for seed in range(4)]
  assert any(differs(r.params["discriminators"], a.params["discriminators"]) for r in remembered)


def test_the_cycle_closes_when_it_is_all_that_counts(state, step, batch):
  current, values = weighted(state, cycle=1.0), []
  for _ in range(150):
    current, metrics = step(current, batch)
    values.append(float(metrics["cycle"]))
  assert values[-1] < 0.8 * values[0]


def test_labels_are_not_read(state, step, batch):
  labelled = {**batch, "source": {**batch["source"], "label": jnp.ones((2, 24, 24), jnp.int32)}}
  assert not differs(step(state, labelled)[0].params, step(state, batch)[0].params)


def test_a_batch_that_is_not_finite_advances_the_step_and_nothing_else(state, step, batch):
  """The history is left alone too."""
  assert_skips_what_is_not_finite(guarded(step), state, batch, ("source", "target"))
