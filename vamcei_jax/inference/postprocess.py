"""Postprocessing by anatomy: neighbouring slices are similar, structures are connected and have no holes."""

import numpy as np
from scipy import ndimage

from vamcei_jax.data.labels import CLASSES

# Holes are filled in the whole left ventricle, because its cavity is a hole of the myocardium.
_VENTRICLES = (("Myo", "LV"), ("RV",))


def smooth_slices(probs: np.ndarray, distance: float, sigma: float) -> np.ndarray:
  """Class probabilities smoothed by a Gaussian along the stack, which is normalised at its ends.

  Args:
    probs: (D, H, W, K) class probabilities.
    distance: mm from one slice to the next.
    sigma: standard deviation in mm; 0 returns `probs`.
  """
  if not sigma:
    return probs
  position = distance * np.arange(len(probs))
  weights = np.exp(-0.5 * ((position[:, None] - position) / sigma) ** 2)
  return np.tensordot((weights / weights.sum(1, keepdims=True)).astype(np.float32), probs, axes=1)


def postprocess(probs: np.ndarray) -> np.ndarray:
  """The most probable classes, with the largest connected component of each structure, and holes filled.

  Components are 3-D, with 26 neighbours. A hole is background that a ventricle encloses within a slice; it becomes the
  most probable structure of that ventricle.

  Args:
    probs: (D, H, W, K) class probabilities.

  Returns:
    (D, H, W) uint8 class indices.
  """
  classes = probs.argmax(-1).astype(np.uint8)
  heart = ndimage.find_objects((classes > 0).view(np.uint8))
  if not heart:
    return classes
  # A view: outside of it, nothing is removed or filled.
  part, probs = classes[heart[0]], probs[heart[0]]
  for index in range(1, len(CLASSES)):
    part[(part == index) & ~_largest_component(part == index)] = 0
  for names in _VENTRICLES:
    indices = np.array([CLASSES.index(name) for name in names])
    ventricle = np.isin(part, indices)
    enclosed = np.stack([ndimage.binary_fill_holes(each) for each in ventricle]) & (part == 0)
    part[enclosed] = indices[probs[enclosed][:, indices].argmax(-1)]
  return classes


def _largest_component(mask: np.ndarray) -> np.ndarray:
  components, count = ndimage.label(mask, np.ones((3, 3, 3)))
  if count < 2:
    return mask
  return components == 1 + np.bincount(components.ravel())[1:].argmax()
