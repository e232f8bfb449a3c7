"""The blocks that the networks are made of."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

he_normal = nn.initializers.he_normal()

GROUPS = 8  # of group norm
NORMS = {
  "instance": lambda dtype: nn.InstanceNorm(dtype=dtype),
  "group": lambda dtype: nn.GroupNorm(num_groups=GROUPS, dtype=dtype),
}


def relu(x: Array) -> Array:
  """max(x, 0), and NaN of NaN."""
  # XLA for CPUs copies what reads one large array into all its consumers. So a maximum with 0 would be computed anew,
  # with the norm before it, for each gradient; a choice reads two, x and the comparison.
  return jnp.where(x <= 0, 0, x)


@jax.custom_vjp
def multiply(x: Array, kernel: Array) -> Array:
  """The product of pixels (..., C) and a kernel (C, D): (..., D)."""
  return x @ kernel


def _multiply_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return x @ kernel, (x, kernel)


def _multiply_backward(operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
  x, kernel = operands
  rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
  # JAX's own is (gradientsᵀ rows)ᵀ, for which XLA turns the gradients around on CPUs: in upsampling, the wider operand.
  return (gradients @ kernel.T).reshape(x.shape), rows.T @ gradients


multiply.defvjp(_multiply_forward, _multiply_backward)


def pointwise(features: int, *, use_bias: bool = True, dtype: Any = None, name: str | None = None) -> nn.Conv:
  """A 1×1 convolution, (B, H, W, C) -> (B, H, W, features), computed as the product that it is.

  Its parameters are those of `nn.Conv`: a kernel (1, 1, C, features) and a bias.
  """
  product = lambda x, kernel, *_, **__: multiply(x, kernel[0, 0])
  return nn.Conv(features, (1, 1), use_bias=use_bias, dtype=dtype, conv_general_dilated=product, name=name)


class ConvBlock(nn.Module):
  """Two times (3×3 convolution, norm, ReLU): (B, H, W, C) -> (B, H, W, width)."""

  width: int
  norm: str = "instance"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for _ in range(2):
      x = nn.Conv(self.width, (3, 3), use_bias=False, kernel_init=he_normal, dtype=self.dtype)(x)
      x = relu(NORMS[self.norm](self.dtype)(x))
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
    product = lambda x, kernel, *_, **__: multiply(x, kernel)
    x = nn.Dense(4 * self.width, kernel_init=he_normal, dtype=self.dtype, dot_general=product)(x)
    x = x.reshape(batch, height, width, 2, 2, self.width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, 2 * height, 2 * width, self.width)


@jax.custom_vjp
def max_pool(x: Array) -> Array:
  """Maximum over 2×2 windows: (B, H, W, C) -> (B, H/2, W/2, C); H and W must be even.

  Where values of a window are equal, the gradient goes to the first, as in `nn.max_pool`. Its gradient knows where the
  maxima were, for which XLA would search every window.
  """
  return _max_pool_forward(x)[0]


def _max_pool_forward(x: Array) -> tuple[Array, Array]:
  """The maxima, and where in their windows they are: 0 to 3, row by row."""
  first, second, third, fourth = x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]
  upper, lower = jnp.maximum(first, second), jnp.maximum(third, fourth)
  place = jnp.where(lower > upper, 2 + (fourth > third), second > first)
  return jnp.maximum(upper, lower), place.astype(jnp.uint8)


def _max_pool_backward(place: Array, gradient: Array) -> tuple[Array]:
  batch, height, width, channels = gradient.shape
  places = jnp.arange(4, dtype=jnp.uint8).reshape(2, 1, 2, 1)
  x = jnp.where(place[:, :, None, :, None] == places, gradient[:, :, None, :, None], 0)
  return (x.reshape(batch, 2 * height, 2 * width, channels),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(x: Array, factor: int) -> Array:
  """Mean over factor×factor windows: (B, H, W, C) -> (B, H/factor, W/factor, C)."""
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // factor, factor, width // factor, factor, channels).mean((2, 4))
