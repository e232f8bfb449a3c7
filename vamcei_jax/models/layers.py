"""The layers that the networks share: convolution block, upsampling, norms, 1×1 convolution and average pooling."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from vamcei_jax.models.cpu_gradients import depth_to_space, multiply, normalize, relu

GROUPS = 8  # of group norm

he_normal = nn.initializers.he_normal()


class ConvBlock(nn.Module):
  """Several times (3×3 convolution, norm, ReLU): (B, H, W, C) -> (B, H, W, widths[-1]).

  Attributes:
    widths: channels of each convolution.
    norm: a key of NORMS.
    affine: whether norms have a scale and a bias.
    bias: whether convolutions have a bias. A norm over the image removes it, so it only costs time.
    dtype: of the computation.
  """

  widths: tuple[int, ...]
  norm: str = "instance"
  affine: bool = True
  bias: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "B H W C"], dropped: Float[Array, "B {self.widths[0]}"] | None = None
  ) -> Float[Array, "B H W {self.widths[-1]}"]:
    """The features of x.

    Args:
      x: features.
      dropped: a factor for each channel after the first ReLU, see drop_channels; None for 1.
    """
    for number, width in enumerate(self.widths):
      x = nn.Conv(width, (3, 3), use_bias=self.bias, kernel_init=he_normal, dtype=self.dtype)(x)
      x = relu(NORMS[self.norm](self.dtype, self.affine)(x))
      if number == 0 and dropped is not None:
        x = x * dropped[:, None, None].astype(x.dtype)
    return x


def drop_channels(keys: Key[Array, " B"], channels: int, rate: float) -> Float[Array, "B {channels}"]:
  """Dropout2d: a factor for each channel of each image, 0 with probability `rate`, else 1 / (1 - rate)."""
  keeps = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, (channels,)))(keys)
  return keeps / (1.0 - rate)


class Upsample(nn.Module):
  """2×2 transposed convolution of stride 2: (B, H, W, C) -> (B, 2H, 2W, width).

  Written as a matrix product and a shuffle of pixels, which is the same map and a faster program on CPUs.

  Attributes:
    width: channels.
    dtype: of the computation.
    shared_bias: whether there is one bias a channel, as in PyTorch, and not one for each of 2×2 pixels.
  """

  width: int
  dtype: Any = jnp.float32
  shared_bias: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H*2 W*2 {self.width}"]:
    product = lambda x, kernel, *_, **__: multiply(x, kernel)
    dense = nn.Dense(4 * self.width, not self.shared_bias, dtype=self.dtype, kernel_init=he_normal, dot_general=product)
    x = depth_to_space(dense(x))
    if not self.shared_bias:
      return x
    return x + self.param("bias", nn.initializers.zeros, (self.width,)).astype(x.dtype)[None, None, None]


class InstanceNorm(nn.Module):
  """`nn.InstanceNorm`, with the same parameters or, if not affine, none: (B, H, W, C) -> the same shape in `dtype`."""

  dtype: Any = jnp.float32
  affine: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    make = self.param if self.affine else lambda name, init, shape: init(None, shape)
    scale = make("scale", nn.initializers.ones, x.shape[-1:])
    bias = make("bias", nn.initializers.zeros, x.shape[-1:])
    return normalize(x.astype(self.dtype), scale, bias)


# Name in `config.model.norm` -> norm for a dtype, affine or not.
NORMS = {
  "instance": lambda dtype, affine=True: InstanceNorm(dtype=dtype, affine=affine),
  "group": lambda dtype, affine=True: nn.GroupNorm(GROUPS, dtype=dtype, use_bias=affine, use_scale=affine),
}


def pointwise(features: int, *, use_bias: bool = True, dtype: Any = None, name: str | None = None) -> nn.Conv:
  """A 1×1 convolution, (B, H, W, C) -> (B, H, W, features), computed as a matrix product.

  Its parameters are those of `nn.Conv`: a kernel (1, 1, C, features) and a bias (features,).
  """
  product = lambda x, kernel, *_, **__: multiply(x, kernel[0, 0])
  return nn.Conv(features, (1, 1), use_bias=use_bias, dtype=dtype, conv_general_dilated=product, name=name)


def average_pool(x: Float[Array, "B H W C"], factor: int) -> Float[Array, "B H//{factor} W//{factor} C"]:
  """Mean over factor×factor windows: (B, H, W, C) -> (B, H/factor, W/factor, C); `factor` must divide H and W."""

  def by_reshape(x: Array) -> Array:
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // factor, factor, width // factor, factor, channels).mean((2, 4))

  textbook = partial(nn.avg_pool, window_shape=(factor, factor), strides=(factor, factor))
  return jax.lax.platform_dependent(x, tpu=textbook, default=by_reshape)
