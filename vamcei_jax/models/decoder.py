"""The decoders of eq. 3: images from latents and classes."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from vamcei_jax.models.layers import ConvBlock, pointwise


class Decoder(nn.Module):
  """Logits of p(x | y, z) for one domain at one scale (VAMCEI eq. 3).

  Takes z: (B, h, w, C) and the class map y: (B, h, w, K); returns image logits (B, h, w, 1).
  """

  width: int
  norm: str = "instance"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: Array, class_map: Array) -> Array:
    x = ConvBlock(self.width, self.norm, self.dtype)(jnp.concatenate([z, class_map.astype(z.dtype)], -1))
    return pointwise(1)(x)
