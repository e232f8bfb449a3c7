"""Random geometric transforms: the coordinates from which the pixels of an augmented image are sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

if TYPE_CHECKING:
  from vamcei_jax.config.schema import AugmentConfig

_UPRIGHT = 0.1  # of the largest rotation, for images that stay upright


def random_coordinates(key: Array, shape: tuple[int, ...], size: tuple[int, int], strengths: AugmentConfig) -> Array:
  """Draws a random crop, shift, rotation, scale and reflection.

  Args:
    key: PRNG key.
    shape: (H, W) of the image.
    size: (h, w) of the result. Without a shift, an unrotated crop of the original scale stays inside of the image.
      Without rotation and scale, it moves by whole pixels, so that no pixel is interpolated.
    strengths: its fields rotation, scale, shift, flip and upright, see `augment`.

  Returns:
    (2, h, w) row and column, in pixels of the image, of each pixel of the result.
  """
  keys = jax.random.split(key, 4)
  sides = jnp.array(shape, jnp.float32)
  room = jnp.maximum((sides - jnp.array(size)) / 2.0, 0.0)
  centre = (sides - 1.0) / 2.0 + jax.random.uniform(keys[0], (2,), minval=-1.0, maxval=1.0) * (room + strengths.shift)
  if not (strengths.rotation or strengths.scale):
    first = centre - (jnp.array(size) - 1.0) / 2.0
    centre += jnp.round(first) - first
  angle = strengths.rotation * jax.random.uniform(keys[1], minval=-1.0, maxval=1.0)
  zoom = jnp.exp(jnp.log1p(strengths.scale) * jax.random.uniform(keys[2], minval=-1.0, maxval=1.0))
  mirrored = jax.random.bernoulli(keys[3], 0.5, (2,)) & jnp.array([axis in strengths.flip for axis in (0, 1)])
  if strengths.upright:
    # A key folded from another one: the numbers of the other draws stay as they were without this strength.
    upright = jax.random.bernoulli(jax.random.fold_in(keys[3], 1), strengths.upright)
    angle, mirrored = jnp.where(upright, _UPRIGHT * angle, angle), mirrored & ~upright
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  matrix = jnp.array([[cos, -sin], [sin, cos]]) / zoom * jnp.where(mirrored, -1.0, 1.0)[None]
  return sample_grid(matrix, centre, size)


def sample_grid(matrix: Array, centre: Array, size: tuple[int, int]) -> Array:
  """Coordinates (2, h, w) of a grid of pixels under a linear map.

  Args:
    matrix: (2, 2) map of the offsets (row, column) from the middle of the grid.
    centre: (2,) coordinates of the middle of the grid.
    size: (h, w) of the grid.
  """
  grid = jnp.stack(jnp.meshgrid(*(jnp.arange(n) - (n - 1) / 2.0 for n in size), indexing="ij"))
  return jnp.einsum("ij,jhw->ihw", matrix, grid) + centre[:, None, None]


def sample_maps(example: dict[str, Array], coordinates: Array) -> dict[str, Array]:
  """Samples the maps of an example, see `augment`, at coordinates (2, h, w) in pixels.

  Images and class probabilities are interpolated linearly, labels take the nearest pixel. Outside of the image,
  images are 0, and labels and probabilities are those of the background.
  """

  def sample(values: Array, order: int) -> Array:
    return map_coordinates(values, [*coordinates], order=order, mode="constant")

  maps = {"image": sample(example["image"], 1)}
  if "label" in example:
    maps["label"] = sample(example["label"], 0)
  if "teacher" in example:
    structures = jnp.moveaxis(example["teacher"][..., 1:].astype(jnp.float32), -1, 0)
    structures = jnp.moveaxis(jax.vmap(lambda values: sample(values, 1))(structures), 0, -1)
    maps["teacher"] = jnp.concatenate([1.0 - structures.sum(-1, keepdims=True), structures], -1)
  return maps
