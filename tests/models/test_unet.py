import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import vamcei_paper
from vamcei_jax.inference.load import abstract_state
from vamcei_jax.models.layers import InstanceNorm, drop_channels
from vamcei_jax.models.unet import Latent, UNet, VariationalUNet, pool_latent
from vamcei_jax.pipeline.describe import count
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.prng import example_keys

MODEL = VariationalUNet(classes=4, widths=(8, 8, 16), latent_scales=2, logvar_range=(-3.0, 1.0))
INIT_KEY = jax.random.key(1, impl="rbg")  # XLA compiles an initialisation from keys of this kind four times as fast
segment = jax.jit(MODEL.apply)


@pytest.fixture(scope="module")
def images():
  return jax.random.uniform(jax.random.key(0), (3, 32, 24, 1))


@pytest.fixture(scope="module")
def variables(images):
  return jax.jit(MODEL.init)(INIT_KEY, images)


def test_parameters_are_the_only_collection(variables):
  assert set(variables) == {"params"}


def test_scales_halve_and_the_fused_output_has_full_resolution(images, variables):
  output = segment(variables, images)
  assert output.logits.shape == (3, 32, 24, 4)
  assert [latent.mu.shape for latent in output.latents] == [(3, 32, 24, 8), (3, 16, 12, 8)]
  assert [logits.shape for logits in output.scale_logits] == [(3, 32, 24, 4), (3, 16, 12, 4)]


def test_without_keys_z_is_the_mean(images, variables):
  for latent in segment(variables, images).latents:
    np.testing.assert_array_equal(latent.z, latent.mu)


def test_latents_stay_in_their_ranges(images, variables):
  for latent in segment(variables, 1e4 * images).latents:
    assert float(jnp.abs(latent.mu).max()) <= 1.0
    assert float(latent.logvar.min()) >= -3.0
    assert float(latent.logvar.max()) <= 1.0


def test_samples_have_the_mean_and_variance_that_the_latent_states(images, variables):
  latent = segment(variables, images, example_keys(jax.random.key(2), jnp.arange(3))).latents[0]
  noise = np.asarray((latent.z - latent.mu) / jnp.exp(0.5 * latent.logvar)).ravel()
  # 18,432 draws: the standard errors of mean and variance are 0.007 and 0.010.
  assert abs(noise.mean()) < 0.03
  assert abs(noise.var() - 1.0) < 0.05


def test_the_segmentation_is_a_function_of_the_sample(images, variables):
  """Also through the coarse scale alone, whose sample is the input of the next block."""
  mean, sampled = segment(variables, images), segment(variables, images, example_keys(jax.random.key(7), jnp.arange(3)))
  for scale in (0, 1):
    assert float(jnp.abs(mean.scale_logits[scale] - sampled.scale_logits[scale]).max()) > 1e-3
  assert float(jnp.abs(mean.latents[0].mu - sampled.latents[0].mu).max()) > 1e-3


def test_the_pooled_latent_is_the_mean_of_16_independent_pixels():
  mu, logvar = jax.random.normal(jax.random.key(5), (2, 1, 4, 4, 1))
  noise = jax.random.normal(jax.random.key(6), (40_000, 4, 4, 1))
  draws = (mu + jnp.exp(0.5 * logvar) * noise).mean((1, 2, 3))
  mean, log_variance = pool_latent(Latent(mu, logvar, mu))
  # Standard errors of 40,000 draws: 0.0014 and 0.7 %.
  assert float(mean[0, 0]) == pytest.approx(float(draws.mean()), abs=0.006)
  assert float(jnp.exp(log_variance[0, 0])) == pytest.approx(float(draws.var()), rel=0.03)


def test_scales_draw_independent_noise():
  """The same key at two scales of the same shape must not give the same noise."""
  model = VariationalUNet(classes=2, widths=(8, 8, 8), latent_scales=2)
  images = jnp.ones((1, 16, 16, 1))
  keys = example_keys(jax.random.key(3), jnp.arange(1))
  fine, coarse = jax.jit(model.init_with_output)(INIT_KEY, images, keys)[0].latents
  noise = [((l.z - l.mu) / jnp.exp(0.5 * l.logvar)).ravel()[:512] for l in (fine, coarse)]
  assert abs(np.corrcoef(*noise)[0, 1]) < 0.2


def test_an_image_is_segmented_alike_in_any_batch_and_order(images, variables):
  keys = example_keys(jax.random.key(4), jnp.arange(3))
  batch = segment(variables, images, keys).logits
  reversed_batch = segment(variables, images[::-1], keys[::-1]).logits
  alone = segment(variables, images[1:2], keys[1:2]).logits
  np.testing.assert_allclose(reversed_batch[::-1], batch, atol=1e-5)
  np.testing.assert_allclose(alone[0], batch[1], atol=1e-5)


def test_bfloat16_computes_close_to_float32_with_float32_parameters_and_logits(images, variables):
  half = MODEL.clone(dtype=jnp.bfloat16)
  output = jax.jit(half.apply)(variables, images)
  half_variables = jax.eval_shape(half.init, jax.random.key(1), images)
  assert {leaf.dtype for leaf in jax.tree.leaves(half_variables)} == {jnp.dtype("float32")}
  assert {leaf.dtype for leaf in (output.logits, *output.scale_logits)} == {jnp.dtype("float32")}
  assert {leaf.dtype for leaf in jax.tree.leaves(output.latents)} == {jnp.dtype("bfloat16")}
  full = segment(variables, images).logits
  assert float(jnp.abs(output.logits - full).mean() / jnp.abs(full).mean()) < 0.1


def test_the_plain_unet_has_one_head_and_needs_no_key(images):
  model = UNet(classes=4, widths=(4, 8, 8))
  apply, variables = jax.jit(model.apply), jax.jit(model.init)(INIT_KEY, images)
  logits = apply(variables, images)
  assert logits.shape == (3, 32, 24, 4)
  assert logits.dtype == jnp.float32
  np.testing.assert_array_equal(logits, apply(variables, images))
  assert [name for name in variables["params"] if "head" in name or "mu" in name] == ["head"]


PUBLISHED = {"affine": False, "bias": True, "dropout": 0.5, "latent": "attention", "heads": "convolution"}


def test_the_published_networks_have_the_published_numbers_of_parameters():
  config = resolve(vamcei_paper.get_config()).stages["vamcei"]
  params = abstract_state(config).params
  decoders = {name: count(decoder) for name, decoder in params["decoders"].items()}
  assert count(params["segmenter"]) == 31_860_383
  assert decoders == {f"{d}_{s}": n for d in ("source", "target") for s, n in enumerate((365_665, 439_393, 586_849))}
  assert count(params["discriminator"]) == 2_765_761


@pytest.fixture(scope="module")
def published(images):
  model = VariationalUNet(classes=4, widths=(8, 8, 16), latent_scales=2, **PUBLISHED)
  variables = jax.jit(model.init)(INIT_KEY, images)
  return jax.jit(
    lambda *arguments, train=True: model.apply(variables, *arguments, train=train), static_argnames="train"
  )


def test_channels_are_dropped_in_training_alone(published, images):
  keys = example_keys(jax.random.key(2), jnp.arange(3))
  plain = VariationalUNet(classes=4, widths=(8, 8, 16), latent_scales=2, **PUBLISHED | {"dropout": 0.0})
  variables = jax.jit(plain.init)(INIT_KEY, images)
  expected = jax.jit(lambda: plain.apply(variables, images, keys, train=True))().logits
  np.testing.assert_allclose(published(images, keys, train=False).logits, expected, atol=1e-5)
  changed = jnp.abs(published(images, keys).latents[0].mu - published(images, keys, train=False).latents[0].mu)
  assert float(changed.max()) > 1e-2
  np.testing.assert_array_equal(published(images).logits, published(images, train=False).logits)  # without keys


def test_dropped_channels_do_not_depend_on_the_batch(published, images):
  keys = example_keys(jax.random.key(4), jnp.arange(3))
  batch, alone = published(images, keys).logits, published(images[1:2], keys[1:2]).logits
  np.testing.assert_allclose(alone[0], batch[1], atol=1e-4)


def test_half_of_the_channels_are_dropped_and_the_mean_stays():
  dropped = drop_channels(example_keys(jax.random.key(0), jnp.arange(50)), 64, 0.5)
  assert set(np.unique(dropped)) == {0.0, 2.0}
  assert abs(float(dropped.mean()) - 1.0) < 0.07  # four standard errors


def test_norms_without_scale_and_bias_have_no_parameters():
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  assert not InstanceNorm(affine=False).init(INIT_KEY, x)
  np.testing.assert_allclose(
    InstanceNorm(affine=False).apply({}, x), InstanceNorm().init_with_output(INIT_KEY, x)[0], atol=1e-6
  )
