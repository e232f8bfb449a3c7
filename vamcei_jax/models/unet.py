"""The segmenters: a U-Net with Gaussian latents (VAMCEI, section III-A), and a plain U-Net for the student."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Key

from vamcei_jax.models.cpu_gradients import max_pool
from vamcei_jax.models.layers import NORMS, ConvBlock, Upsample, average_pool, drop_channels, pointwise

_DROPOUT = 100  # folded into the keys, as the scales are for the noise of the latents
POOL = 4  # latents are averaged over POOL×POOL windows before the global alignment


class Latent(NamedTuple):
  """q(z | x) at one scale and its sample, each (B, h, w, C), in the dtype of the computation."""

  mu: Float[Array, "B h w C"]
  logvar: Float[Array, "B h w C"]
  z: Float[Array, "B h w C"]


class Segmentation(NamedTuple):
  """The output of `VariationalUNet` for a batch; index s of a tuple is the scale 1/2**s of the full resolution.

  Attributes:
    logits: the prediction, fused over scales.
    scale_logits: the prediction of each scale, (B, H/2**s, W/2**s, K).
    latents: of each scale, (B, H/2**s, W/2**s, C).
  """

  logits: Float32[Array, "B H W K"]
  scale_logits: tuple[Float32[Array, "B h w K"], ...]
  latents: tuple[Latent, ...]


class VariationalUNet(nn.Module):
  """U-Net with Gaussian latents after its last decoder blocks (VAMCEI, section III-A).

  The sample of each latent is the input of the next decoder block, so the segmentation is a function of z. Every scale
  has a segmentation head; a last head fuses the scales at full resolution.

  Attributes:
    classes: K, with the background.
    widths: channels from full resolution down; H and W must be divisible by 2**(len(widths) - 1).
    latent_scales: number of last decoder blocks that end in a latent.
    norm: a key of `layers.NORMS`.
    logvar_range: interval of log σ², by a tanh; (-1, 1) as published.
    affine, bias: of norms and of the convolutions before them, see `layers.ConvBlock`; with `bias`, upsampling has one
      bias a channel, see `layers.Upsample`.
    dropout: rate of Dropout2d in decoder blocks, but the second coarsest, as published.
    latent: "pointwise" for 1×1 convolutions to μ and log σ²; "attention" for μ of features that are multiplied by one
      map, and log σ² of a 3×3 convolution, as published.
    heads: "pointwise" for 1×1 convolutions, the last of which fuses logits; "convolution" for 3×3 convolutions, the
      last of which fuse softmax maps, as published.
    dtype: of the computation and the latents; parameters and logits are float32.
  """

  classes: int
  widths: tuple[int, ...]
  latent_scales: int = 3
  norm: str = "instance"
  logvar_range: tuple[float, float] = (-1.0, 1.0)
  affine: bool = True
  bias: bool = False
  dropout: float = 0.0
  latent: str = "pointwise"
  heads: str = "pointwise"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, "B H W 1"], keys: Key[Array, " B"] | None = None, *, train: bool = False
  ) -> Segmentation:
    """Segments images.

    Args:
      images: (B, H, W, 1) in [0, 1].
      keys: (B,) one PRNG key per image, for the noise of z = μ + σ·ε; None for z = μ.
      train: whether channels are dropped; needs keys.
    """
    x, skips = _encode(images, self.widths, self._block)

    latents: list[Latent] = []
    scale_logits: list[Array] = []
    for scale in reversed(range(len(skips))):
      x = Upsample(self.widths[scale], self.dtype, shared_bias=self.bias)(x)
      dropped = None
      if train and self.dropout and keys is not None and scale != len(skips) - 2:
        level_keys = jax.vmap(lambda key, scale=scale: jax.random.fold_in(key, _DROPOUT + scale))(keys)
        dropped = drop_channels(level_keys, self.widths[scale], self.dropout)
      x = self._block(self.widths[scale])(jnp.concatenate([skips[scale], x.astype(skips[scale].dtype)], -1), dropped)
      if scale < self.latent_scales:
        latent = self._latent(x, keys, scale)
        x = latent.z
        latents.insert(0, latent)
        scale_logits.insert(0, self._head(x, scale))
    return Segmentation(self._fuse(scale_logits, images.shape), tuple(scale_logits), tuple(latents))

  def _block(self, width: int, count: int = 2, name: str | None = None) -> ConvBlock:
    return ConvBlock((width,) * count, self.norm, self.affine, self.bias, self.dtype, name=name)

  def _head(self, x: Array, scale: int) -> Array:
    if self.heads == "pointwise":
      return pointwise(self.classes, name=f"head_{scale}")(x)
    if scale == 0:
      x = self._block(self.widths[0], 1, name="head_block")(x)
    return nn.Conv(self.classes, (3, 3), name=f"head_{scale}")(x.astype(jnp.float32))

  def _fuse(self, scale_logits: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """The logits of images of this shape."""
    scales = len(scale_logits)
    resize = lambda maps: jax.image.resize(maps, (*shape[:3], self.classes), "bilinear")
    if self.heads == "pointwise":
      # The fusion starts as the mean over scales: a random one would start with worse logits than those of the scales.
      mean = lambda key, shape, dtype: jnp.tile(jnp.eye(self.classes, dtype=dtype) / scales, (scales, 1))
      fuse = nn.Dense(self.classes, kernel_init=mean, name="head_fused")
      return fuse(jnp.concatenate([resize(logits) for logits in scale_logits], -1))
    maps = jnp.concatenate([resize(jax.nn.softmax(logits)) for logits in scale_logits], -1)
    x = self._block(scales * self.classes, 1, name="fusion_block")(maps)
    return nn.Conv(self.classes, (3, 3), name="head_fused")(x.astype(jnp.float32))

  def _latent(self, x: Array, keys: Array | None, scale: int) -> Latent:
    bounded = lambda x: jnp.tanh(NORMS[self.norm](jnp.float32, self.affine)(x))
    width, low, high = self.widths[scale], *self.logvar_range
    if self.latent == "pointwise":
      conv = partial(pointwise, width, use_bias=False, dtype=self.dtype)
      mu, spread = (conv(name=f"{name}_{scale}")(x) for name in ("mu", "logvar"))
    else:
      mu = x * pointwise(1, dtype=self.dtype, name=f"mu_{scale}")(x)
      spread = nn.Conv(width, (3, 3), dtype=self.dtype, name=f"logvar_{scale}")(x)
    mu, logvar = bounded(mu), low + (high - low) * (bounded(spread) + 1.0) / 2.0
    z = mu
    if keys is not None:
      noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, scale), mu.shape[1:]))(keys)
      z = mu + jnp.exp(0.5 * logvar) * noise
    # Computed in float32, stored in dtype: half the memory in bfloat16.
    return Latent(*(x.astype(self.dtype) for x in (mu, logvar, z)))


class UNet(nn.Module):
  """Plain U-Net, one forward pass without noise: (B, H, W, 1) in [0, 1] -> float32 logits (B, H, W, classes).

  Attributes:
    classes: K, with the background.
    widths: channels from full resolution down; H and W must be divisible by 2**(len(widths) - 1).
    norm: a key of `layers.NORMS`.
    dtype: of the computation; parameters and logits are float32.
  """

  classes: int
  widths: tuple[int, ...]
  norm: str = "instance"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, "B H W 1"]) -> Float32[Array, "B H W {self.classes}"]:
    block = lambda width: ConvBlock((width, width), self.norm, dtype=self.dtype)
    x, skips = _encode(images, self.widths, block)
    for width, skip in zip(self.widths[-2::-1], reversed(skips), strict=True):
      x = Upsample(width, self.dtype)(x)
      x = block(width)(jnp.concatenate([skip, x.astype(skip.dtype)], -1))
    return pointwise(self.classes, name="head")(x.astype(jnp.float32))


def pool_latent(latent: Latent) -> tuple[Float32[Array, "B n"], Float32[Array, "B n"]]:
  """Mean and log variance (B, n) of z averaged over POOL×POOL windows: the input of the global alignment."""
  # The variance of the mean of n independent terms is their mean variance divided by n.
  mu, logvar = latent.mu.astype(jnp.float32), latent.logvar.astype(jnp.float32)
  variance = average_pool(jnp.exp(logvar), POOL) / POOL**2
  flat = lambda x: x.reshape(len(x), -1)
  return flat(average_pool(mu, POOL)), flat(jnp.log(variance))


def _encode(images: Array, widths: tuple[int, ...], block: Callable) -> tuple[Array, list[Array]]:
  """The coarsest features, and the features of every finer level, finest first."""
  x, skips = images, []
  for width in widths[:-1]:
    x = block(width)(x)
    skips.append(x)
    x = max_pool(x)
  return block(widths[-1])(x), skips
