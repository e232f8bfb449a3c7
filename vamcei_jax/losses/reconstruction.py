"""The reconstruction term of the variational bound (VAMCEI eq. 3)."""

import jax
import jax.numpy as jnp
from jax import Array


def reconstruction(logits: Array, image: Array) -> Array:
  """Binary cross-entropy of the decoder's output against the image, per image, in nats a pixel (VAMCEI eq. 3).

      −mean( x log p + (1 − x) log(1 − p) ),  p = sigmoid(logits)

  The image x is the target and p the reconstruction; the printed eq. 3 has the two exchanged. At its minimum, logits
  = logit(x), the loss is the mean entropy of x and not 0.

  Args:
    logits: (B, ...) the decoder's output before the sigmoid.
    image: (B, ...) of the same shape, in [0, 1].

  Returns:
    (B,) float32, the mean over pixels and channels (not the sum that a bound in nats an image has).
  """
  logits, image = logits.astype(jnp.float32), image.astype(jnp.float32)
  per_pixel = -image * jax.nn.log_sigmoid(logits) - (1.0 - image) * jax.nn.log_sigmoid(-logits)
  return per_pixel.reshape(len(logits), -1).mean(-1)
