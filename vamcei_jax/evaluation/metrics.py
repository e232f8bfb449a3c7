"""Metrics of a predicted mask against the true one: overlaps, surface distances and volumes, by structure."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from vamcei_jax.data.labels import STRUCTURES

DENSITY = 1.05  # of the myocardium, g/ml


@dataclasses.dataclass(frozen=True)
class Metric:
  """The title and the definition of a metric.

  title: with its unit.
  best: the value of a perfect mask; the farther from it, the worse. None: the metric is neither good nor bad.
  meaning: its definition in one sentence; TP, FP and FN are numbers of voxels.
  empty: its values if both masks are empty, if only the prediction is, and if only the truth is; None: no exception.
  """

  title: str
  best: float | None
  meaning: str
  empty: tuple[str, str, str] | None = None

  @property
  def digits(self) -> int:
    """Decimal places in tables."""
    return 3 if self.best == 1.0 else 2


_OVERLAP = ("1", "0", "0")
_DISTANCE = ("0", "the volume's diagonal", "the volume's diagonal")
METRICS = {
  "dice": Metric("Dice", 1.0, "2 TP / (2 TP + FP + FN)", _OVERLAP),
  "jaccard": Metric("Jaccard", 1.0, "TP / (TP + FP + FN)", _OVERLAP),
  "sensitivity": Metric("Sensitivity", 1.0, "TP / (TP + FN)", _OVERLAP),
  "precision": Metric("Precision", 1.0, "TP / (TP + FP)", _OVERLAP),
  "assd_mm": Metric(
    "ASSD, mm",
    0.0,
    "Average symmetric surface distance: the mean, over the surface voxels of both masks together, of the distance to "
    "the nearest surface voxel of the other mask",
    _DISTANCE,
  ),
  "hd95_mm": Metric(
    "HD95, mm",
    0.0,
    "95th percentile of the Hausdorff distance: the larger of two 95th percentiles, of the distances from the surface "
    "voxels of the prediction to the nearest surface voxel of the truth, and from those of the truth to the prediction",
    _DISTANCE,
  ),
  "volume_difference_ml": Metric("Volume difference, ml", 0.0, "Predicted minus true volume"),
  "volume_ml": Metric("Volume, ml", None, "Predicted volume"),
  "true_volume_ml": Metric("True volume, ml", None, "True volume"),
  "mass_g": Metric("Mass, g", None, f"Predicted volume of the myocardium times {DENSITY} g/ml"),
  "true_mass_g": Metric("True mass, g", None, f"True volume of the myocardium times {DENSITY} g/ml"),
}


def dice(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
  """Dice overlap 2|P∩T| / (|P| + |T|) of each structure, over all voxels of one volume.

  It is 1 if both masks are empty, and 0 if one is. Arrays are class indices of the same shape.
  """
  scores = {}
  for index, name in enumerate(STRUCTURES, start=1):
    p, t = prediction == index, truth == index
    size = p.sum() + t.sum()
    scores[name] = float(2.0 * (p & t).sum() / size) if size else 1.0
  return scores


def measure(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> dict[str, dict[str, float]]:
  """All METRICS of each structure: structure -> metric -> value; the mass of Myo only.

  METRICS defines the values for empty masks: a structure that is missed, or predicted where the truth has none, counts
  as the worst case. So a failure never improves a mean over patients.

  Args:
    prediction, truth: (D, H, W) class indices.
    spacing: mm along D, H and W.
  """
  scores = {}
  for index, name in enumerate(STRUCTURES, start=1):
    scores[name] = measure_structure(prediction == index, truth == index, spacing)
    if name == "Myo":
      scores[name]["mass_g"] = DENSITY * scores[name]["volume_ml"]
      scores[name]["true_mass_g"] = DENSITY * scores[name]["true_volume_ml"]
  return scores


def measure_structure(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
  """As `measure`, for one structure with boolean masks (D, H, W)."""
  predicted, true, both = int(prediction.sum()), int(truth.sum()), int((prediction & truth).sum())
  millilitres = float(np.prod(spacing)) / 1000.0
  ratio = lambda part, whole: part / whole if whole else float(predicted == true)
  assd, hd95 = surface_distances(prediction, truth, spacing)
  return {
    "dice": ratio(2 * both, predicted + true),
    "jaccard": ratio(both, predicted + true - both),
    "sensitivity": ratio(both, true),
    "precision": ratio(both, predicted),
    "assd_mm": assd,
    "hd95_mm": hd95,
    "volume_difference_ml": (predicted - true) * millilitres,
    "volume_ml": predicted * millilitres,
    "true_volume_ml": true * millilitres,
  }


def surface_distances(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
  """ASSD and HD95 (mm) of two boolean masks (D, H, W), as METRICS defines them.

  A surface voxel is a voxel of the mask with a background voxel, or the volume's border, at one of its six faces.
  Distances are between centres of voxels. Definitions as in MONAI.

  Args:
    a, b: (D, H, W) masks.
    spacing: mm along D, H and W.

  Returns:
    0 and 0 if both masks are empty, the volume's diagonal twice if one mask is.
  """
  if not a.any() or not b.any():
    distance = float(np.linalg.norm(np.multiply(a.shape, spacing))) if a.any() or b.any() else 0.0
    return distance, distance
  # The box around both masks holds all surface voxels, and distance transforms take far less time in it.
  (box,) = ndimage.find_objects((a | b).astype(np.uint8))
  a_surface, b_surface = _surface(a[box]), _surface(b[box])
  from_a = ndimage.distance_transform_edt(~b_surface, sampling=spacing)[a_surface]
  from_b = ndimage.distance_transform_edt(~a_surface, sampling=spacing)[b_surface]
  assd = np.concatenate([from_a, from_b]).mean()
  return float(assd), float(max(np.percentile(from_a, 95), np.percentile(from_b, 95)))


def _surface(mask: np.ndarray) -> np.ndarray:
  return mask & ~ndimage.binary_erosion(mask)
