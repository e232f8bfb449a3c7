"""Random views of images: pure functions of (image, key), one image at a time, vmapped and run inside the jitted step.

Images are (H, W) in [0, 1] and stay there. A strength of 0 switches a transform off.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates
from ml_collections import ConfigDict


def augment(example: dict[str, Array], key: Array, size: tuple[int, int], strengths: ConfigDict) -> dict[str, Array]:
  """A random view of an example, all of whose maps are moved alike.

  Args:
    example: "image" (H, W) in [0, 1] and, where there are any, "label" (H, W) class indices and "teacher" (H, W, K)
      class probabilities. What comes from outside of them is 0, background.
    key: PRNG key.
    size: (h, w) of the view, a random crop where it is smaller than the image.
    strengths: `config.augment`: rotation (radians), scale (relative), shift (pixels), flip (axes of the image that
      anatomy allows to be mirrored; none in the heart), gamma (log), contrast, bias (log), noise (standard deviation)
      and blur (pixels), each the largest amount drawn.
  """
  geometry, *keys = jax.random.split(key, 6)
  where = random_coordinates(geometry, example["image"].shape, size, strengths)
  sample = lambda map, order: map_coordinates(map, where, order=order, mode="constant")
  view = {"image": sample(example["image"], 1)}
  if "label" in example:
    view["label"] = sample(example["label"], 0)
  if "teacher" in example:
    structures = jnp.moveaxis(example["teacher"][..., 1:].astype(jnp.float32), -1, 0)
    structures = jnp.moveaxis(jax.vmap(lambda map: sample(map, 1))(structures), 0, -1)
    view["teacher"] = jnp.concatenate([1.0 - structures.sum(-1, keepdims=True), structures], -1)

  amounts = (strengths.gamma, strengths.contrast, strengths.bias, strengths.blur, strengths.noise)
  for transform, amount, own_key in zip((gamma, contrast, bias_field, blur, noise), amounts, keys, strict=True):
    if amount:
      view["image"] = transform(view["image"], own_key, amount)
  return view


def random_coordinates(key: Array, shape: tuple[int, int], size: tuple[int, int], strengths: ConfigDict) -> Array:
  """Where in an image of `shape` each pixel of a random view of `size` comes from: (2, h, w) coordinates in pixels."""
  keys = jax.random.split(key, 4)
  shape, size = jnp.array(shape, jnp.float32), tuple(size)
  room = jnp.maximum((shape - jnp.array(size)) / 2.0, 0.0)
  centre = (shape - 1.0) / 2.0 + jax.random.uniform(keys[0], (2,), minval=-1.0, maxval=1.0) * (room + strengths.shift)
  angle = strengths.rotation * jax.random.uniform(keys[1], minval=-1.0, maxval=1.0)
  zoom = jnp.exp(jnp.log1p(strengths.scale) * jax.random.uniform(keys[2], minval=-1.0, maxval=1.0))
  mirrored = jax.random.bernoulli(keys[3], 0.5, (2,)) & jnp.array([axis in strengths.flip for axis in (0, 1)])
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  matrix = jnp.array([[cos, -sin], [sin, cos]]) / zoom * jnp.where(mirrored, -1.0, 1.0)
  return sample_grid(matrix, centre, size)


def sample_grid(matrix: Array, centre: Array, size: tuple[int, int]) -> Array:
  """(2, h, w) coordinates of a grid of `size` about its middle, turned by a (2, 2) matrix and put on `centre`."""
  grid = jnp.stack(jnp.meshgrid(*(jnp.arange(n) - (n - 1) / 2.0 for n in size), indexing="ij"))
  return jnp.einsum("ij,jhw->ihw", matrix, grid) + centre[:, None, None]


def gamma(image: Array, key: Array, strength: float) -> Array:
  """image ** γ, ln γ uniform in ±strength."""
  exponent = jnp.exp(strength * jax.random.uniform(key, minval=-1.0, maxval=1.0))
  return image**exponent


def contrast(image: Array, key: Array, strength: float) -> Array:
  """Scales the image about its mean and shifts it, by up to `strength` and half of it."""
  scale, shift = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0) * strength
  return jnp.clip((image - image.mean()) * (1.0 + scale) + image.mean() + shift / 2.0, 0.0, 1.0)


def bias_field(image: Array, key: Array, strength: float) -> Array:
  """Multiplies by the exponential of a random cubic polynomial of the position, at most ±strength."""
  y, x = (jnp.linspace(-1.0, 1.0, n) for n in image.shape)
  powers = lambda t: jnp.stack([t**n for n in range(4)])
  coefficients = jax.random.normal(key, (4, 4)).at[0, 0].set(0.0)
  field = jnp.einsum("ij,ih,jw->hw", coefficients, powers(y), powers(x))
  return jnp.clip(image * jnp.exp(strength * field / jnp.abs(field).max()), 0.0, 1.0)


def blur(image: Array, key: Array, strength: float) -> Array:
  """Gaussian blur of a width uniform in [0, strength] pixels, cut off at three pixels."""
  sigma = strength * jax.random.uniform(key) + 1e-3
  offsets = jnp.arange(-3, 4)
  kernel = jax.nn.softmax(-0.5 * (offsets / sigma) ** 2)
  for axis, size in enumerate(image.shape):
    padded = jnp.pad(image, [(3, 3) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
    image = sum(kernel[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(7))
  return image


def noise(image: Array, key: Array, strength: float) -> Array:
  """Adds white noise of a standard deviation uniform in [0, strength]."""
  amount, white = jax.random.split(key)
  return jnp.clip(image + strength * jax.random.uniform(amount) * jax.random.normal(white, image.shape), 0.0, 1.0)
