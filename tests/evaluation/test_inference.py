import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vamcei_jax.evaluation.inference import BATCH, average_views, find_heart, predict_volume, trained_views

STRENGTHS = ConfigDict({"rotation": 0.4, "scale": 0.2, "flip": (1,)})


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def smooth(rng, shape):
  """A smooth random image that vanishes at the border."""
  y, x = (np.linspace(-1, 1, n) for n in shape)
  image = sum(rng.normal() * np.cos(a * y)[:, None] * np.cos(b * x + rng.normal()) for a in (1, 2) for b in (1, 2))
  return (image * np.exp(-4 * (y[:, None] ** 2 + x**2))).astype(np.float32)


def test_a_slice_is_drawn_by_its_own_number_whatever_the_batch(rng):
  """The key of a slice depends on nothing but the volume's key and the slice's number."""
  predict = lambda params, images, keys: jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
  key, depth = jax.random.key(3), BATCH + 3
  drawn = predict_volume(predict, None, np.zeros((depth, 4, 4), np.float32), key)
  assert drawn.shape == (depth, 4, 4, 1)
  own = [jax.random.normal(jax.random.fold_in(key, n), (4, 4, 1)) for n in range(depth)]
  np.testing.assert_array_equal(drawn, own)


def test_views_are_those_that_were_trained():
  matrices = trained_views(STRENGTHS)
  np.testing.assert_array_equal(matrices[0], np.eye(2))
  angles = np.arctan2(matrices[1:3, 1, 0], matrices[1:3, 0, 0])
  np.testing.assert_allclose(angles, (0.2, -0.2))
  np.testing.assert_allclose(matrices[3:5, 0, 0], (1.1, 1 / 1.1))
  np.testing.assert_array_equal(matrices[5], np.diag([1.0, -1.0]))
  assert len(matrices) == 6
  np.testing.assert_array_equal(trained_views(ConfigDict({"rotation": 0.0, "scale": 0.0, "flip": ()})), np.eye(2)[None])


def test_views_of_a_pointwise_network_are_put_back_where_they_were(rng):
  """Where every pixel is judged by itself, no view changes what is said of it, but for interpolation."""

  def predict(params, images):
    return jax.nn.softmax(jnp.concatenate([images, -images, 0.5 * images], -1))

  images = np.stack([smooth(rng, (64, 48)) for _ in range(3)])[..., None]
  expected = predict(None, images)
  got = jax.jit(average_views(predict, trained_views(STRENGTHS)))(None, images)
  assert got.shape == expected.shape
  np.testing.assert_allclose(got.sum(-1), 1.0, atol=1e-5)
  np.testing.assert_allclose(got, expected, atol=0.02)
  assert float(jnp.abs(expected - 1 / 3).max()) > 0.2


def test_the_mean_is_over_what_each_view_says():
  """A network that ignores its images says the same of all views; mirrored, its map is averaged with its mirror."""
  said = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(3), (1, 8, 8)))
  predict = lambda params, images, keys: jnp.broadcast_to(said, (len(images), 8, 8, 3))
  averaged = average_views(predict, trained_views(ConfigDict({"rotation": 0.0, "scale": 0.0, "flip": (0, 1)})))
  got = averaged(None, jnp.zeros((2, 8, 8, 1)), None)
  expected = (said + said[:, ::-1] + said[:, :, ::-1]) / 3
  np.testing.assert_allclose(got, jnp.concatenate([expected, expected]), atol=1e-5)


def test_the_heart_is_the_largest_patch():
  probs = np.zeros((3, 20, 30, 4))
  probs[..., 0] = 0.6
  probs[:2, 4:9, 10:17, 2] = 1.0  # centre (6, 13)
  probs[2, 15:18, 25:28, 3] = 1.0
  assert find_heart(probs) == pytest.approx((6.0, 13.0))
  probs[..., 1:] = 0.0
  assert find_heart(probs) is None


@pytest.mark.parametrize("depth", [1, BATCH - 1, BATCH, BATCH + 1])
def test_a_volume_of_any_depth_goes_through_in_batches_of_one_shape(depth):
  shapes = []

  def predict(params, images):
    shapes.append(images.shape)
    return np.concatenate([1.0 - params * images, params * images], -1)

  image = np.random.default_rng(0).random((depth, 4, 6)).astype(np.float32)
  probs = predict_volume(predict, 0.5, image)
  np.testing.assert_allclose(probs[..., 1], 0.5 * image)
  assert set(shapes) == {(BATCH, 4, 6, 1)}
