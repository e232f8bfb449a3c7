"""The blocks that the networks are made of."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

he_normal = nn.initializers.he_normal()

GROUPS = 8  # of group norm
EPSILON = 1e-6  # of instance norm, as in Flax


@jax.custom_vjp
def normalize(x: Array, scale: Array, bias: Array) -> Array:
  """Every image's channels with mean 0 and variance 1, times `scale`, plus `bias`: (B, H, W, C), (C,), (C,) -> as x.

  Statistics are float32. For the gradient only x is kept, where autodiff of Flax's norm also keeps x less its mean.
  """
  return _normalize_forward(x, scale, bias)[0]


def _normalize_forward(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
  exact = x.astype(jnp.float32)
  mean = exact.mean((1, 2), keepdims=True)
  variance = jnp.maximum((exact**2).mean((1, 2), keepdims=True) - mean**2, 0)
  rate = jax.lax.rsqrt(variance + EPSILON)
  return ((exact - mean) * (rate * scale) + bias).astype(x.dtype), (x, scale, mean, rate)


def _normalize_backward(kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
  x, scale, mean, rate = kept
  exact, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
  of_bias = gradient.sum((1, 2), keepdims=True)
  # Sums of what is there already: XLA for CPUs would write gradient · (x − mean) to memory first.
  of_scale = rate * ((gradient * exact).sum((1, 2), keepdims=True) - mean * of_bias)
  pixels = x.shape[1] * x.shape[2]
  of_x = rate * scale * (gradient - of_bias / pixels - (exact - mean) * (rate * of_scale / pixels))
  return of_x.astype(x.dtype), of_scale.sum((0, 1, 2)), of_bias.sum((0, 1, 2))


normalize.defvjp(_normalize_forward, _normalize_backward)


class InstanceNorm(nn.Module):
  """`nn.InstanceNorm` of inputs of `dtype`, with the gradient of `normalize`: (B, H, W, C) -> the same.

  Its parameters have Flax's names.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    return normalize(x.astype(self.dtype), scale, bias)


NORMS = {
  "instance": lambda dtype: InstanceNorm(dtype=dtype),
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
    product = lambda x, kernel, *_, **__: multiply(x, kernel)
    x = nn.Dense(4 * self.width, kernel_init=he_normal, dtype=self.dtype, dot_general=product)(x)
    return depth_to_space(x)


@jax.custom_vjp
def depth_to_space(x: Array) -> Array:
  """Four neighbours from the channels of a pixel, row by row: (B, H, W, 4C) -> (B, 2H, 2W, C)."""
  batch, height, width, depth = x.shape
  x = x.reshape(batch, height, width, 2, 2, depth // 4).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, 2 * height, 2 * width, depth // 4)


def _space_to_depth(_: None, gradient: Array) -> tuple[Array]:
  # Not the reverse of the shuffle: through it XLA for CPUs would move the sum for the bias of an up-convolution, to an
  # array of six dimensions, which is summed up slowly.
  return (jnp.concatenate([gradient[:, row::2, column::2] for row in (0, 1) for column in (0, 1)], -1),)


depth_to_space.defvjp(lambda x: (depth_to_space(x), None), _space_to_depth)


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
