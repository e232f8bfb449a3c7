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
  # A maximum with a constant reads one array: on CPUs, XLA computes it anew, with the norm before it, in each gradient.
  return jnp.where(x <= 0, 0, x)


@jax.custom_vjp
def multiply(x: Array, kernel: Array) -> Array:
  """The product of pixels (..., C) and a kernel (C, D): (..., D)."""
  return x @ kernel


def _multiply(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return x @ kernel, (x, kernel)


def _multiply_gradients(operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
  x, kernel = operands
  rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
  # As JAX derives it, the kernel's gradient is gradientsᵀ rows, and XLA turns the wider of the two around on CPUs.
  return (gradients @ kernel.T).reshape(x.shape), rows.T @ gradients


multiply.defvjp(_multiply, _multiply_gradients)


def pointwise(features: int, **options: Any) -> nn.Conv:
  """A 1×1 convolution, computed as the matrix product that it is."""
  product = lambda x, kernel, *_, **__: multiply(x, kernel[0, 0])
  return nn.Conv(features, (1, 1), conv_general_dilated=product, **options)


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
  """Maximum over 2×2 windows: (B, H, W, C) -> (B, H/2, W/2, C).

  Where values of a window are equal, the gradient goes to the first. It is `nn.max_pool` with a gradient that knows
  where each maximum was: XLA's looks for it window by window.
  """
  return _max_pool(x)[0]


def _max_pool(x: Array) -> tuple[Array, Array]:
  """The maxima, and where in their windows they are: 0 to 3, row by row."""
  rows = [(x[:, row::2, ::2], x[:, row::2, 1::2]) for row in (0, 1)]
  (upper, in_upper), (lower, in_lower) = ((jnp.maximum(a, b), (b > a).astype(jnp.uint8)) for a, b in rows)
  return jnp.maximum(upper, lower), jnp.where(lower > upper, 2 + in_lower, in_upper)


def _max_pool_gradient(place: Array, gradient: Array) -> tuple[Array]:
  batch, height, width, channels = gradient.shape
  places = jnp.arange(4, dtype=jnp.uint8).reshape(2, 1, 2, 1)
  x = jnp.where(place[:, :, None, :, None] == places, gradient[:, :, None, :, None], 0)
  return (x.reshape(batch, 2 * height, 2 * width, channels),)


max_pool.defvjp(_max_pool, _max_pool_gradient)


def average_pool(x: Array, factor: int) -> Array:
  """Mean over factor×factor windows: (B, H, W, C) -> (B, H/factor, W/factor, C)."""
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // factor, factor, width // factor, factor, channels).mean((2, 4))
