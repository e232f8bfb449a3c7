"""VAMCEI eqs. 11–12: the adversarial losses on segmentation maps."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32


def discriminator_loss(logits_s: Float[Array, "..."], logits_t: Float[Array, "..."]) -> Float32[Array, ""]:
  """Loss of the discriminator, which learns to tell source maps from target maps (VAMCEI eq. 11).

      −E[log Dis(P_S)] − E[log(1 − Dis(P_T))],   Dis = sigmoid(logits)

  Args:
    logits_s: output of the discriminator on source class maps, before the sigmoid; any shape, one decision per element.
    logits_t: output of the discriminator on target class maps; any shape.

  Returns:
    float32 scalar in nats, the sum of the two means; 2 ln 2 for a discriminator that outputs Dis = ½ everywhere.
  """
  return -_mean_log_sigmoid(logits_s) - _mean_log_sigmoid(-logits_t)


def generator_loss(logits_t: Float[Array, "..."]) -> Float32[Array, ""]:
  """Loss of the segmenter, whose target maps should look like source maps (VAMCEI eq. 12, non-saturating).

      −E[log Dis(P_T)],   Dis = sigmoid(logits)

  Args:
    logits_t: output of the discriminator on target class maps, before the sigmoid; any shape.

  Returns:
    float32 scalar in nats, the mean over all decisions.
  """
  return -_mean_log_sigmoid(logits_t)


def _mean_log_sigmoid(logits: Array) -> Array:
  return jax.nn.log_sigmoid(logits.astype(jnp.float32)).mean()
