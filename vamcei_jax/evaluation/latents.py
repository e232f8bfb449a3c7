"""The distance between two domains in the latent space, by the quantities that the adaptation losses minimise."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vamcei_jax.data.labels import CLASSES
from vamcei_jax.losses import alignment_by_dimension, class_prototypes

PIXELS = 20  # that a class needs in a slice to have a mean


def measure_gap(
  pooled: Mapping[str, Sequence[tuple]], features: Mapping[str, np.ndarray], classes: Mapping[str, np.ndarray]
) -> dict:
  """The distances between the domains "source" and "target".

  Args:
    pooled: domain -> for each scale, mean and log variance (N, n) of the latents of all slices, from pool_latent.
    features: domain -> (N, h, w, C) means of the full-resolution latent.
    classes: domain -> (N, h, w) true class indices.

  Returns:
    "global_kl": estimator -> eqs. 5-8 for each scale, in nats per latent dimension.
    "prototype_distance": class -> 1 - cosine of the domains' prototypes (eq. 9), for the classes in both domains.
  """
  scales = list(zip(*(jax.tree.map(jnp.asarray, list(pooled[name])) for name in ("source", "target")), strict=True))
  by_scale = [alignment_by_dimension(*s, *t) for s, t in scales]
  kl = {name: [float(by_dimension[name].mean()) for by_dimension in by_scale] for name in ("paper", "pairwise")}

  one_hot = lambda domain: jax.nn.one_hot(classes[domain], len(CLASSES))
  prototypes = lambda domain: class_prototypes(jnp.asarray(features[domain]), one_hot(domain))
  (s, s_present), (t, t_present) = prototypes("source"), prototypes("target")
  cosine = lambda a, b: float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
  distances = {name: 1.0 - cosine(s[k], t[k]) for k, name in enumerate(CLASSES) if s_present[k] and t_present[k]}
  return {"global_kl": kl, "prototype_distance": distances}


def class_means(features: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The mean feature of each class in each slice in which it has at least PIXELS pixels.

  Args:
    features: (N, h, w, C).
    classes: (N, h, w) class indices.

  Returns:
    (P, C) means, and the class indices (P,) that they belong to.
  """
  inside = classes[..., None] == np.arange(len(CLASSES))  # (N, h, w, K)
  sizes = inside.sum((1, 2))
  means = np.einsum("nhwk,nhwc->nkc", inside, features) / np.maximum(sizes, 1)[..., None]
  slices, indices = np.nonzero(sizes >= PIXELS)
  return means[slices, indices], indices
