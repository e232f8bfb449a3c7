"""The supervised segmentation loss, cross-entropy and soft Dice (VAMCEI eq. 4)."""

import jax
import jax.numpy as jnp
from jax import Array

# s of the docstring, in pixels of the global batch. One pixel means three things. A class that is in neither the labels
# nor the prediction costs nothing, as long as its predicted probabilities add up to much less than a pixel. The
# gradient with respect to a pixel's probability stays below 2 / s, where the usual 1e-5 lets it jump to 1e5 for a class
# that has just vanished. And a structure of 100 pixels that is missed entirely still costs 0.99.
_SMOOTHING = 1.0


def segmentation(
  logits: Array, labels: Array, *, class_weights: Array | None = None, axis_name: str | None = None
) -> tuple[Array, Array]:
  """Cross-entropy and soft Dice loss of a batch, the two summands of VAMCEI eq. 4.

      ce   = −Σ w_y log p_y / Σ w_y                             p_y the probability of a pixel's label, w_y its weight
      dice = 1 − mean_c (2 Σ p_c y_c + s) / (Σ p_c + Σ y_c + s) classes c = 1 … K − 1, y_c one-hot labels, s = 1 pixel

  Sums run over the pixels of the whole batch, so a slice that lacks a class is no special case. Where the batch lacks
  it, dice is 0 for the class if it is not predicted either, and up to 1 if it is; gradients are finite.

  Args:
    logits: (B, H, W, K) before the softmax; class 0 is background.
    labels: (B, H, W) integers in [0, K).
    class_weights: (K,) weights w of the cross-entropy, by label; None weighs all classes alike. Where every label in
      the batch has weight 0, ce is 0.
    axis_name: axis over which the batch is split; all sums are then those of the global batch (see the package's
      docstring).

  Returns:
    (ce, dice): float32 scalars; ce in nats a pixel, dice in [0, 1].
  """
  logits = logits.astype(jnp.float32)
  one_hot = jax.nn.one_hot(labels, logits.shape[-1])
  pixels = tuple(range(labels.ndim))

  log_p = jax.nn.log_softmax(logits)
  weighted = one_hot if class_weights is None else one_hot * jnp.asarray(class_weights, jnp.float32)
  p = jnp.exp(log_p)
  sums = {
    "nll": -(weighted * log_p).sum(),
    "weight": weighted.sum(),
    "error": (p + one_hot - 2.0 * p * one_hot).sum(pixels),
    "sizes": (p + one_hot).sum(pixels),
  }
  if axis_name is not None:
    sums = jax.lax.psum(sums, axis_name)

  ce = sums["nll"] / jnp.where(sums["weight"] > 0.0, sums["weight"], 1.0)
  dice = sums["error"] / (sums["sizes"] + _SMOOTHING)  # 1 − (2 overlap + s) / (sizes + s), without its cancellation
  return ce, dice[1:].mean()
