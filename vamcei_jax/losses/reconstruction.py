"""VAMCEI eq. 3: the reconstruction term of the variational bound."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32


def reconstruction(logits: Float[Array, " B *pixels"], image: Float[Array, " B *pixels"]) -> Float32[Array, " B"]:
  """Binary cross-entropy of the decoder's output against the image, per image, in nats per pixel (VAMCEI eq. 3).

      −mean( x log p + (1 − x) log(1 − p) ),  p = sigmoid(logits)

  The image x is the target and p the reconstruction; the printed eq. 3 has the two exchanged. The minimum is at
  logits = logit(x). The loss there is the mean entropy of x and not 0.

  Args:
    logits: (B, ...) output of the decoder before the sigmoid.
    image: (B, ...) of the same shape, in [0, 1].

  Returns:
    (B,) float32, the mean over pixels and channels (not their sum, which a bound in nats per image would have).
  """
  logits, image = logits.astype(jnp.float32), image.astype(jnp.float32)
  per_pixel = -image * jax.nn.log_sigmoid(logits) - (1.0 - image) * jax.nn.log_sigmoid(-logits)
  return per_pixel.reshape(len(logits), -1).mean(-1)
