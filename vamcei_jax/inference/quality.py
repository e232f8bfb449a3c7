"""The quality of a prediction: what may be wrong with it, and a score."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vamcei_jax.data.labels import STRUCTURES


@dataclasses.dataclass(frozen=True)
class Finding:
  """One thing that may be wrong with a prediction.

  name: short and fixed, to select by.
  text: one sentence on this prediction.
  """

  name: str
  text: str


@dataclasses.dataclass(frozen=True)
class Quality:
  """Findings, and a score in [0, 1].

  The score is the Dice that the network's probabilities predict of its own mask, mean over structures. It is not
  calibrated against true masks.
  """

  findings: tuple[Finding, ...]
  score: float


def assess(probs: np.ndarray, classes: np.ndarray, *, uniform: bool, cut: bool, assumed: Sequence[Finding]) -> Quality:
  """The quality of a prediction.

  Args:
    probs: (D, H, W, K) class probabilities on the volume's grid.
    classes: (D, H, W) class indices of the mask.
    uniform: whether all slices of the volume are blank.
    cut: whether a structure touches the border of the network's field.
    assumed: findings about what was assumed of the volume.
  """
  if uniform:
    return Quality((Finding("uniform image", "all voxels of each slice have one intensity"), *assumed), 0.0)
  findings = []
  for index, name in enumerate(STRUCTURES, start=1):
    if not (classes == index).any():
      findings.append(Finding("structure missing", f"no voxel of the {name}"))
  if cut or touches_border(classes):
    findings.append(Finding("heart cut", "a structure touches the border of the image or of the network's field"))
  return Quality((*findings, *assumed), float(np.mean(expected_dice(probs, classes))))


def expected_dice(probs: np.ndarray, classes: np.ndarray) -> list[float]:
  """The Dice of each structure that its probabilities p predict of its mask m: 2 Σ p m / (Σ p + Σ m), 1 for 0 / 0."""
  scores = []
  for index in range(1, len(STRUCTURES) + 1):
    p, mask = probs[..., index], classes == index
    size = float(p.sum(dtype=np.float64) + mask.sum())
    scores.append(2.0 * float(p[mask].sum(dtype=np.float64)) / size if size else 1.0)
  return scores


def touches_border(classes: np.ndarray) -> bool:
  """Whether a structure (D, H, W) touches the border of a slice."""
  edges = (classes[:, 0], classes[:, -1], classes[:, :, 0], classes[:, :, -1])
  return any(bool(edge.any()) for edge in edges)
