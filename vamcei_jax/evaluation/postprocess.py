"""What anatomy says of a prediction: slices resemble each other, structures are single and whole."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from vamcei_jax.data.labels import CLASSES

# Holes are looked for in the left ventricle as a whole, since the cavity is the hole of the myocardium.
_VENTRICLES = (("Myo", "LV"), ("RV",))


def smooth_slices(probs: np.ndarray, distance: float, sigma: float) -> np.ndarray:
  """Class probabilities under a Gaussian along the stack, cut off at its ends; as they are for a sigma of 0.

  Args:
    probs: (D, H, W, K) class probabilities.
    distance: mm from one slice to the next.
    sigma: standard deviation, mm; slices that lie farther apart mix less.
  """
  if not sigma:
    return probs
  position = distance * np.arange(len(probs))
  weights = np.exp(-0.5 * ((position[:, None] - position) / sigma) ** 2)
  return np.tensordot((weights / weights.sum(1, keepdims=True)).astype(np.float32), probs, axes=1)


def shift_prior(probs: np.ndarray, odds: Sequence[float] | np.ndarray) -> np.ndarray:
  """Class probabilities where structures are more, or less, frequent than where the network has learned.

  Each is multiplied by how much more frequent its class is (Saerens et al., Neural Computation 2002).

  Args:
    probs: (..., K) class probabilities.
    odds: (K - 1), or (..., K - 1) to be broadcast, of the structures against the background, positive; as they are for
      ones.
  """
  odds = np.asarray(odds, np.float32)
  if (odds == 1.0).all():
    return probs
  shifted = probs * np.concatenate([np.ones_like(odds[..., :1]), odds], -1)
  return shifted / shifted.sum(-1, keepdims=True)


def postprocess(probs: np.ndarray) -> np.ndarray:
  """The most probable classes, with the largest connected component of each structure, and with its holes filled.

  Components are those of the volume, of voxels that touch each other, by a corner at least; a hole is background that a
  ventricle encloses within a slice, and becomes the most probable structure of that ventricle.

  Args:
    probs: (D, H, W, K) class probabilities.

  Returns:
    (D, H, W) uint8 class indices.
  """
  classes = probs.argmax(-1).astype(np.uint8)
  for index in range(1, len(CLASSES)):
    classes[(classes == index) & ~_largest_component(classes == index)] = 0
  for names in _VENTRICLES:
    indices = np.array([CLASSES.index(name) for name in names])
    ventricle = np.isin(classes, indices)
    enclosed = np.stack([ndimage.binary_fill_holes(part) for part in ventricle]) & (classes == 0)
    classes[enclosed] = indices[probs[enclosed][:, indices].argmax(-1)]
  return classes


def _largest_component(mask: np.ndarray) -> np.ndarray:
  components, count = ndimage.label(mask, np.ones((3, 3, 3)))
  if count < 2:
    return mask
  return components == 1 + np.bincount(components.ravel())[1:].argmax()
