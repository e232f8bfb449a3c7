"""Facts about the losses of image translation."""

import jax.numpy as jnp
import numpy as np

from vamcei_jax import losses


def test_an_undecided_discriminator_loses_a_quarter():
  half = jnp.full((2, 3, 3, 1), 0.5)
  np.testing.assert_allclose(losses.patch_discriminator_loss(half, half), 0.25)
  np.testing.assert_allclose(losses.translator_loss(half), 0.25)


def test_discriminator_and_translator_want_opposite_answers(rng):
  real, fake = rng.normal(size=(2, 4, 4, 1)), rng.normal(size=(3, 4, 4, 1))
  expected = 0.5 * np.mean((real - 1) ** 2) + 0.5 * np.mean(fake**2)
  np.testing.assert_allclose(losses.patch_discriminator_loss(jnp.float32(real), jnp.float32(fake)), expected, rtol=1e-5)
  assert losses.patch_discriminator_loss(jnp.ones(4), jnp.zeros(4)) == 0.0
  assert losses.translator_loss(jnp.ones(4)) == 0.0


def test_absolute_difference_is_a_mean_and_symmetric(rng):
  a, b = jnp.float32(rng.uniform(size=(2, 5, 5, 1))), jnp.float32(rng.uniform(size=(2, 5, 5, 1)))
  np.testing.assert_allclose(losses.absolute_difference(a, b), np.abs(a - b).mean(), rtol=1e-6)
  assert losses.absolute_difference(a, b) == losses.absolute_difference(b, a)
  assert losses.absolute_difference(a, a) == 0.0
