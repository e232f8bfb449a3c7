"""The segmenters: a U-Net with Gaussian latents (VAMCEI, section III-A), and a plain U-Net for the student."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Key

from vamcei_jax.models.cpu_gradients import max_pool
from vamcei_jax.models.layers import NORMS, ConvBlock, Upsample, average_pool, pointwise

POOL = 4  # latents are averaged over POOL×POOL windows before the global alignment


class Latent(NamedTuple):
  """q(z | x) at one scale and its sample, each (B, h, w, C)."""

  mu: Float32[Array, "B h w C"]
  logvar: Float32[Array, "B h w C"]
  z: Float32[Array, "B h w C"]


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
    dtype: of the computation; parameters, latents and logits are float32.
  """

  classes: int
  widths: tuple[int, ...]
  latent_scales: int = 3
  norm: str = "instance"
  logvar_range: tuple[float, float] = (-1.0, 1.0)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, "B H W 1"], keys: Key[Array, " B"] | None = None) -> Segmentation:
    """Segments images.

    Args:
      images: (B, H, W, 1) in [0, 1].
      keys: (B,) one PRNG key per image, for the noise of z = μ + σ·ε; None for z = μ.
    """
    block = lambda width: ConvBlock(width, self.norm, self.dtype)
    x, skips = _encode(images, self.widths, block)

    latents: list[Latent] = []
    scale_logits: list[Array] = []
    for scale in reversed(range(len(skips))):
      x = _decode(x, skips[scale], self.widths[scale], block, self.dtype)
      if scale < self.latent_scales:
        latent = self._latent(x, keys, scale)
        x = latent.z
        latents.insert(0, latent)
        scale_logits.insert(0, pointwise(self.classes, name=f"head_{scale}")(x))

    full = images.shape[1:3]
    resized = [jax.image.resize(l, (len(l), *full, self.classes), "bilinear") for l in scale_logits]
    # The fusion starts as the mean over scales: a random one would start with worse logits than those of the scales.
    mean = lambda key, shape, dtype: jnp.tile(jnp.eye(self.classes, dtype=dtype) / len(resized), (len(resized), 1))
    logits = nn.Dense(self.classes, kernel_init=mean, name="head_fused")(jnp.concatenate(resized, -1))
    return Segmentation(logits, tuple(scale_logits), tuple(latents))

  def _latent(self, x: Array, keys: Array | None, scale: int) -> Latent:
    conv = partial(pointwise, self.widths[scale], use_bias=False, dtype=self.dtype)
    bounded = lambda name: jnp.tanh(NORMS[self.norm](jnp.float32)(conv(name=f"{name}_{scale}")(x)))
    low, high = self.logvar_range
    mu, logvar = bounded("mu"), low + (high - low) * (bounded("logvar") + 1.0) / 2.0
    if keys is None:
      return Latent(mu, logvar, mu)
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, scale), mu.shape[1:]))(keys)
    return Latent(mu, logvar, mu + jnp.exp(0.5 * logvar) * noise)


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
    block = lambda width: ConvBlock(width, self.norm, self.dtype)
    x, skips = _encode(images, self.widths, block)
    for width, skip in zip(self.widths[-2::-1], reversed(skips), strict=True):
      x = _decode(x, skip, width, block, self.dtype)
    return pointwise(self.classes, name="head")(x.astype(jnp.float32))


def pool_latent(latent: Latent) -> tuple[Float32[Array, "B n"], Float32[Array, "B n"]]:
  """Mean and log variance (B, n) of z averaged over POOL×POOL windows: the input of the global alignment."""
  # The variance of the mean of n independent terms is their mean variance divided by n.
  variance = average_pool(jnp.exp(latent.logvar), POOL) / POOL**2
  flat = lambda x: x.reshape(len(x), -1)
  return flat(average_pool(latent.mu, POOL)), flat(jnp.log(variance))


def _encode(images: Array, widths: tuple[int, ...], block: Callable) -> tuple[Array, list[Array]]:
  """The coarsest features, and the features of every finer level, finest first."""
  x, skips = images, []
  for width in widths[:-1]:
    x = block(width)(x)
    skips.append(x)
    x = max_pool(x)
  return block(widths[-1])(x), skips


def _decode(x: Array, skip: Array, width: int, block: Callable, dtype: Any) -> Array:
  """Features at the level of `skip`, from the features x of the next coarser level."""
  x = Upsample(width, dtype)(x)
  return block(width)(jnp.concatenate([skip, x.astype(skip.dtype)], -1))
