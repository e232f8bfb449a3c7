"""Knowledge distillation from the teachers' mean to the student (VAMCEI eq. 16)."""

import jax
import jax.numpy as jnp
from jax import Array


def distillation(student_logits: Array, teacher_probs: Array, *, temperature: float | Array) -> Array:
  """Cross-entropy between tempered teacher and tempered student, per image, in nats a pixel (VAMCEI eq. 16).

      −T² mean_pixels Σ_k softmax(log p / T)_k log softmax(logits / T)_k

  T² keeps the size of the gradient independent of T (Hinton et al. 2015). At its minimum, softmax(logits) = p, the
  loss is T² times the tempered teacher's entropy and not 0.

  Args:
    student_logits: (B, ..., K) before the softmax.
    teacher_probs: (B, ..., K) probabilities p, which sum to 1 over K and may be exactly 0. They are taken as
      constants: no gradient flows into them.
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
