"""The networks of image translation: a ResNet generator and a PatchGAN discriminator (CycleGAN, Zhu et al. 2017)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32

from vamcei_jax.models.cpu_gradients import relu
from vamcei_jax.models.layers import NORMS, Upsample

_normal = nn.initializers.normal(0.02)


class Translator(nn.Module):
  """Images of one domain in the contrast of the other: (B, H, W, 1) -> (B, H, W, 1), both in [0, 1].

  7×7 convolution, two convolutions of stride 2, residual blocks, two upsamplings, 7×7 convolution and sigmoid (c7s1-w,
  d2w, d4w, R4w…, u2w, uw, c7s1-1 in the notation of the paper), with reflection padding. H and W must be divisible by
  4. Upsampling uses 2×2 transposed convolutions; the paper uses 3×3 ones.

  Attributes:
    width: channels at full resolution; 64 as published.
    blocks: residual blocks; 6 for 128×128 images and 9 from 256×256, as published.
    dtype: of the computation; parameters and images are float32.
  """

  width: int = 64
  blocks: int = 9
  norm: str = "instance"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, "B H W 1"]) -> Float32[Array, "B H W 1"]:
    normed = lambda x: NORMS[self.norm](self.dtype)(x)
    x = relu(normed(self._conv(images, self.width, 7)))
    for factor in (2, 4):
      x = relu(normed(self._conv(x, factor * self.width, 3, stride=2)))
    for _ in range(self.blocks):
      inner = relu(normed(self._conv(x, 4 * self.width, 3)))
      x = x + normed(self._conv(inner, 4 * self.width, 3))
    for factor in (2, 1):
      x = relu(normed(Upsample(factor * self.width, self.dtype)(x)))
    return nn.sigmoid(self._conv(x, 1, 7).astype(jnp.float32))

  def _conv(self, x: Array, width: int, size: int, stride: int = 1) -> Array:
    margin = size // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
    conv = nn.Conv(width, (size, size), (stride, stride), padding="VALID", kernel_init=_normal, dtype=self.dtype)
    return conv(padded)


class PatchDiscriminator(nn.Module):
  """Rates each 70×70 patch, near 1 for a real image of the domain: (B, H, W, 1) -> (B, ⌈H/8⌉, ⌈W/8⌉, 1).

  Five 4×4 convolutions of strides 2, 2, 2, 1, 1 (C64-C128-C256-C512 at width 64). There is no sigmoid at the end: the
  loss is least squares.
  """

  width: int = 64
  norm: str = "instance"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, "B H W 1"]) -> Float32[Array, "B -(-H//8) -(-W//8) 1"]:
    conv = lambda width, stride: nn.Conv(width, (4, 4), (stride, stride), kernel_init=_normal, dtype=self.dtype)
    x = nn.leaky_relu(conv(self.width, 2)(images), 0.2)
    for factor, stride in ((2, 2), (4, 2), (8, 1)):
      x = nn.leaky_relu(NORMS[self.norm](self.dtype)(conv(factor * self.width, stride)(x)), 0.2)
    return conv(1, 1)(x).astype(jnp.float32)
