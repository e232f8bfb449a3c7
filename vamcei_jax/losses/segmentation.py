"""VAMCEI eq. 4: the supervised segmentation loss, cross-entropy and soft Dice."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32

# s of the docstring, in pixels of the global batch. One pixel has three consequences. A class that is in neither the
# targets nor the prediction costs nothing, as long as its predicted probabilities add up to much less than a pixel. The
# gradient with respect to a pixel's probability stays below 2 / s; the usual 1e-5 would let it reach 1e5 for a class
# that has just vanished. And a structure of 100 pixels that is missed entirely still costs 0.99.
_SMOOTHING = 1.0


def segmentation(
  logits: Float[Array, "B H W K"],
  targets: Float[Array, "B H W K"],
  *,
  balanced: bool = False,
  axis_name: str | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
  """Cross-entropy and soft Dice loss of a batch, the two terms of VAMCEI eq. 4.

      ce   = −Σ_c Σ y_c log p_c / Σ_c Σ y_c                             p = softmax(logits), y the targets
      dice = 1 − mean_c (2 Σ min(p_c, y_c) + s) / (Σ p_c + Σ y_c + s)   classes c = 1 … K − 1, s = 1 pixel

  For one-hot targets, min(p, y) is the product p·y of the usual soft Dice. For class shares, the product would reward
  predictions that are rounded to 0 or 1. With the minimum (Wang et al., "Dice Semimetric Losses", MICCAI 2023), both
  terms are smallest at p = y: dice is 0 there, and ce is the mean entropy of the targets, which is 0 for one-hot ones.

  Σ without an index runs over the pixels of the batch, so a slice that lacks a class is no special case. For a class
  that the batch lacks, dice is 0 if the class is not predicted either, and up to 1 if it is. All gradients are finite.

  Args:
    logits: (B, H, W, K) before the softmax; class 0 is background.
    targets: (B, H, W, K) class shares, which sum to 1 over K: one-hot labels, or their averages over windows.
    balanced: whether ce is the mean over the classes of the batch of −Σ y_c log p_c / Σ y_c: each class counts alike,
      as in the published code, which weighs pixels by the reciprocal of their class's number.
    axis_name: axis over which the batch is split; all sums are then those of the global batch (see the docstring of the
      package).

  Returns:
    (ce, dice): float32 scalars; ce in nats per pixel, dice in [0, 1].
  """
  targets = targets.astype(jnp.float32)
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  p = jnp.exp(log_p)
  sums = {
    "nll": -(targets * log_p).sum((0, 1, 2)),
    "pixels": targets.sum((0, 1, 2)),
    "error": (p + targets - 2.0 * jnp.minimum(p, targets)).sum((0, 1, 2)),
    "sizes": (p + targets).sum((0, 1, 2)),
  }
  if axis_name is not None:
    sums = jax.lax.psum(sums, axis_name)

  dice = sums["error"] / (sums["sizes"] + _SMOOTHING)  # 1 − (2 overlap + s) / (sizes + s), without its cancellation
  if not balanced:
    return sums["nll"].sum() / sums["pixels"].sum(), dice[1:].mean()
  present = sums["pixels"] > 0
  return (sums["nll"] / jnp.where(present, sums["pixels"], 1.0)).sum() / present.sum(), dice[1:].mean()
