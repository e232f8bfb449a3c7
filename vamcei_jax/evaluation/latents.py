"""How far apart two domains are in the latent space, measured by what the losses of adaptation look at."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vamcei_jax.data.labels import CLASSES
from vamcei_jax.losses import class_prototypes, global_alignment

PIXELS = 20  # of a class in a slice, for its mean to count


def measure_gap(
  pooled: Mapping[str, Sequence[tuple]], features: Mapping[str, np.ndarray], classes: Mapping[str, np.ndarray]
) -> dict:
  """The distances of "source" and "target".

  Args:
    pooled: domain -> (mean, log variance) (N, n) of all its slices by scale, as pool_latent gives them.
    features: domain -> (N, h, w, C) means of the full-resolution latent.
    classes: domain -> (N, h, w) true class indices.

  Returns:
    "global_kl": estimator -> eqs. 5-8 by scale, in nats a latent dimension.
    "prototype_distance": class -> 1 - cosine of the domains' prototypes (eq. 9), of the classes that both have.
  """
  scales = list(zip(pooled["source"], pooled["target"], strict=True))
  alignment = lambda gaussians, name: float(global_alignment(*map(jnp.asarray, gaussians), estimator=name))
  kl = {name: [alignment((*s, *t), name) / s[0].shape[1] for s, t in scales] for name in ("paper", "pairwise")}

  one_hot = lambda domain: jax.nn.one_hot(classes[domain], len(CLASSES))
  prototypes = lambda domain: class_prototypes(jnp.asarray(features[domain]), one_hot(domain))
  (s, s_present), (t, t_present) = prototypes("source"), prototypes("target")
  cosine = lambda a, b: float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
  distances = {name: 1.0 - cosine(s[k], t[k]) for k, name in enumerate(CLASSES) if s_present[k] and t_present[k]}
  return {"global_kl": kl, "prototype_distance": distances}


def class_means(features: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The mean feature of every class with PIXELS or more in a slice: (P, C), and the classes (P,).

  Args:
    features: (N, h, w, C).
    classes: (N, h, w) class indices.
  """
  inside = classes[..., None] == np.arange(len(CLASSES))  # (N, h, w, K)
  sizes = inside.sum((1, 2))
  means = np.einsum("nhwk,nhwc->nkc", inside, features) / np.maximum(sizes, 1)[..., None]
  slices, shown = np.nonzero(sizes >= PIXELS)
  return means[slices, shown], shown
