"""The layers that the networks share: convolution block, upsampling, norms, 1×1 convolution and average pooling."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from vamcei_jax.models.cpu_gradients import depth_to_space, multiply, normalize, relu

GROUPS = 8  # of group norm

he_normal = nn.initializers.he_normal()


class ConvBlock(nn.Module):
  """Two times (3×3 convolution, norm, ReLU): (B, H, W, C) -> (B, H, W, width)."""

  width: int
  norm: str = "instance"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W {self.width}"]:
    for _ in range(2):
      x = nn.Conv(self.width, (3, 3), use_bias=False, kernel_init=he_normal, dtype=self.dtype)(x)
      x = relu(NORMS[self.norm](self.dtype)(x))
    return x


class Upsample(nn.Module):
  """2×2 transposed convolution of stride 2: (B, H, W, C) -> (B, 2H, 2W, width).

  Written as a matrix product and a shuffle of pixels, which is the same map and a faster program on CPUs.
  """

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H*2 W*2 {self.width}"]:
    product = lambda x, kernel, *_, **__: multiply(x, kernel)
    x = nn.Dense(4 * self.width, kernel_init=he_normal, dtype=self.dtype, dot_general=product)(x)
    return depth_to_space(x)


class InstanceNorm(nn.Module):
  """`nn.InstanceNorm`, with the same parameters: (B, H, W, C) -> the same shape in `dtype`."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    return normalize(x.astype(self.dtype), scale, bias)


# Name in `config.model.norm` -> norm for a dtype.
NORMS = {
  "instance": lambda dtype: InstanceNorm(dtype=dtype),
  "group": lambda dtype: nn.GroupNorm(num_groups=GROUPS, dtype=dtype),
}


def pointwise(features: int, *, use_bias: bool = True, dtype: Any = None, name: str | None = None) -> nn.Conv:
  """A 1×1 convolution, (B, H, W, C) -> (B, H, W, features), computed as a matrix product.

  Its parameters are those of `nn.Conv`: a kernel (1, 1, C, features) and a bias (features,).
  """
  product = lambda x, kernel, *_, **__: multiply(x, kernel[0, 0])
  return nn.Conv(features, (1, 1), use_bias=use_bias, dtype=dtype, conv_general_dilated=product, name=name)


def average_pool(x: Float[Array, "B H W C"], factor: int) -> Float[Array, "B H//{factor} W//{factor} C"]:
  """Mean over factor×factor windows: (B, H, W, C) -> (B, H/factor, W/factor, C); `factor` must divide H and W."""
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // factor, factor, width // factor, factor, channels).mean((2, 4))
