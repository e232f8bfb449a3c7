"""Uncertainty of a segmenter with latents: entropy of each voxel, and disagreement of latent samples by structure."""

from collections.abc import Iterable, Sequence

import numpy as np

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.evaluation.metrics import dice
from vamcei_jax.evaluation.statistics import sample_std


def entropy(probs: np.ndarray) -> np.ndarray:
  """−Σ_k p_k ln p_k of class probabilities (..., K), in nats: 0 where one class is certain, ln K where none is."""
  return -(probs * np.log(np.maximum(probs, np.finfo(np.float32).tiny))).sum(-1)


def summarise_draws(draws: Iterable[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
  """The mean of class probabilities (D, H, W, K) over latent samples, and the classes (D, H, W) of each sample.

  The iterable is consumed one by one, so that memory holds the probabilities of one sample.
  """
  total, classes = np.zeros(()), []
  for probs in draws:
    total = total + probs
    classes.append(probs.argmax(-1).astype(np.uint8))
  return (total / len(classes)).astype(np.float32), classes


def structure_uncertainty(
  classes: np.ndarray, draws: Sequence[np.ndarray], entropies: np.ndarray, spacing: tuple[float, float, float]
) -> dict[str, dict[str, float | None]]:
  """Uncertainty of each structure of a volume (Roy et al., Bayesian QuickNAT, NeuroImage 195:11-22, 2019).

  Args:
    classes: (D, H, W) class indices of the mask.
    draws: the classes of each draw, (D, H, W).
    entropies: (D, H, W) of the mean probabilities.
    spacing: mm along D, H, W.

  Returns:
    structure -> volume_ml of the mask; volume_std_ml over the draws (n - 1; None for one draw); entropy, the mean over
    the mask's voxels in nats (nan where it has none); agreement, the mean Dice of the draws with the mask.
  """
  millilitres = np.prod(spacing) / 1000.0
  overlaps = [dice(draw, classes) for draw in draws]
  rows = {}
  for index, name in enumerate(STRUCTURES, start=1):
    inside = classes == index
    rows[name] = {
      "volume_ml": float(inside.sum() * millilitres),
      "volume_std_ml": sample_std([float((draw == index).sum() * millilitres) for draw in draws]),
      "entropy": float(entropies[inside].mean()) if inside.any() else float("nan"),
      "agreement": float(np.mean([overlap[name] for overlap in overlaps])),
    }
  return rows
