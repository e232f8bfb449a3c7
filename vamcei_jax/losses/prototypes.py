"""VAMCEI eqs. 9–10: class prototypes, and the contrast between the prototypes of two domains."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Float32

_MIN_WEIGHT = 1e-6  # pixels; a class with less weight is absent
_MIN_SQUARE = 1e-12  # squared length; a shorter vector has no direction


def class_prototypes(
  features: Float[Array, "B H W C"], class_map: Float[Array, "B H W K"], *, axis_name: str | None = None
) -> tuple[Float32[Array, "K C"], Bool[Array, " K"]]:
  """Mean feature vector of every class over the pixels of a batch (VAMCEI eq. 9).

      C_k = Σ_p y_pk f_p / Σ_p y_pk      over the pixels p of all images

  Args:
    features: (B, H, W, C) features f at the resolution of the class map.
    class_map: (B, H, W, K) non-negative weights y: one-hot labels in the source domain, pseudo-labels in the target
      domain, without gradient. A pixel whose prediction is not confident has weight 0 in all classes. Probabilities
      should be 0 except for the largest one of each pixel: otherwise every class is present everywhere.
    axis_name: axis over which the batch is split; both sums are then those of the global batch (see the docstring of
      the package).

  Returns:
    prototypes: (K, C) float32; 0, with zero gradient, for an absent class.
    present: (K,) bool, false for a class whose weights add up to less than 1e-6 pixels.
  """
  features, class_map = features.astype(jnp.float32), class_map.astype(jnp.float32)
  sums = jnp.einsum("bhwk,bhwc->kc", class_map, features, precision="highest"), class_map.sum((0, 1, 2))
  total, weight = sums if axis_name is None else jax.lax.psum(sums, axis_name)
  present = weight >= _MIN_WEIGHT
  return jnp.where(present[:, None], total, 0.0) / jnp.where(present, weight, 1.0)[:, None], present


def prototype_contrast(
  proto_s: Float[Array, "K C"],
  present_s: Bool[Array, " K"],
  proto_t: Float[Array, "K C"],
  present_t: Bool[Array, " K"],
  *,
  temperature: float | Float[Array, ""],
) -> Float32[Array, ""]:
  """Contrast between the class prototypes of two domains, mean over classes (VAMCEI eq. 10).

      −ln[ e^{⟨C_Sk,C_Tk⟩/τ} / ( e^{⟨C_Sk,C_Tk⟩/τ} + Σ_{i≠k} ( e^{⟨C_Sk,C_Ti⟩/τ} + e^{⟨C_Tk,C_Ti⟩/τ} ) ) ]

  ⟨·,·⟩ is the cosine, or 0 if one of the vectors is zero. k runs over the classes that are present in both domains, i
  over the classes that are present in the target domain.

  Args:
    proto_s, proto_t: (K, C) class prototypes of source and target; rows of absent classes are ignored.
    present_s, present_t: (K,) bool, the classes that have a prototype.
    temperature: τ > 0.

  Returns:
    float32 scalar, never negative; 0, with zero gradient, where no class is present in both domains.
  """
  unit_s, unit_t = _directions(proto_s, present_s), _directions(proto_t, present_t)
  st = jnp.matmul(unit_s, unit_t.T, precision="highest") / temperature
  tt = jnp.matmul(unit_t, unit_t.T, precision="highest") / temperature

  same_class = jnp.eye(len(unit_s), dtype=bool)
  others = ~same_class & present_t[None]
  terms = jnp.concatenate([st, tt], axis=1)
  log_sum = jax.nn.logsumexp(terms, axis=1, where=jnp.concatenate([same_class | others, others], axis=1))

  shared = present_s & present_t
  per_class = jnp.where(shared, log_sum - jnp.diagonal(st), 0.0)
  return per_class.sum() / jnp.maximum(shared.sum(), 1)


def _directions(vectors: Array, present: Array) -> Array:
  """Rows scaled to length 1. Absent rows, and rows too short to have a direction, are 0 with finite gradients."""
  vectors = jnp.where(present[:, None], vectors.astype(jnp.float32), 0.0)
  square = (vectors**2).sum(-1, keepdims=True)
  has_direction = square >= _MIN_SQUARE
  return jnp.where(has_direction, vectors, 0.0) * jax.lax.rsqrt(jnp.where(has_direction, square, 1.0))
