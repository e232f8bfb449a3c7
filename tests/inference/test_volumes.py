"""Volumes in batches: shapes, padding and keys."""

import jax
import numpy as np
import pytest

from vamcei_jax.inference.volumes import BATCH, predict_volume


def test_the_key_of_a_slice_depends_only_on_its_number():
  predict = lambda params, images, keys: jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
  key, depth = jax.random.key(3), BATCH + 3
  drawn = predict_volume(predict, None, np.zeros((depth, 4, 4), np.float32), key)
  assert drawn.shape == (depth, 4, 4, 1)
  expected = [jax.random.normal(jax.random.fold_in(key, n), (4, 4, 1)) for n in range(depth)]
  np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("depth", [1, BATCH - 1, BATCH, BATCH + 1])
def test_volumes_of_any_depth_are_predicted_in_batches_of_one_shape(depth):
  shapes = []

  def predict(params, images):
    shapes.append(images.shape)
    return np.concatenate([1.0 - params * images, params * images], -1)

  image = np.random.default_rng(0).random((depth, 4, 6)).astype(np.float32)
  probs = predict_volume(predict, 0.5, image)
  np.testing.assert_allclose(probs[..., 1], 0.5 * image)
  assert set(shapes) == {(BATCH, 4, 6, 1)}
