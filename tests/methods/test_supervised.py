import jax
import jax.numpy as jnp
import numpy as np

from vamcei_jax.losses import segmentation
from vamcei_jax.methods.supervised import deep_segmentation
from vamcei_jax.models.unet import Segmentation


def test_every_scale_is_supervised_in_place():
  """Coarse logits that are right where the coarse pixel's window is cost next to nothing; moved by one pixel, a lot."""
  labels = jnp.zeros((1, 16, 16), jnp.int32).at[:, 4:12, 8:16].set(2)
  certain = lambda classes: 30.0 * jax.nn.one_hot(classes, 4)
  fine, coarse = certain(labels), certain(jnp.zeros((1, 4, 4), jnp.int32).at[:, 1:3, 2:4].set(2))
  output = lambda coarse: Segmentation(fine, (fine, certain(labels[:, ::2, ::2]), coarse), ())
  assert sum(deep_segmentation(output(coarse), labels)) < 1e-3
  assert sum(deep_segmentation(output(jnp.roll(coarse, 1, axis=1)), labels)) > 1.0


def test_a_coarse_pixel_has_the_most_frequent_class_of_its_window():
  labels = jnp.array([[[1, 0, 0, 0], [0, 0, 2, 2], [3, 3, 0, 1], [3, 0, 1, 1]]])
  logits = jax.random.normal(jax.random.key(0), (1, 2, 2, 4))
  fused = jax.random.normal(jax.random.key(1), (1, 4, 4, 4))
  got = deep_segmentation(Segmentation(fused, (fused, logits), ()), labels)
  expected = 2 * np.array(segmentation(fused, labels)) + np.array(segmentation(logits, jnp.array([[[0, 0], [3, 1]]])))
  np.testing.assert_allclose(got, expected, rtol=1e-5)
