"""Whole volumes through a network: slices in batches of one fixed shape, and the mean over several views of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict
from scipy import ndimage

from vamcei_jax.data.augment import sample_grid
from vamcei_jax.prng import example_keys

BATCH = 16


def predict_volume(predict: Callable, params, image: np.ndarray, key: Array | None = None) -> np.ndarray:
  """Class probabilities (D, h, w, K) of a prepared volume (D, h, w).

  Args:
    predict: jitted (params, images (B, h, w, 1), keys (B,), if there is one) -> probabilities (B, h, w, K). It sees
      batches of BATCH slices, the last one padded with zeros, so volumes of any depth share one compilation.
    key: for networks that draw their latents; each slice's own is folded from it and the slice's number.
  """
  depth = len(image)
  padded = np.pad(image, ((0, -depth % BATCH), (0, 0), (0, 0)))[..., None]
  starts = range(0, len(padded), BATCH)
  arguments = [(padded[start : start + BATCH],) for start in starts]
  if key is not None:
    keys = example_keys(key, jnp.arange(len(padded)))
    arguments = [(*own, keys[start : start + BATCH]) for own, start in zip(arguments, starts, strict=True)]
  return np.concatenate([np.asarray(predict(params, *own)) for own in arguments])[:depth]


def trained_views(strengths: ConfigDict) -> np.ndarray:
  """The views that test-time augmentation takes the mean of: (V, 2, 2) matrices of coordinates, the identity first.

  No view that training has not shown: rotations and scales half as strong as `config.augment` has at most, both ways,
  and mirrored images only along the axes of `augment.flip`.
  """
  angle, zoom = strengths.rotation / 2.0, 1.0 + strengths.scale / 2.0
  rotation = lambda a: np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
  views = [np.eye(2)]
  views += [rotation(angle), rotation(-angle)] if angle else []
  views += [np.eye(2) * zoom, np.eye(2) / zoom] if zoom > 1.0 else []
  views += [np.diag(np.where(np.arange(2) == axis, -1.0, 1.0)) for axis in sorted(strengths.flip)]
  return np.stack(views)


def average_views(predict: Callable, matrices: np.ndarray) -> Callable:
  """The mean of a prediction over views of the images, each put back before it is averaged.

  Args:
    predict: (params, images (B, h, w, C), …) -> probabilities (B, h, w, K).
    matrices: (V, 2, 2) of trained_views.

  Returns:
    A function like `predict`. Where a view does not see a pixel, the other ones decide.
  """

  def averaged(params, images: Array, *rest) -> Array:
    def look(matrix: Array) -> tuple[Array, Array]:
      back = jnp.linalg.inv(matrix)
      seen = _warp(_warp(jnp.ones((1, *images.shape[1:3], 1)), matrix), back)
      return _warp(predict(params, _warp(images, matrix), *rest), back), seen

    # One after the other: memory stays that of one view, and the network is compiled once.
    probs, seen = jax.lax.map(look, jnp.asarray(matrices, jnp.float32))
    probs = (probs * seen).sum(0)
    return probs / probs.sum(-1, keepdims=True)

  return averaged


def find_heart(probs: np.ndarray) -> tuple[float, float] | None:
  """Where the heart stands in a stack (row, column), by class probabilities (D, h, w, K); None if none is seen.

  The centre of mass of the structures over all slices, of their largest connected patch: what a network takes for a
  heart elsewhere does not draw the centre there.
  """
  plane = (probs.argmax(-1) > 0).sum(axis=0)
  patches, count = ndimage.label(plane)
  if not count:
    return None
  sizes = ndimage.sum_labels(plane, patches, np.arange(1, count + 1))
  return ndimage.center_of_mass(plane * (patches == 1 + sizes.argmax()))


def _warp(maps: Array, matrix: Array) -> Array:
  """Maps (B, h, w, C) seen through a matrix of coordinates about their middle; what lies outside is 0."""
  size = maps.shape[1:3]
  where = sample_grid(matrix, (jnp.array(size) - 1.0) / 2.0, size)
  sample = lambda map: jax.scipy.ndimage.map_coordinates(map, where, order=1, mode="constant")
  return jnp.moveaxis(jax.vmap(jax.vmap(sample))(jnp.moveaxis(maps, -1, 1)), 1, -1)
