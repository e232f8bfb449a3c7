"""How far apart two domains are in the latent space, measured by what the losses of adaptation look at."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from vamcei_jax.data.labels import CLASSES
from vamcei_jax.losses import class_prototypes, global_alignment
from vamcei_jax.models.unet import Latent, pool_latent

PIXELS = 20  # of a class in a slice, for its mean to count


def measure_gap(latents: Mapping[str, Sequence[Latent]], classes: Mapping[str, np.ndarray]) -> dict:
  """The distances of "source" and "target".

  Args:
    latents: domain -> latents of all its slices, finest scale first.
    classes: domain -> (N, h, w) true class indices of the same slices.

  Returns:
    "global_kl": estimator -> eqs. 5-8 by scale, in nats a latent dimension.
    "prototype_distance": class -> 1 - cosine of the domains' prototypes (eq. 9), of the classes that both have.
  """
  pooled = {domain: [pool_latent(latent) for latent in own] for domain, own in latents.items()}
  scales = list(zip(pooled["source"], pooled["target"], strict=True))
  alignment = lambda s, t, estimator: float(global_alignment(*s, *t, estimator=estimator)) / s[0].shape[1]
  kl = {name: [alignment(s, t, name) for s, t in scales] for name in ("paper", "pairwise")}

  one_hot = {domain: jax.nn.one_hot(own, len(CLASSES)) for domain, own in classes.items()}
  s, s_present = class_prototypes(latents["source"][0].mu, one_hot["source"])
  t, t_present = class_prototypes(latents["target"][0].mu, one_hot["target"])
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
