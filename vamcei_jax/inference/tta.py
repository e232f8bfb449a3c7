"""Test-time augmentation: the mean prediction over rotated, scaled and flipped images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vamcei_jax.config.schema import AugmentConfig
from vamcei_jax.data.augment import sample_grid


def tta_transforms(strengths: AugmentConfig) -> np.ndarray:
  """The transforms of test-time augmentation: (V, 2, 2) matrices of coordinates, the identity first.

  They lie within what training used: rotations and scales half as strong as the largest ones of `config.augment`, both
  ways, and flips along the axes of `augment.flip`.
  """
  angle, zoom = strengths.rotation / 2.0, 1.0 + strengths.scale / 2.0
  rotation = lambda a: np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
  matrices = [np.eye(2)]
  matrices += [rotation(angle), rotation(-angle)] if angle else []
  matrices += [np.eye(2) * zoom, np.eye(2) / zoom] if zoom > 1.0 else []
  matrices += [np.diag(np.where(np.arange(2) == axis, -1.0, 1.0)) for axis in sorted(strengths.flip)]
  return np.stack(matrices)


def average_transforms(predict: Callable[..., Array], matrices: np.ndarray) -> Callable[..., Array]:
  """The mean of a prediction over transformed images, each transformed back before it is averaged.

  Args:
    predict: (params, images (B, h, w, C), ...) -> probabilities (B, h, w, K).
    matrices: (V, 2, 2) of tta_transforms.

  Returns:
    A function like `predict`. A pixel outside of a transformed image is averaged over the others.
  """

  def averaged(params: Any, images: Array, *rest: Any) -> Array:
    def transformed(matrix: Array) -> tuple[Array, Array]:
      back = jnp.linalg.inv(matrix)
      inside = _warp(_warp(jnp.ones((1, *images.shape[1:3], 1)), matrix), back)
      return _warp(predict(params, _warp(images, matrix), *rest), back), inside

    # One after the other: memory stays that of one prediction, and the network is compiled once.
    probs, inside = jax.lax.map(transformed, jnp.asarray(matrices, jnp.float32))
    probs = (probs * inside).sum(0)
    return probs / probs.sum(-1, keepdims=True)

  return averaged


def _warp(maps: Array, matrix: Array) -> Array:
  """Maps (B, h, w, C), sampled at coordinates that a matrix moves about the middle; 0 outside of the image."""
  height, width = maps.shape[1:3]
  coordinates = list(sample_grid(matrix, (jnp.array([height, width]) - 1.0) / 2.0, (height, width)))
  sample = lambda x: jax.scipy.ndimage.map_coordinates(x, coordinates, order=1, mode="constant")
  return jnp.moveaxis(jax.vmap(jax.vmap(sample))(jnp.moveaxis(maps, -1, 1)), 1, -1)
