"""Augmentation of hearts by their labels: infarct scar in the myocardium, and contraction of the left ventricle."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from vamcei_jax.data.labels import CLASSES

SCAR_BRIGHTNESS = (0.8, 2.5)  # range, relative to the blood of the LV cavity
SCAR_TEXTURE = 0.1  # largest difference between a scar's pixel and the local mean
DILATION = 0.25  # largest dilation of the cavity, relative to its largest contraction
WALL_SCALE = 4.0  # pixels, standard deviation of the Gaussian that measures the depth in the wall: half a usual wall


def contract(coordinates: Array, label: Array, key: Array, strength: float) -> Array:
  """Changes the coordinates that an image is sampled at, so that its left ventricle contracts, or dilates.

  Source and target may show hearts in other phases of the cycle, of other cavities and walls. A contraction takes the
  area πc from the cavity, as if it were round. All else moves towards the cavity's centre and keeps its area, as
  incompressible tissue does: a pixel at the distance r from the centre is sampled at the distance sqrt(r² + c).
  Hence the wall thickens, and distant pixels hardly move.

  Args:
    coordinates: (2, h, w) row and column in the image.
    label: (H, W) class indices. Without an LV, coordinates do not change.
    key: PRNG key.
    strength: largest share of the cavity's area that is taken from it; at most DILATION times as much is added.

  Returns:
    (2, h, w) changed coordinates.
  """
  cavity = label == CLASSES.index("LV")
  offset = coordinates - _centroid(cavity)[:, None, None]
  square_radius, square_distance = cavity.sum() / jnp.pi, (offset**2).sum(0)
  change = strength * jax.random.uniform(key, minval=-DILATION, maxval=1.0) * square_radius
  stretch = jnp.sqrt(1.0 + change / jnp.maximum(square_distance, square_radius - change + 1e-3))
  return coordinates + offset * (stretch[None] - 1.0)


def scar(image: Array, label: Array, key: Array, probability: float) -> Array:
  """Paints infarct scar into the myocardium, as bright as blood or brighter, as in late-gadolinium images.

  bSSFP shows no scar, and a network that was trained on bSSFP alone segments scar as blood. Scars lie in one or two
  sectors about the cavity, see `_scar_shape`. Inside of them, local means become that of the LV cavity, times a factor
  that is log-uniform in SCAR_BRIGHTNESS. Where the product exceeds 1, the whole image is divided by it, so that blood
  is grey beside a bright scar. In walls thinner than WALL_SCALE, and about the small cavities of the apex, the depth in
  the wall is inaccurate, and scars are fainter or missing. Without myocardium or cavity, the image does not change.

  Args:
    image: (H, W) in [0, 1].
    label: (H, W) class indices.
    key: PRNG key.
    probability: of a scar in an image.

  Returns:
    (H, W) in [0, 1].
  """
  keys = jax.random.split(key, 5)
  myo, cavity = label == CLASSES.index("Myo"), label == CLASSES.index("LV")
  alpha = _scar_shape(myo, cavity, keys[:2], keys[4])
  low, high = (math.log(end) for end in SCAR_BRIGHTNESS)
  blood = (cavity * image).sum() / jnp.maximum(cavity.sum(), 1)
  brightness = blood * jnp.exp(jax.random.uniform(keys[2], minval=low, maxval=high))
  # Only brightness may distinguish scar from blood. So the edge between wall and cavity, a rim of pixels that are part
  # of both, is removed from a scar on both of its sides.
  near_myo = _smooth(myo, 2.0)
  rim = jnp.minimum(4.0 * jnp.minimum(near_myo, _smooth(cavity, 2.0)), 1.0)
  local_mean = jnp.where(myo, _smooth(myo * image, 2.0) / jnp.maximum(near_myo, 1e-6), blood)
  texture = (1.0 - rim) * jnp.clip(image - local_mean, -SCAR_TEXTURE, SCAR_TEXTURE)
  filling = blood + _smooth(alpha * myo, 0.7) * (brightness - blood) + texture
  painted = image + alpha * jnp.where(myo, 1.0, cavity * rim) * (filling - image)
  painted = jnp.clip(painted / jnp.maximum(brightness, 1.0), 0.0, 1.0)
  drawn = jax.random.bernoulli(keys[3], probability) & myo.any() & cavity.any()
  return jnp.where(drawn, painted, image)


def _scar_shape(myo: Array, cavity: Array, sector_keys: Array, edge_key: Array) -> Array:
  """Opacity (H, W) in [0, 1] of one sector of scar about the cavity, or of two.

  A sector has any width up to almost the whole ring. It extends from the endocardium outwards (the wavefront of Reimer
  et al., Circulation 1977) to a depth between a fifth of the wall and all of it, with ragged edges.

  Args:
    myo, cavity: (H, W) masks.
    sector_keys: (2,) PRNG keys; the second sector has the probability 1/2.
    edge_key: PRNG key of the ragged edges.
  """
  y, x = jnp.mgrid[: myo.shape[0], : myo.shape[1]].astype(jnp.float32)
  centre = _centroid(cavity)
  direction = jnp.arctan2(y - centre[0], x - centre[1])
  # From about 0 at the endocardium to about 1 at the epicardium.
  inside, outside = _smooth(cavity, WALL_SCALE), _smooth(~(cavity | myo), WALL_SCALE)
  depth = outside / jnp.maximum(inside + outside, 1e-6)
  ragged = _smooth(jax.random.normal(edge_key, myo.shape), 2.0)
  ragged /= jnp.maximum(ragged.std(), 1e-6)
  edge = lambda margin: jax.nn.sigmoid(10.0 * margin + ragged)
  alpha = jnp.zeros_like(ragged)
  for number, probability in enumerate((1.0, 0.5)):
    direction_key, width_key, depth_key, presence_key = jax.random.split(sector_keys[number], 4)
    away = (direction - jax.random.uniform(direction_key, maxval=2.0 * jnp.pi)) % (2.0 * jnp.pi)
    away = jnp.minimum(away, 2.0 * jnp.pi - away)
    half_width = jnp.exp(jax.random.uniform(width_key, minval=jnp.log(0.2), maxval=jnp.log(jnp.pi)))
    reach = jax.random.uniform(depth_key, minval=0.2, maxval=1.1)
    sector = edge(reach - depth) * edge(half_width - away)
    alpha = jnp.maximum(alpha, jnp.where(jax.random.bernoulli(presence_key, probability), sector, 0.0))
  return alpha


def _centroid(mask: Array) -> Array:
  """(2,) row and column of the centroid of a mask (H, W); 0 of an empty one."""
  y, x = jnp.mgrid[: mask.shape[0], : mask.shape[1]].astype(jnp.float32)
  return jnp.stack([(mask * position).sum() / jnp.maximum(mask.sum(), 1) for position in (y, x)])


def _smooth(values: Array, sigma: float) -> Array:
  """Gaussian filter of values (H, W), as two products of matrices: as fast for any standard deviation."""
  gaussian = lambda n: jax.nn.softmax(-0.5 * ((jnp.arange(n)[:, None] - jnp.arange(n)[None]) / sigma) ** 2)
  return gaussian(values.shape[0]) @ values.astype(jnp.float32) @ gaussian(values.shape[1]).T
