"""The quality of a prediction: what may be wrong with it, and a score."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from vamcei_jax.data.labels import CLASSES, STRUCTURES

LOW_SCORE = 0.5  # score below which a mask must be looked at
# Of the share of the LV's border without a wall, and of its step from slice to slice in radii: hearts have up to
# _USUAL, and more than _TOO_MUCH is a finding. Chosen on volumes of MS-CMRSeg and EMIDEC.
_USUAL, _TOO_MUCH = 0.1, 0.2
# Volumes in ml that no heart has.
_VOLUMES_ML = {"Myo": (20.0, 400.0), "LV": (15.0, 500.0), "RV": (10.0, 500.0)}


@dataclasses.dataclass(frozen=True)
class Finding:
  """One thing that may be wrong with a prediction.

  Attributes:
    name: short and fixed, to select by.
    text: one sentence on this prediction.

  Example:
    >>> any(finding.name == "heart cut" for finding in prediction.quality.findings)
  """

  name: str
  text: str


@dataclasses.dataclass(frozen=True)
class Quality:
  """Findings, and a score in [0, 1].

  The score is E (1 - w) (1 - s). E is the Dice that the network's probabilities predict for its own mask, mean over
  structures. w is the share of the LV's border that has no wall, s is the LV's step from slice to slice in radii; of
  both, only what exceeds 0.1 counts. They are there because a network can be sure of what is no heart. Predicted
  uncertainty tells the quality of a structure: Roy et al., NeuroImage 195:11-22, 2019; Mehrtash et al., IEEE TMI
  39(12), 2020.

  Attributes:
    findings: what may be wrong.
    score: the Dice that is expected of the mask.

  Example:
    >>> if prediction.quality.score < 0.5:
    ...   print([finding.text for finding in prediction.quality.findings])
  """

  findings: tuple[Finding, ...]
  score: float


def assess(
  probs: np.ndarray,
  classes: np.ndarray,
  volumes_ml: Mapping[str, float],
  *,
  uniform: bool,
  cut: bool,
  assumed: Sequence[Finding],
) -> Quality:
  """The quality of a prediction.

  Args:
    probs: (D, H, W, K) class probabilities on the volume's grid.
    classes: (D, H, W) class indices of the mask.
    volumes_ml: of each structure.
    uniform: whether all slices of the volume are blank.
    cut: whether a structure touches the border of the network's field.
    assumed: findings about what was assumed of the volume.
  """
  if uniform:
    return Quality((Finding("uniform image", "all voxels of each slice have one intensity"), *assumed), 0.0)
  findings = []
  for name, volume in volumes_ml.items():
    low, high = _VOLUMES_ML[name]
    if not volume:
      findings.append(Finding("structure missing", f"no voxel of the {name}"))
    elif not low <= volume <= high:
      findings.append(Finding("implausible volume", f"{name} of {volume:.0f} ml; hearts have {low:.0f} to {high:.0f}"))
  if (share := open_wall(classes)) > _TOO_MUCH:
    findings.append(Finding("implausible shape", f"{share:.0%} of the LV's border has no wall"))
  if (step := slice_step(classes)) > _TOO_MUCH:
    findings.append(Finding("implausible shape", f"the LV moves by {step:.0%} of its radius from slice to slice"))
  if cut or touches_border(classes):
    findings.append(Finding("heart cut", "a structure touches the border of the image or of the network's field"))
  score = float(np.mean(expected_dice(probs, classes)) * plausibility(share, step))
  if score < LOW_SCORE:
    findings.append(Finding("low confidence", f"a Dice of {score:.2f} is expected: look at the mask"))
  return Quality((*findings, *assumed), score)


def plausibility(share: float, step: float) -> float:
  """The factor (1 - w) (1 - s) of the score, see Quality, of an LV's open_wall and slice_step."""
  excess = [min(max(value - _USUAL, 0.0), 1.0) for value in (share, step)]
  return float(np.prod(np.subtract(1.0, excess)))


def open_wall(classes: np.ndarray) -> float:
  """The share of the LV's border within slices (D, H, W) at which background begins; 0 without LV."""
  lv = classes == CLASSES.index("LV")
  border = ndimage.binary_dilation(lv, ndimage.generate_binary_structure(2, 1)[None]) & ~lv
  return float((classes[border] == 0).mean()) if border.any() else 0.0


def slice_step(classes: np.ndarray) -> float:
  """The median distance of the LV's middle from slice to slice (D, H, W), in radii of its largest slice."""
  lv = [part for part in classes == CLASSES.index("LV") if part.any()]
  if len(lv) < 2:
    return 0.0
  radius = np.sqrt(max(part.sum() for part in lv) / np.pi)
  middles = np.array([ndimage.center_of_mass(part) for part in lv])
  return float(np.median(np.linalg.norm(np.diff(middles, axis=0), axis=1)) / radius)


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
