"""VAMCEI eq. 3: the decoders, which reconstruct images from latents and class maps."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32

from vamcei_jax.models.layers import ConvBlock, pointwise


class Decoder(nn.Module):
  """Logits of p(x | y, z) for one domain at one scale (VAMCEI eq. 3).

  Takes z: (B, h, w, C) and the class map y: (B, h, w, K); returns image logits (B, h, w, 1).
  """

  width: int
  norm: str = "instance"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: Float32[Array, "B h w C"], class_map: Float[Array, "B h w K"]) -> Float[Array, "B h w 1"]:
    x = ConvBlock(self.width, self.norm, self.dtype)(jnp.concatenate([z, class_map.astype(z.dtype)], -1))
    return pointwise(1)(x)
