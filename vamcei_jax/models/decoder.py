"""VAMCEI eq. 3: the decoders, which reconstruct images from latents and class maps."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from vamcei_jax.models.layers import ConvBlock, pointwise


class Decoder(nn.Module):
  """Logits of p(x | y, z) for one domain at one scale (VAMCEI eq. 3).

  Takes z: (B, h, w, C) and the class map y: (B, h, w, K); returns image logits (B, h, w, 1).

  Attributes:
    widths: channels of its 3×3 convolutions; (128, 128, 64, 64, 32, 32) as published.
    norm: a key of `layers.NORMS`; affine.
    bias: whether these convolutions have a bias.
    head: "pointwise" for a last convolution of 1×1; "convolution" for 3×3, as published.
    dtype: of the computation.
  """

  widths: tuple[int, ...]
  norm: str = "instance"
  bias: bool = False
  head: str = "pointwise"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "B h w C"], class_map: Float[Array, "B h w K"]) -> Float[Array, "B h w 1"]:
    block = ConvBlock(self.widths, self.norm, bias=self.bias, dtype=self.dtype)
    x = block(jnp.concatenate([z, class_map.astype(z.dtype)], -1))
    return pointwise(1)(x) if self.head == "pointwise" else nn.Conv(1, (3, 3))(x.astype(jnp.float32))
