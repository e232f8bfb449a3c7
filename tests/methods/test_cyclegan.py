"""The CycleGAN's step and its history of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.batches import assert_skips_what_is_not_finite, make_hearts
from tests.methods.devices import assert_two_devices_take_the_step
from tests.methods.settings import UNEVEN, stage_config
from tests.methods.steps import assert_near, assert_steps, compiled, first_state, moments, moved_state, program
from vamcei_jax.methods import cyclegan
from vamcei_jax.models.translator import PatchDiscriminator, Translator

TERMS = ("adversarial", "cycle", "identity")
TRANSLATOR, DISCRIMINATOR = Translator(2, 1), PatchDiscriminator(3)
HISTORY = UNEVEN["translation"]["history"]


@pytest.fixture(scope="module")
def batch():
  return make_hearts(0)


@pytest.fixture(scope="module")
def state():
  return first_state("translate")


@pytest.fixture(scope="module")
def step():
  return program("translate").step


class PlainHistory:
  """The history of images as CycleGAN's authors write it, on a list; `draws` yields (place, swap) of each image."""

  def __init__(self, size, images=()):
    self.size, self.images = size, list(images)

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


def exchange_draws(key, images, size):
  """(place, swap) of each image."""
  for index in range(images):
    place, coin = jax.random.split(jax.random.fold_in(key, index))
    yield int(jax.random.randint(place, (), 0, size)), bool(jax.random.bernoulli(coin))


class Composition:
  """Gradient and metrics of successive steps, from the networks and a history of the test."""

  def __init__(self, state):
    stored = lambda history: np.asarray(history["images"])[: int(history["count"])]
    self.histories = {domain: PlainHistory(HISTORY, stored(history)) for domain, history in state.memory.items()}
    self.exchanged = 0

  def __call__(self, params, number, batch):
    source, target = batch["source"]["image"], batch["target"]["image"]
    key = jax.random.fold_in(jax.random.key(3), number)
    fakes = {}
    in_source, in_target = map(np.asarray, translate_both(params, source, target))
    for domain, translated, number in (("source", in_source, 0), ("target", in_target, 1)):
      draws = exchange_draws(jax.random.fold_in(key, number), len(translated), HISTORY)
      fakes[domain] = np.stack(self.histories[domain].exchange(translated, draws))
      self.exchanged += int((fakes[domain] != translated).any((1, 2, 3)).sum())
    return compose(params, source, target, fakes)


@compiled
def translate_both(params, source, target):
  """Translated images in the source's and in the target's contrast."""
  translate = lambda direction, images: TRANSLATOR.apply({"params": params["translators"][direction]}, images)
  return translate("to_source", target), translate("to_target", source)


@compiled
def compose(params, source, target, fakes):
  """Gradient and metrics of a step; the discriminators see `fakes`."""
  weights = UNEVEN["loss"]["weights"]
  error = lambda a, b: jnp.abs(a - b).mean()
  answers = lambda discriminators, domain, x: DISCRIMINATOR.apply({"params": discriminators[domain]}, x)

  def translators_loss(translators):
    to_source = lambda x: TRANSLATOR.apply({"params": translators["to_source"]}, x)
    to_target = lambda x: TRANSLATOR.apply({"params": translators["to_target"]}, x)
    terms = {
      "adversarial": ((answers(params["discriminators"], "target", to_target(source)) - 1) ** 2).mean()
      + ((answers(params["discriminators"], "source", to_source(target)) - 1) ** 2).mean(),
      "cycle": error(to_source(to_target(source)), source) + error(to_target(to_source(target)), target),
      "identity": error(to_target(target), target) + error(to_source(source), source),
    }
    total = sum(weights[name] * terms[name] for name in TERMS)
    return total, {"loss": total} | terms

  def discriminators_loss(discriminators):
    distance = lambda domain, images, goal: ((answers(discriminators, domain, images) - goal) ** 2).mean()
    of_domain = lambda domain, real: distance(domain, real, 1) + distance(domain, fakes[domain], 0)
    return (of_domain("source", source) + of_domain("target", target)) / 2

  grads, metrics = jax.grad(translators_loss, has_aux=True)(params["translators"])
  metrics["discriminator"], of_discriminators = jax.value_and_grad(discriminators_loss)(params["discriminators"])
  return {"translators": grads, "discriminators": of_discriminators}, metrics


def weighted(state, **weights):
  return state.replace(weights=state.weights | {name: jnp.float32(weights.get(name, 0.0)) for name in TERMS})


def differs(a, b):
  return any(jax.tree.leaves(jax.tree.map(lambda x, y: bool((np.asarray(x) != y).any()), a, b)))


def remembering(state):
  """The state with two images in each history, which has room for three."""
  rng = np.random.default_rng(4)
  images = lambda: np.float32(rng.random((HISTORY, 24, 24, 1)) * np.array([1, 1, 0])[:, None, None, None])
  return state.replace(memory={domain: {"images": images(), "count": jnp.int32(2)} for domain in state.memory})


def test_a_step_is_adams_on_the_gradient_of_the_composed_losses(step):
  """Translators follow three weighted terms; discriminators see real images, and translated ones of the history."""
  state = remembering(moved_state("translate"))
  composition = Composition(state)
  schedule = lambda done: (400 - done) / 200
  state = assert_steps(step, state, [make_hearts(0), make_hearts(1)], composition, schedule)
  assert 3 <= composition.exchanged <= 9
  for domain, history in composition.histories.items():
    assert int(state.memory[domain]["count"]) == HISTORY
    np.testing.assert_allclose(state.memory[domain]["images"], np.stack(history.images), atol=1e-4)


def test_two_devices_take_the_step_of_the_batch():
  assert_two_devices_take_the_step("translate")


def test_the_history_is_that_of_a_plain_list():
  size, images = 3, np.arange(24.0, dtype=np.float32)
  plain = PlainHistory(size)
  history = {"images": jnp.zeros((size, 1, 1, 1)), "count": jnp.int32(0)}
  exchange, swaps = compiled(cyclegan.exchange), 0
  for number, four in enumerate(np.split(images, 6)):
    key = jax.random.key(number)
    draws = list(exchange_draws(key, 4, size))
    swaps += sum(swap for _, swap in draws)
    expected = plain.exchange(four, draws)
    history, back = exchange(history, jnp.asarray(four).reshape(4, 1, 1, 1), key)
    np.testing.assert_array_equal(back.ravel(), expected)
    np.testing.assert_array_equal(history["images"].ravel()[: len(plain.images)], plain.images)
    assert int(history["count"]) == len(plain.images)
  assert 4 < swaps < 20


def test_what_comes_back_from_a_full_history_is_old_half_of_the_time():
  history = {"images": -jnp.ones((50, 1, 1, 1)), "count": jnp.int32(50)}
  images = np.arange(1000.0, dtype=np.float32).reshape(-1, 1, 1, 1)
  _, back = compiled(cyclegan.exchange)(history, images, jax.random.key(0))
  assert 0.45 < (np.asarray(back) != images).mean() < 0.55


def test_the_total_is_the_weighted_sum_of_the_terms(state, step, batch):
  _, metrics = step(state, batch)
  total = sum(UNEVEN["loss"]["weights"][name] * metrics[name] for name in TERMS)
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


@pytest.mark.parametrize("term", TERMS)
def test_every_term_moves_both_translators(state, step, batch, term):
  after, _ = step(weighted(state, **{term: 1.0}), batch)
  for direction in cyclegan.DIRECTIONS:
    assert differs(after.params["translators"][direction], state.params["translators"][direction])


@pytest.mark.parametrize("direction", ["to_target", "to_source"])
def test_the_cycle_has_the_gradient_of_finite_differences(step, batch, direction):
  """Along the gradient with respect to one translator, which is the first and the second of a cycle."""
  state = weighted(moved_state("translate"), cycle=1.0)
  after, metrics = step(state, batch)
  first = moments(after, "mu")["translators"]
  length = lambda tree: np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree)))
  # The moments are a multiple of the gradient, whose length is a metric.
  gradient = float(metrics["gradient_translators"]) * length(first[direction]) / length(first)
  ahead = jax.tree.map(lambda m: np.asarray(m) / length(first[direction]), first[direction])

  def cycle(distance):
    moved = jax.tree.map(lambda p, d: p + distance * d, state.params["translators"][direction], ahead)
    translators = state.params["translators"] | {direction: moved}
    _, metrics = step(state.replace(params=state.params | {"translators": translators}), batch)
    return float(metrics["cycle"])

  distance = 3e-4 / gradient
  assert gradient > 1e-3
  np.testing.assert_allclose((cycle(distance) - cycle(-distance)) / (2 * distance), gradient, rtol=0.02)


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
  other = {**batch, "source": {**batch["source"], "label": np.ones((4, 24, 24), np.int32)}}
  assert not differs(step(state, other)[0].params, step(state, batch)[0].params)


def test_a_batch_that_is_not_finite_advances_the_step_and_nothing_else(state, step, batch):
  """The history is left alone too."""
  assert_skips_what_is_not_finite(step, state, batch, ("source", "target"))


def test_a_prediction_is_the_translated_image(batch):
  params = moved_state("translate").params
  predict = compiled(cyclegan.make_predict(program("translate").config))
  images = predict(params["translators"]["to_target"], batch["source"]["image"])
  _, expected = translate_both(params, batch["source"]["image"], batch["target"]["image"])
  np.testing.assert_allclose(images, expected, rtol=1e-4)


def test_the_networks_are_the_configured_ones():
  model, translation = {"norm": "group", "dtype": "bfloat16"}, {"width": 8, "blocks": 3, "discriminator_width": 16}
  config = stage_config("translate", model=model | {"widths": (8, 16, 24)}, translation=translation)
  assert cyclegan.make_translator(config) == Translator(8, 3, "group", jnp.bfloat16)
  assert cyclegan.make_discriminator(config) == PatchDiscriminator(16, "group", jnp.bfloat16)


def test_at_first_all_networks_differ_and_the_histories_are_empty(state):
  drawn = [leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(state.params)) if leaf.std() > 0]
  assert len(set(drawn)) == len(drawn) > 20
  assert set(state.params["translators"]) == {"to_source", "to_target"} == set(state.ema_params["translators"])
  assert set(state.params["discriminators"]) == {"source", "target"} == set(state.memory)
  for history in state.memory.values():
    assert history["images"].shape == (HISTORY, 24, 24, 1)
    assert int(history["count"]) == 0
  assert_near(state.ema_params["translators"], state.params["translators"], distance=0.0)
