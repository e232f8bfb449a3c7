"""VAMCEI eqs. 11–12: the discriminator, which predicts the domain of a class map."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


class Discriminator(nn.Module):
  """Five strided 4×4 convolutions on class maps (B, H, W, K) -> logits (B, ⌈H/32⌉, ⌈W/32⌉, 1), positive for source."""

  width: int = 64
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, class_map: Float[Array, "B H W K"]) -> Float[Array, "B -(-H//32) -(-W//32) 1"]:
    x = class_map
    for factor in (1, 2, 4, 8):
      x = nn.leaky_relu(nn.Conv(factor * self.width, (4, 4), (2, 2), dtype=self.dtype)(x), 0.2)
    return nn.Conv(1, (4, 4), (2, 2))(x)
