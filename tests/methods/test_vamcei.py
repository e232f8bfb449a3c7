"""The step of VAMCEI against the equations, against the step without adaptation, and what each term moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods import equations
from tests.methods.batches import assert_learns, assert_skips_what_is_not_finite, make_batch, make_hearts
from tests.methods.devices import assert_two_devices_take_the_step
from tests.methods.settings import UNEVEN, stage_config
from tests.methods.steps import assert_steps, compiled, first_state, moved_state, program
from vamcei_jax.losses import pairwise_gaussian_kl
from vamcei_jax.methods import vamcei
from vamcei_jax.models.decoder import Decoder
from vamcei_jax.models.discriminator import Discriminator
from vamcei_jax.models.unet import Latent, VariationalUNet

SEGMENTER = VariationalUNet(4, (4, 8, 16), 2, "instance", (-2.5, -0.5))
DECODERS = Decoder((4, 4)), Decoder((8, 8))
DISCRIMINATOR = Discriminator(3)
WEIGHTS = UNEVEN["loss"]["weights"]
CONFIDENCE, TEMPERATURE = UNEVEN["loss"]["prototypes"].values()
UNSUPERVISED = ("reconstruction", "prior_kl", "global_alignment", "prototypes", "generator")


@pytest.fixture(scope="module")
def config():
  return program("vamcei").config


@pytest.fixture(scope="module")
def step():
  return program("vamcei").step


@pytest.fixture(scope="module")
def state():
  """Before the first of its steps at which the unsupervised losses have their full weight."""
  return first_state("vamcei").replace(step=jnp.int32(9))


@pytest.fixture(scope="module")
def batch():
  return make_hearts(0)


def segment(params, batch, number):
  """Outputs of the segmenter for both domains: the key of an image is its position, and sources come first."""
  key = jax.random.fold_in(jax.random.key(3), number)
  keys = jnp.stack([jax.random.fold_in(key, position) for position in range(6)])
  apply = lambda images, keys: SEGMENTER.apply({"params": params["segmenter"]}, images, keys)
  return apply(batch["source"]["image"], keys[:4]), apply(batch["target"]["image"], keys[4:])


def reconstruct(decoders, domain, output, class_map, image):
  """Eq. 3 of a domain, at both scales."""
  total = 0.0
  for scale in (0, 1):
    pooled_map, pooled_image = (equations.mean_over_windows(x, 2**scale) for x in (class_map, image))
    logits = DECODERS[scale].apply({"params": decoders[f"{domain}_{scale}"]}, output.latents[scale].z, pooled_map)
    total += equations.binary_cross_entropy(logits, pooled_image)
  return total


def pseudo_labels(probs):
  """One-hot classes of confident pixels, 0 elsewhere."""
  return jax.nn.one_hot(probs.argmax(-1), 4) * (probs.max(-1) > CONFIDENCE)[..., None]


@compiled
def compose(params, number, batch):
  """Gradient of a step, its metrics and the target's class probabilities, from the networks alone."""
  constant = jax.lax.stop_gradient
  source, target = batch["source"], batch["target"]

  def loss(params):
    output_s, output_t = segment(params, batch, number)
    probs_s, probs_t = jax.nn.softmax(output_s.logits), jax.nn.softmax(output_t.logits)
    full = jax.nn.one_hot(source["label"], 4)
    half = equations.mean_over_windows(full, 2)
    maps = (output_s.logits, full), (output_s.scale_logits[0], full), (output_s.scale_logits[1], half)
    cross_entropy = sum(equations.cross_entropy(*pair) for pair in maps)
    dice = sum(equations.dice_loss(*pair) for pair in maps)

    terms = {
      "reconstruction": reconstruct(params["decoders"], "source", output_s, full, source["image"])
      + reconstruct(params["decoders"], "target", output_t, probs_t, target["image"]),
      "prior_kl": sum(equations.prior_kl(l.mu, l.logvar) for l in (*output_s.latents, *output_t.latents)),
    }
    gaussians = [[equations.pooled_gaussians(latent) for latent in o.latents] for o in (output_s, output_t)]
    by_scale = [equations.alignment(s, t, "pairwise") for s, t in zip(*gaussians, strict=True)]
    terms["global_alignment"] = by_scale[0] + by_scale[1]
    prototypes_s = equations.prototypes(output_s.latents[0].mu, full)
    prototypes_t = equations.prototypes(output_t.latents[0].mu, constant(pseudo_labels(probs_t)))
    terms["prototypes"] = equations.contrast(prototypes_s, prototypes_t, TEMPERATURE)
    answers = lambda network, maps: DISCRIMINATOR.apply({"params": network}, maps)
    terms["generator"] = equations.generator_loss(answers(constant(params["discriminator"]), probs_t))
    real, fake = (answers(params["discriminator"], constant(probs)) for probs in (probs_s, probs_t))
    discriminator = equations.discriminator_loss(real, fake)

    ramp = (number - 1) / 8
    unsupervised = sum(WEIGHTS[name] * terms[name] for name in terms if name != "global_alignment")
    unsupervised += WEIGHTS["global_alignment"][0] * by_scale[0] + WEIGHTS["global_alignment"][1] * by_scale[1]
    total = WEIGHTS["segmentation"] * (cross_entropy + dice) + ramp * unsupervised
    supervised = {"segmentation": cross_entropy + dice, "cross_entropy": cross_entropy, "dice_loss": dice}
    metrics = {"loss": total, "ramp": ramp, "discriminator": discriminator} | supervised | terms
    for scale, (s, t) in enumerate(zip(*gaussians, strict=True)):
      for estimator in ("pairwise", "paper"):
        value = equations.alignment(s, t, estimator) / s[0].shape[1]
        metrics[f"alignment_{estimator}_{scale}"] = value
    return total + discriminator, (metrics, probs_t)

  return jax.grad(loss, has_aux=True)(params)


def composed(params, number, batch):
  """Gradient and metrics of a step."""
  grads, (metrics, _) = compose(params, number, batch)
  return grads, metrics


def weighted(state, **weights):
  """The state with other loss weights; all unsupervised ones that are not named are zero."""
  zero = {name: jnp.zeros_like(state.weights[name]) for name in UNSUPERVISED}
  named = {name: jnp.full_like(state.weights[name], weight) for name, weight in weights.items()}
  return state.replace(weights=state.weights | zero | named)


def difference(a, b):
  return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - y).max()), a, b)))


def test_some_pixels_of_every_class_are_confident_and_some_are_not():
  """Otherwise the next test could not see the threshold of pseudo-labels."""
  _, (_, probs) = compose(moved_state("vamcei").params, 3, make_hearts(0))
  confident, classes = np.asarray(probs.max(-1) > CONFIDENCE), np.asarray(probs.argmax(-1))
  assert all((confident & (classes == k)).any() and (~confident & (classes == k)).any() for k in range(4))


def test_a_step_is_adams_on_the_gradient_of_the_equations(step):
  """Eqs. 2-10 and 12 for segmenter and decoders, eq. 11 for the discriminator."""
  schedule = lambda done: (1 - done / 400) ** 0.9
  assert_steps(step, moved_state("vamcei"), [make_hearts(0), make_hearts(1)], composed, schedule)


def test_two_devices_take_the_step_of_the_batch():
  assert_two_devices_take_the_step("vamcei")


def test_without_unsupervised_weights_the_segmenter_learns_as_without_adaptation(state, step, batch):
  ours, metrics = step(weighted(state), batch)
  baseline = first_state("no_adaptation").replace(step=state.step)
  theirs, their_metrics = program("no_adaptation").step(baseline, batch)
  np.testing.assert_allclose(metrics["loss"], their_metrics["loss"], rtol=1e-5)
  # Adam's first step is ±rate for each parameter: equal signs of the gradients give equal steps.
  agree = jax.tree.map(lambda a, b: np.isclose(a, b, atol=1e-5), ours.params["segmenter"], theirs.params["segmenter"])
  assert np.mean([float(leaf.mean()) for leaf in jax.tree.leaves(agree)]) > 0.99


def test_the_total_is_the_weighted_sum_of_the_terms(state, step, batch):
  state = state.replace(step=jnp.int32(4), weights=state.weights | {"global_alignment": jnp.array([0.01, 0.01])})
  _, metrics = step(state, batch)
  total = 0.7 * metrics["segmentation"] + 0.375 * (
    0.3 * metrics["reconstruction"] + 0.2 * metrics["prior_kl"] + 0.01 * metrics["global_alignment"]
    + 0.9 * metrics["prototypes"] + 0.4 * metrics["generator"]
  )  # fmt: skip
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


@pytest.mark.parametrize("term", UNSUPERVISED)
def test_every_term_moves_the_segmenter(state, step, batch, term):
  """Were a gradient cut somewhere, a term would be logged and do nothing."""
  without, _ = step(weighted(state), batch)
  with_term, _ = step(weighted(state, **{term: 1e3}), batch)
  assert difference(with_term.params["segmenter"], without.params["segmenter"]) > 1e-4


def test_terms_descend_when_they_are_all_that_counts(state, step, batch):
  for term in ("reconstruction", "prior_kl", "global_alignment"):
    current = weighted(state, segmentation=0.0, **{term: 1.0})
    values = []
    for _ in range(12):
      current, metrics = step(current, batch)
      values.append(float(metrics[term]))
    assert values[-1] < 0.97 * values[0], (term, values)


def test_the_total_descends_on_one_batch(state, step, batch):
  """The discriminator, whose share grows as it learns, is left out."""
  state, losses = state.replace(weights=state.weights | {"generator": jnp.float32(0.0)}), []
  for _ in range(40):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_the_discriminator_learns_from_eq_11_alone(state, step, batch):
  """Its update does not depend on the generator's weight: the two gradients never mix."""
  without, _ = step(weighted(state), batch)
  with_generator, _ = step(weighted(state, generator=1e3), batch)
  assert difference(without.params["discriminator"], with_generator.params["discriminator"]) == 0.0
  assert difference(without.params["discriminator"], state.params["discriminator"]) > 0.0


def test_ramps_and_weights_are_arrays_that_change_without_recompilation(state, batch, step):
  step(state, batch)
  programs = step._cache_size()
  _, early = step(weighted(state, prototypes=2.0).replace(step=jnp.int32(1), ramp=jnp.array([0.0, 4.0])), batch)
  _, late = step(state.replace(step=jnp.int32(9), ramp=jnp.array([20.0, 4.0])), batch)
  assert step._cache_size() == programs
  assert float(early["ramp"]) == 0.25
  assert float(late["ramp"]) == 0.0


def test_a_batch_without_any_structure_gives_finite_gradients(state, step, batch):
  empty = {
    "source": {"image": jnp.zeros_like(batch["source"]["image"]), "label": jnp.zeros_like(batch["source"]["label"])},
    "target": batch["target"] | {"image": jnp.zeros_like(batch["target"]["image"])},
  }
  after, metrics = step(state, empty)
  assert all(np.isfinite(value) for value in metrics.values())
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


def test_the_step_maps_over_loss_weights(state, step, batch, config):
  """An ablation grid is a vmap over states; a row of it equals the run made alone."""
  rows = [weighted(state), weighted(state, generator=5.0)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
  mapped = jax.vmap(vamcei.make_step(config), in_axes=(0, None))
  losses = compiled(lambda states, batch: mapped(states, batch)[1]["loss"])(stacked, batch)
  for i, row in enumerate(rows):
    np.testing.assert_allclose(losses[i], step(row, batch)[1]["loss"], rtol=1e-4)


def test_a_batch_that_is_not_finite_advances_the_step_and_nothing_else(state, step, batch):
  assert_skips_what_is_not_finite(step, state, batch, ("source", "target"))


@pytest.mark.parametrize("kind", ["zero", "one", "a pixel"])
def test_flat_images_and_single_classes_are_learned_from(state, step, kind):
  for labels in ("background", "single"):
    assert_learns(step, state, make_batch(np.random.default_rng(0), kind, kind, labels))


def test_the_networks_are_the_configured_ones():
  model = {"widths": (8, 16, 24), "norm": "group", "dtype": "bfloat16", "discriminator_width": 5}
  config = stage_config("vamcei", model=model)
  assert vamcei.make_decoder(config, 1) == Decoder((16, 16), "group", dtype=jnp.bfloat16)
  assert vamcei.make_discriminator(config) == Discriminator(5, jnp.bfloat16)


def test_every_network_is_drawn_from_a_key_of_its_own(state):
  drawn = [leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(state.params)) if leaf.std() > 0]
  assert set(state.params["decoders"]) == {"source_0", "source_1", "target_0", "target_1"}
  assert len(set(drawn)) == len(drawn) > 20


def forward(class_map, pooled=()):
  """What the loss terms are computed from, of arrays of the test."""
  features = jnp.float32(np.random.default_rng(0).normal(size=(1, 2, 2, 3)))
  latents = (Latent(features, features, features),)
  domain = lambda pooled: vamcei.Domain(jnp.zeros((1, 2, 2, 1)), class_map, latents, (), pooled)
  source, target = pooled or ((), ())
  return vamcei.Forward(domain(source), domain(target), {}, {})


def test_a_pixel_as_confident_as_the_threshold_is_a_pseudo_label():
  """Without it the class is absent from the target, and the contrast 0."""
  probs = jnp.float32([[[[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], [[0.4, 0.3, 0.3], [0.0, 0.0, 1.0]]]])
  settings = lambda confidence: stage_config("vamcei", loss={"prototypes": {"confidence": confidence}})
  of = lambda confidence: float(vamcei.prototypes_term(forward(probs), settings(confidence), None))
  assert of(0.5) == of(0.45) != of(0.51)
  assert of(0.51) == of(1.0)


@pytest.mark.parametrize("estimator", ["pairwise", "paper"])
def test_the_alignment_of_each_scale_is_by_the_configured_estimator(estimator):
  rng = np.random.default_rng(0)
  pooled = [[tuple(jnp.float32(rng.normal(size=(2, 3, 5 + scale)))) for scale in (0, 1)] for _ in ("source", "target")]
  config = stage_config("vamcei", loss={"global_kl": {"estimator": estimator}})
  got = vamcei.global_alignment_term(forward(jnp.ones((1, 2, 2, 1)), pooled), config, None)
  for scale, (s, t) in enumerate(zip(*pooled, strict=True)):
    expected = 0.0
    for dimension in range(5 + scale):
      (a, b), kl = ([x[:, dimension, None] for x in domain] for domain in (s, t)), pairwise_gaussian_kl
      value = kl(*a, *b).mean() + kl(*b, *a).mean()
      if estimator == "paper":
        value = max(value - kl(*a, *a).mean() - kl(*b, *b).mean(), 0.0)
      expected += value
    np.testing.assert_allclose(got[scale], expected, rtol=1e-4)


def test_a_step_in_bfloat16_has_the_losses_and_gradients_of_float32(state, step, batch):
  _, exact = step(state, batch)
  _, rounded = program("vamcei", "bfloat16").step(state, batch)
  for name, value in exact.items():
    np.testing.assert_allclose(rounded[name], value, rtol=0.1 if "gradient" in name else 0.03, err_msg=name)
