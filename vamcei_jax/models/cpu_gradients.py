"""Operations whose gradients are written by hand, because XLA compiles the automatic ones into slow programs for CPUs.

Values and gradients are those of the textbook operations. On TPUs, pooling is the textbook operation: before a TPU
reshapes an array to windows, it copies the array.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, UInt8

EPSILON = 1e-6  # added to the variance in `normalize`, as in Flax


def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """max(x, 0), and NaN of NaN."""
  # XLA for CPUs duplicates an elementwise operation that reads a single large array into all its consumers. So each
  # gradient would recompute a maximum with 0, and the norm before it. A selection reads two arrays, x and the
  # comparison, and is computed once.
  return jnp.where(x <= 0, 0, x)


@jax.custom_vjp
def normalize(
  x: Float[Array, "B H W C"], scale: Float32[Array, " C"], bias: Float32[Array, " C"]
) -> Float[Array, "B H W C"]:
  """Instance norm: each channel of each image gets mean 0 and variance 1, then `scale` and `bias` are applied.

  Args:
    x: (B, H, W, C); the statistics are computed in float32 whatever its dtype.
    scale, bias: (C,).

  Returns:
    (B, H, W, C) in the dtype of x.
  """
  return _normalize_forward(x, scale, bias)[0]


def _normalize_forward(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
  # Of the large arrays, only x is stored for the gradient; automatic differentiation also stores x − mean.
  exact = x.astype(jnp.float32)
  mean = exact.mean((1, 2), keepdims=True)
  variance = jnp.maximum((exact**2).mean((1, 2), keepdims=True) - mean**2, 0)
  rate = jax.lax.rsqrt(variance + EPSILON)
  scale, bias = scale.reshape(1, 1, 1, -1), bias.reshape(1, 1, 1, -1)
  return ((exact - mean) * (rate * scale) + bias).astype(x.dtype), (x, scale, mean, rate)


def _normalize_backward(residuals: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
  x, scale, mean, rate = residuals
  exact, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
  of_bias = gradient.sum((1, 2), keepdims=True)
  # Reductions of arrays that are in memory: XLA for CPUs would first write gradient · (x − mean) to memory.
  of_scale = rate * ((gradient * exact).sum((1, 2), keepdims=True) - mean * of_bias)
  pixels = x.shape[1] * x.shape[2]
  of_x = rate * scale * (gradient - of_bias / pixels - (exact - mean) * (rate * of_scale / pixels))
  return of_x.astype(x.dtype), of_scale.sum((0, 1, 2)), of_bias.sum((0, 1, 2))


normalize.defvjp(_normalize_forward, _normalize_backward)


@jax.custom_vjp
def multiply(x: Float[Array, "*pixels C"], kernel: Float[Array, "C D"]) -> Float[Array, "*pixels D"]:
  """Matrix product of every pixel with a kernel: (..., C), (C, D) -> (..., D)."""
  return x @ kernel


def _multiply_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return x @ kernel, (x, kernel)


def _multiply_backward(operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
  x, kernel = operands
  rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
  # The automatic gradient of the kernel is (gradientsᵀ rows)ᵀ, for which XLA transposes `gradients` on CPUs. In
  # upsampling, `gradients` is the wider operand.
  return (gradients @ kernel.T).reshape(x.shape), rows.T @ gradients


multiply.defvjp(_multiply_forward, _multiply_backward)


@jax.custom_vjp
def depth_to_space(x: Float[Array, "B H W C"]) -> Float[Array, "B H*2 W*2 C//4"]:
  """Spreads the channels of each pixel over 2×2 pixels, row by row: (B, H, W, 4C) -> (B, 2H, 2W, C)."""
  batch, height, width, depth = x.shape
  x = x.reshape(batch, height, width, 2, 2, depth // 4).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, 2 * height, 2 * width, depth // 4)


def _space_to_depth(_: None, gradient: Array) -> tuple[Array]:
  # Not the transposed shuffle: XLA for CPUs would move the sum for the bias gradient of the layer below through it, and
  # sum an array of six dimensions, which is slow.
  return (jnp.concatenate([gradient[:, row::2, column::2] for row in (0, 1) for column in (0, 1)], -1),)


depth_to_space.defvjp(lambda x: (depth_to_space(x), None), _space_to_depth)


def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H//2 W//2 C"]:
  """Maximum over 2×2 windows: (B, H, W, C) -> (B, H/2, W/2, C); H and W must be even.

  Where values of a window are equal, the gradient goes to the first.
  """
  textbook = partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
  return jax.lax.platform_dependent(x, tpu=textbook, default=_max_pool)


@jax.custom_vjp
def _max_pool(x: Array) -> Array:
  return _max_pool_forward(x)[0]


def _max_pool_forward(
  x: Float[Array, "B H W C"],
) -> tuple[Float[Array, "B H//2 W//2 C"], UInt8[Array, "B H//2 W//2 C"]]:
  """The maxima and their positions in the windows: 0 to 3, row by row."""
  # The positions are stored for the gradient, for which XLA would otherwise search every window again.
  first, second, third, fourth = x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]
  upper, lower = jnp.maximum(first, second), jnp.maximum(third, fourth)
  position = jnp.where(lower > upper, 2 + (fourth > third), second > first)
  return jnp.maximum(upper, lower), position.astype(jnp.uint8)


def _max_pool_backward(position: Array, gradient: Array) -> tuple[Array]:
  batch, height, width, channels = gradient.shape
  positions = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
  x = jnp.where(position[:, :, None, :, None] == positions, gradient[:, :, None, :, None], 0)
  return (x.reshape(batch, 2 * height, 2 * width, channels),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
