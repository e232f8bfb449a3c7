"""Random changes of an image's intensities; pixels stay where they are. Images are (H, W) in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
  from vamcei_jax.config.schema import AugmentConfig

GIN_LAYERS, GIN_WIDTH = 4, 2
IPA_POINTS = 5  # random shares along each axis of an image, between which `blend` interpolates


def change_intensities(image: Array, keys: Sequence[Array], ipa_key: Array, strengths: AugmentConfig) -> Array:
  """Applies every transform of this file whose strength is not 0.

  Args:
    image: (H, W) in [0, 1].
    keys: PRNG keys of gamma, contrast, bias field, blur, noise and GIN.
    ipa_key: PRNG key of the blend of two GIN networks.
    strengths: see `augment`.
  """
  *transform_keys, gin_key = keys
  transforms = (
    (gamma, strengths.gamma),
    (contrast, strengths.contrast),
    (bias_field, strengths.bias),
    (blur, strengths.blur),
    (noise, strengths.noise),
  )
  for (transform, strength), key in zip(transforms, transform_keys, strict=True):
    if strength:
      image = transform(image, key, strength)
  if not strengths.gin:
    return image
  first = gin(image, gin_key, strengths.gin)
  if not strengths.ipa:
    return first
  second_key, blend_key, choice_key = jax.random.split(ipa_key, 3)
  blended = blend(first, gin(image, second_key, strengths.gin), blend_key)
  return jnp.where(jax.random.bernoulli(choice_key, strengths.ipa), blended, first)


def gamma(image: Array, key: Array, strength: float) -> Array:
  """image ** γ, ln γ uniform in ±strength."""
  exponent = jnp.exp(strength * jax.random.uniform(key, minval=-1.0, maxval=1.0))
  return image**exponent


def contrast(image: Array, key: Array, strength: float) -> Array:
  """Scales the image about its mean by 1 ± strength at most, and shifts it by ± strength / 2 at most."""
  scale, shift = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0) * strength
  return jnp.clip((image - image.mean()) * (1.0 + scale) + image.mean() + shift / 2.0, 0.0, 1.0)


def bias_field(image: Array, key: Array, strength: float) -> Array:
  """Multiplies by the exponential of a random bicubic polynomial of the position, whose largest size is strength."""
  y, x = (jnp.linspace(-1.0, 1.0, n) for n in image.shape)
  powers = lambda t: jnp.stack([t**n for n in range(4)])
  coefficients = jax.random.normal(key, (4, 4)).at[0, 0].set(0.0)
  field = jnp.einsum("ij,ih,jw->hw", coefficients, powers(y), powers(x))
  return jnp.clip(image * jnp.exp(strength * field / jnp.abs(field).max()), 0.0, 1.0)


def blur(image: Array, key: Array, strength: float) -> Array:
  """Gaussian blur of a standard deviation uniform in [0, strength] pixels; the kernel ends at 3 pixels."""
  sigma = strength * jax.random.uniform(key) + 1e-3
  offsets = jnp.arange(-3, 4)
  kernel = jax.nn.softmax(-0.5 * (offsets / sigma) ** 2)
  for axis, size in enumerate(image.shape):
    padded = jnp.pad(image, [(3, 3) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
    terms = [kernel[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(7)]
    image = sum(terms, jnp.zeros(()))
  return image


def noise(image: Array, key: Array, strength: float) -> Array:
  """Adds white noise of a standard deviation uniform in [0, strength]."""
  sigma_key, noise_key = jax.random.split(key)
  sigma = strength * jax.random.uniform(sigma_key)
  return jnp.clip(image + sigma * jax.random.normal(noise_key, image.shape), 0.0, 1.0)


def gin(image: Array, key: Array, strength: float) -> Array:
  """Mixes the image with the output of a random shallow network, and scales the result to [0, 1].

  Global intensity non-linear augmentation (Ouyang et al., IEEE TMI 2022, section III-B): the mapping of intensities
  and the local texture become random, shapes stay. Four convolutions of GIN_WIDTH channels, each 1×1 or 3×3, with
  weights and biases from N(0, 1) and leaky ReLUs between them; the share α of its output is uniform in [0, strength].
  Unlike the published code: the image is standardised first, edges are continued rather than padded with 0, the ReLU's
  slope is 0.2 rather than 0.01, and the result has the range [0, 1], which eq. 3 needs, rather than the image's norm.
  """
  share_key, *layer_keys = jax.random.split(key, 1 + GIN_LAYERS)
  share = strength * jax.random.uniform(share_key)
  centred = (image - image.mean()) / jnp.maximum(image.std(), 1e-3)
  x, widths = centred[None], (1, *[GIN_WIDTH] * (GIN_LAYERS - 1), 1)
  for layer, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
    x = _random_convolution(x, layer_keys[layer], fan_in, fan_out)
    if layer < GIN_LAYERS - 1:
      x = jax.nn.leaky_relu(x, 0.2)
  mixed = share * x[0] + (1.0 - share) * centred
  low, high = mixed.min(), mixed.max()
  return (mixed - low) / jnp.maximum(high - low, 1e-3)


def _random_convolution(x: Array, key: Array, fan_in: int, fan_out: int) -> Array:
  """(fan_out, H, W) of (fan_in, H, W): a 1×1 or a 3×3 convolution, with equal probability, of random weights."""
  weight_key, bias_key, size_key = jax.random.split(key, 3)
  kernel = jax.random.normal(weight_key, (3, 3, fan_out, fan_in))
  one_pixel = jnp.zeros((3, 3)).at[1, 1].set(1.0)
  kernel *= jnp.where(jax.random.bernoulli(size_key), one_pixel, 1.0)[..., None, None]
  # Shifts and small products: under vmap, a convolution would become a grouped one, which is slow on CPUs.
  padded, (height, width) = jnp.pad(x, [(0, 0), (1, 1), (1, 1)], mode="edge"), x.shape[1:]
  shifted = [[padded[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]
  terms = [jnp.einsum("oc,chw->ohw", kernel[i, j], shifted[i][j]) for i in range(3) for j in range(3)]
  return sum(terms, jnp.zeros(())) + jax.random.normal(bias_key, (fan_out, 1, 1))


def blend(first: Array, second: Array, key: Array) -> Array:
  """Mean of two images (H, W), weighted by shares that change smoothly over the image.

  Interventional pseudo-correlation augmentation (Ouyang et al., IEEE TMI 2022), for two outputs of `gin` of one image:
  structures of equal brightness get different brightnesses, so that the brightness of one structure does not predict
  another. The share of `first` is interpolated by cubics between IPA_POINTS × IPA_POINTS values from U(0, 1) and then
  scaled to [0, 1]. Unlike the published code, which interpolates logarithms by B-splines, and compares the predictions
  of three augmented images in a loss.
  """
  share = jax.image.resize(jax.random.uniform(key, (IPA_POINTS, IPA_POINTS)), first.shape, "cubic")
  share = (share - share.min()) / jnp.maximum(share.max() - share.min(), 1e-6)
  return share * first + (1.0 - share) * second
