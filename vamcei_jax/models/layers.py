"""The blocks that the networks are made of.

The gradient of norm and ReLU is written out: derived by JAX, it costs more passes over the features. What that is worth
is in experiments/results/notes.md.
"""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

he_normal = nn.initializers.he_normal()

GROUPS = 8  # of group norm
EPSILON = 1e-6  # added to variances
NORMS = {
  "instance": lambda dtype, relu=False: InstanceNorm(dtype, relu),
  "group": lambda dtype, relu=False: GroupNorm(dtype, relu),
}


class InstanceNorm(nn.Module):
  """Each image's channel to mean 0 and variance 1, then scaled and shifted: (B, H, W, C) -> (B, H, W, C) of `dtype`.

  The same as Flax's, and with `relu` followed by a ReLU. Statistics are float32.
  """

  dtype: Any = jnp.float32
  relu: bool = False
  groups: ClassVar[int | None] = None  # None: as many as there are channels

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels = x.shape[-1]
    groups = self.groups or channels
    if channels % groups:
      raise ValueError(f"{channels} channels cannot be split into {groups} groups.")
    scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
    return _normalize(x, scale, bias, groups, self.relu, self.dtype)


class GroupNorm(InstanceNorm):
  """The same with one mean and variance for C / GROUPS neighbouring channels."""

  groups: ClassVar[int | None] = GROUPS


class ConvBlock(nn.Module):
  """Two times (3×3 convolution, norm, ReLU): (B, H, W, C) -> (B, H, W, width)."""

  width: int
  norm: str = "instance"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for _ in range(2):
      x = nn.Conv(self.width, (3, 3), use_bias=False, kernel_init=he_normal, dtype=self.dtype)(x)
      x = NORMS[self.norm](self.dtype, relu=True)(x)
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
  return _windows(x, factor).mean((2, 4))


def max_pool(x: Array) -> Array:
  """Maximum over 2×2 windows: (B, H, W, C) -> (B, H/2, W/2, C). Equal maxima share the gradient."""
  return _windows(x, 2).max((2, 4))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normalize(x: Array, scale: Array, bias: Array, groups: int, relu: bool, dtype: Any) -> Array:
  """Group norm (B, H, W, C) -> (B, H, W, C) of `dtype`, by (C,) scale and bias; with or without a ReLU after it."""
  return _normalize_forward(x, scale, bias, groups, relu, dtype)[0]


def _normalize_forward(x, scale, bias, groups, relu, dtype):
  full = x.astype(jnp.float32)
  mean = _group_mean(full, groups)
  variance = jnp.maximum(_group_mean(full**2, groups) - mean**2, 0.0)
  inverse = lax.rsqrt(variance + EPSILON)
  y = (full - mean) * (inverse * scale) + bias
  y = jnp.maximum(y, 0.0) if relu else y
  return y.astype(dtype), (x, mean, inverse, scale, bias)


def _normalize_backward(groups, relu, dtype, saved, grad):
  """Two passes over x and the gradient, one that sums and one that subtracts; derived from the forward it is more."""
  x, mean, inverse, scale, bias = saved
  unit = (x.astype(jnp.float32) - mean) * inverse
  grad = grad.astype(jnp.float32)
  grad = jnp.where(unit * scale + bias > 0.0, grad, 0.0) if relu else grad
  bias_grad, scale_grad = grad.sum((1, 2)), (grad * unit).sum((1, 2))
  share = lambda sums: _spread(scale * sums / (x.shape[1] * x.shape[2]), groups)
  x_grad = inverse * (grad * scale - share(bias_grad) - unit * share(scale_grad))
  return x_grad.astype(x.dtype), scale_grad.sum(0), bias_grad.sum(0)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _group_mean(x: Array, groups: int) -> Array:
  """(B, H, W, C) -> (B, 1, 1, C), the mean over an image's pixels and the channels of a group."""
  return _spread(x.mean((1, 2)), groups)


def _spread(per_channel: Array, groups: int) -> Array:
  """(B, C) -> (B, 1, 1, C), every channel the mean of its group."""
  batch, channels = per_channel.shape
  means = per_channel.reshape(batch, groups, -1).mean(-1, keepdims=True)
  return jnp.broadcast_to(means, (batch, groups, channels // groups)).reshape(batch, 1, 1, channels)


def _windows(x: Array, factor: int) -> Array:
  """(B, H, W, C) -> (B, H/factor, factor, W/factor, factor, C)."""
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // factor, factor, width // factor, factor, channels)
