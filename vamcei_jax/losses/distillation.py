"""VAMCEI eq. 16: knowledge distillation from the mean of the teachers to the student."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32


def distillation(
  student_logits: Float[Array, "B *pixels K"],
  teacher_probs: Float[Array, "B *pixels K"],
  *,
  temperature: float | Float[Array, ""],
) -> Float32[Array, " B"]:
  """Cross-entropy between tempered teacher and tempered student, per image, in nats per pixel (VAMCEI eq. 16).

      −T² mean_pixels Σ_k softmax(log p / T)_k log softmax(logits / T)_k

  T² keeps the size of the gradient independent of T (Hinton et al. 2015). The minimum is at softmax(logits) = p. The
  loss there is T² times the entropy of the tempered teacher and not 0.

  Args:
    student_logits: (B, ..., K) before the softmax.
    teacher_probs: (B, ..., K) probabilities p, which sum to 1 over K and may be exactly 0. They are constants: no
      gradient flows into them.
    temperature: T > 0.

  Returns:
    (B,) float32, the mean over pixels.
  """
  student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
  p = jax.lax.stop_gradient(teacher_probs.astype(jnp.float32))
  possible = p >= jnp.finfo(jnp.float32).tiny
  teacher = jax.nn.softmax(jnp.log(jnp.where(possible, p, 1.0)) / temperature, where=possible)
  per_pixel = -(teacher * student).sum(-1) * temperature**2
  return per_pixel.reshape(len(p), -1).mean(-1)
