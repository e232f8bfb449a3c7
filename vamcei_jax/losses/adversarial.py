"""The adversarial pair on segmentation maps (VAMCEI eqs. 11–12)."""

import jax
import jax.numpy as jnp
from jax import Array


def discriminator_loss(logits_s: Array, logits_t: Array) -> Array:
  """What the discriminator minimizes: source maps are real, target maps are not (VAMCEI eq. 11).

      −E[log Dis(P_S)] − E[log(1 − Dis(P_T))],   Dis = sigmoid(logits)

  Args:
    logits_s, logits_t: the discriminator's output on source and target class maps before its sigmoid; any shape each,
      a decision an element.

  Returns:
    float32 scalar in nats, the sum of the two means; 2 ln 2 for a discriminator that cannot tell.
  """
  return -_mean_log_sigmoid(logits_s) - _mean_log_sigmoid(-logits_t)


def generator_loss(logits_t: Array) -> Array:
  """What the segmenter minimizes: its target maps pass for source maps (VAMCEI eq. 12, not saturating).

      −E[log Dis(P_T)],   Dis = sigmoid(logits)

  Args:
    logits_t: the discriminator's output on target class maps before its sigmoid; any shape.

  Returns:
    float32 scalar in nats, the mean over all decisions.
  """
  return -_mean_log_sigmoid(logits_t)


def _mean_log_sigmoid(logits: Array) -> Array:
  return jax.nn.log_sigmoid(logits.astype(jnp.float32)).mean()
