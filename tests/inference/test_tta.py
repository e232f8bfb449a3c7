"""Test-time augmentation: transforms, their inverses and the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamcei_jax.config.schema import AugmentConfig
from vamcei_jax.inference.tta import average_transforms, tta_transforms

STRENGTHS = AugmentConfig(rotation=0.4, scale=0.2, flip=(1,))


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def smooth(rng, shape):
  """A smooth random image that vanishes at the border."""
  y, x = (np.linspace(-1, 1, n) for n in shape)
  image = sum(rng.normal() * np.cos(a * y)[:, None] * np.cos(b * x + rng.normal()) for a in (1, 2) for b in (1, 2))
  return (image * np.exp(-4 * (y[:, None] ** 2 + x**2))).astype(np.float32)


def test_transforms_are_half_as_strong_as_in_training():
  matrices = tta_transforms(STRENGTHS)
  np.testing.assert_array_equal(matrices[0], np.eye(2))
  angles = np.arctan2(matrices[1:3, 1, 0], matrices[1:3, 0, 0])
  np.testing.assert_allclose(angles, (0.2, -0.2))
  np.testing.assert_allclose(matrices[3:5, 0, 0], (1.1, 1 / 1.1))
  np.testing.assert_array_equal(matrices[5], np.diag([1.0, -1.0]))
  assert len(matrices) == 6
  np.testing.assert_array_equal(tta_transforms(AugmentConfig(rotation=0.0, scale=0.0)), np.eye(2)[None])


def test_predictions_of_a_pointwise_network_are_transformed_back(rng):
  """Such a network commutes with every transform, up to interpolation."""

  def predict(params, images):
    return jax.nn.softmax(jnp.concatenate([images, -images, 0.5 * images], -1))

  images = np.stack([smooth(rng, (64, 48)) for _ in range(3)])[..., None]
  expected = predict(None, images)
  got = jax.jit(average_transforms(predict, tta_transforms(STRENGTHS)))(None, images)
  assert got.shape == expected.shape
  np.testing.assert_allclose(got.sum(-1), 1.0, atol=1e-5)
  np.testing.assert_allclose(got, expected, atol=0.02)
  assert float(jnp.abs(expected - 1 / 3).max()) > 0.2


def test_the_mean_is_over_the_predictions_of_all_transforms():
  """A network that ignores its images predicts one map for all; it is averaged with its mirror images."""
  probs = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(3), (1, 8, 8)))
  predict = lambda params, images, keys: jnp.broadcast_to(probs, (len(images), 8, 8, 3))
  averaged = average_transforms(predict, tta_transforms(AugmentConfig(rotation=0.0, scale=0.0, flip=(0, 1))))
  got = averaged(None, jnp.zeros((2, 8, 8, 1)), None)
  expected = (probs + probs[:, ::-1] + probs[:, :, ::-1]) / 3
  np.testing.assert_allclose(got, jnp.concatenate([expected, expected]), atol=1e-5)
