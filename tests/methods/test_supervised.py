import jax
import jax.numpy as jnp
import numpy as np

from vamcei_jax.losses import segmentation
from vamcei_jax.methods import supervised
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


def test_the_target_of_a_coarse_pixel_is_the_class_shares_of_its_window():
  labels = jnp.array([[[1, 0, 0, 0], [0, 0, 2, 2], [3, 3, 0, 1], [3, 0, 1, 1]]])
  logits = jax.random.normal(jax.random.key(0), (1, 2, 2, 4))
  fused = jax.random.normal(jax.random.key(1), (1, 4, 4, 4))
  got = deep_segmentation(Segmentation(fused, (fused, logits), ()), labels)
  shares = jnp.array([[[[0.75, 0.25, 0, 0], [0.5, 0, 0.5, 0]], [[0.25, 0, 0, 0.75], [0.25, 0.75, 0, 0]]]])
  full, coarse = segmentation(fused, jax.nn.one_hot(labels, 4)), segmentation(logits, shares)
  expected = 2 * np.array(full) + np.array(coarse)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_targets_of_every_scale_keep_the_area_of_every_class(monkeypatch):
  targets = []
  nothing = jnp.zeros(()), jnp.zeros(())
  monkeypatch.setattr(supervised, "segmentation", lambda logits, y, axis_name: targets.append(y) or nothing)
  labels = jax.random.randint(jax.random.key(0), (2, 16, 24), 0, 4)
  scales = [jnp.zeros((2, 16 // 2**s, 24 // 2**s, 4)) for s in range(4)]
  deep_segmentation(Segmentation(scales[0], tuple(scales), ()), labels)
  assert [y.shape for y in targets] == [logits.shape for logits in (scales[0], *scales)]
  for y, windows in zip(targets, (1, 1, 4, 16, 64), strict=True):
    np.testing.assert_array_equal(windows * y.sum((0, 1, 2)), np.bincount(labels.ravel()))
