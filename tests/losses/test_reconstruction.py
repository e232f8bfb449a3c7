"""Facts about the reconstruction term (eq. 3)."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from vamcei_jax import losses

reconstruction = jax.jit(losses.reconstruction)
gradient = jax.jit(jax.grad(lambda logits, image: losses.reconstruction(logits, image).sum()))


@settings(max_examples=15)
@given(shape=st.sampled_from([(1, 1, 1, 1), (3, 4, 5, 1), (2, 8)]), seed=st.integers(0, 2**32 - 1))
def test_it_is_the_mean_binary_cross_entropy_of_every_image(shape, seed):
  rng = np.random.default_rng(seed)
  logits, image = 3 * rng.normal(size=shape), rng.uniform(size=shape)
  p = 1 / (1 + np.exp(-logits))
  expected = [
    np.mean([-x * np.log(q) - (1 - x) * np.log(1 - q) for x, q in zip(i.flat, j.flat, strict=True)])
    for i, j in zip(image, p, strict=True)
  ]
  np.testing.assert_allclose(reconstruction(np.float32(logits), np.float32(image)), expected, rtol=1e-5)


def test_it_is_smallest_where_the_reconstruction_is_the_image(rng):
  image = rng.uniform(0.05, 0.95, size=(1, 6, 6, 1)).astype(np.float32)
  best = np.log(image / (1 - image))
  entropy = -(image * np.log(image) + (1 - image) * np.log(1 - image)).mean()
  np.testing.assert_allclose(reconstruction(best, image), [entropy], rtol=1e-6)
  np.testing.assert_allclose(gradient(best, image), 0.0, atol=1e-8)
  for shift in (-0.5, 0.5):
    assert reconstruction(best + shift, image) > entropy


def test_the_image_is_the_target():
  # A confident and wrong reconstruction costs its logit; with image and reconstruction exchanged, it costs infinitely.
  np.testing.assert_allclose(reconstruction(np.full((1, 2), 30.0), np.zeros((1, 2))), [30.0], rtol=1e-6)


def test_the_size_of_an_image_does_not_matter(rng):
  logits, image = np.float32(rng.normal(size=(2, 4, 4, 1))), np.float32(rng.uniform(size=(2, 4, 4, 1)))
  big = [np.tile(x, (1, 3, 2, 1)) for x in (logits, image)]
  np.testing.assert_allclose(reconstruction(*big), reconstruction(logits, image), rtol=1e-6)


def test_its_gradient_is_reconstruction_minus_image(rng):
  logits, image = np.float32(rng.normal(size=(2, 9))), np.float32(rng.uniform(size=(2, 9)))
  got = gradient(logits, image)
  np.testing.assert_allclose(got, (1 / (1 + np.exp(-logits)) - image) / 9, atol=1e-7)
  check_grads(reconstruction, (logits, image), order=1, modes=("rev",), eps=1e-2, atol=1e-2, rtol=1e-2)


def test_extreme_logits_give_finite_values_and_gradients():
  logits, image = np.array([[-1e4, 1e4, -1e4, 1e4]]), np.array([[0.0, 1.0, 1.0, 0.25]])
  np.testing.assert_allclose(reconstruction(logits, image), [(1e4 + 0.75e4) / 4], rtol=1e-6)
  got = gradient(logits, image)
  np.testing.assert_allclose(4 * got, [[0.0, 0.0, -1.0, 0.75]], atol=1e-6)


def test_bfloat16_is_averaged_in_float32(rng):
  logits, image = (x.astype(jnp.bfloat16) for x in (rng.normal(size=(2, 99)), rng.uniform(size=(2, 99))))
  got = reconstruction(logits, image)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, reconstruction(np.float32(logits), np.float32(image)), rtol=1e-6)
