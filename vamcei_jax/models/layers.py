"""The blocks that the networks are made of."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

he_normal = nn.initializers.he_normal()

GROUPS = 8  # of group norm
NORMS = {
  "instance": lambda dtype: nn.InstanceNorm(dtype=dtype),
  "group": lambda dtype: nn.GroupNorm(num_groups=GROUPS, dtype=dtype),
}


class ConvBlock(nn.Module):
  """Two times (3×3 convolution, norm, ReLU): (B, H, W, C) -> (B, H, W, width)."""

  width: int
  norm: str = "instance"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for _ in range(2):
      x = nn.Conv(self.width, (3, 3), use_bias=False, kernel_init=he_normal, dtype=self.dtype)(x)
      x = nn.relu(NORMS[self.norm](self.dtype)(x))
    return x


class Upsample(nn.Module):
  """2×2 transposed convolution of stride 2: (B, H, W, C) -> (B, 2H, 2W, width).

  Written as a matrix product and a shuffle of pixels, which is the same map and on CPUs the faster program.
  """

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, height, width, _ = x.shape
    x = nn.Dense(4 * self.width, kernel_init=he_normal, dtype=self.dtype)(x)
    x = x.reshape(batch, height, width, 2, 2, self.width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, 2 * height, 2 * width, self.width)


def average_pool(x: Array, factor: int) -> Array:
  """Mean over factor×factor windows: (B, H, W, C) -> (B, H/factor, W/factor, C)."""
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // factor, factor, width // factor, factor, channels).mean((2, 4))
