"""Corrects predictions by masks of the same patients in another sequence, such as bSSFP masks for LGE.

Both sequences show one heart, so a bSSFP mask tells its shape: where the wall is thick, and how much Myo lies near the
apex. But the slices lie at other heights, patients breathe between the scans, and the moment in the heartbeat can
differ. So the mask is first fitted: it gets the place and the areas of the prediction. Then it changes the prediction
by a small weight.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage, special

from vamcei_jax.data.nifti import Volume

# Chosen on LGE patients 1-5 of MS-CMRSeg, see docs/results-same-patients.md.
WEIGHT = 0.25  # exponent of the mask's probabilities; that of the prediction is 1
BLUR_MM = 1.0  # of the outlines of a fitted mask
_SHIFTS_MM = np.arange(-10.0, 10.1, 2.5)  # of the stack, tried
_RELUCTANCE = 0.02  # overlap (Dice) that a shift of 5 mm must gain; it grows with the square of the shift
_SCALES = (0.4, 2.5)  # of the plane; beyond them, a mask or a prediction is not that of a heart
_REACH_MM = 10.0  # of a slice in the plane, in each direction
_STACK = 0.1  # weight of the stack's overlap in the shift of a slice; it decides where nothing is predicted
_MARGIN_MM = 15.0  # around a heart
_FARTHEST_MM = 12.0  # distances from an outline end there
_SEARCH_MM = 2.0  # pixels of the search
_PARALLEL = np.cos(np.radians(15))  # of the axes of two stacks, at least
_FLOOR = 1e-3  # is added to probabilities, as what a mask or a prediction excludes is not impossible


class Fitted(NamedTuple):
  """A mask that is fitted to a prediction.

  distances: (2, D, H, W) mm to the outlines of Myo and LV together, and of LV; inside, they are positive.
  inside: (D,) whether a slice lies in the mask's stack.
  scale: by which the mask's size in the plane was multiplied.
  """

  distances: Float[np.ndarray, "2 D H W"]
  inside: Bool[np.ndarray, " D"]
  scale: float


def correct(prediction: Volume, mask: Volume) -> tuple[Float[np.ndarray, "D H W 4"], float] | None:
  """A patient's prediction, corrected by a mask of the same patient, and the scale of that mask.

  With the prediction's p and the fitted mask's q, it is p q^0.25, divided by its sum over the classes. RV and
  background have the same q. Slices outside the mask's stack stay as they are.

  Args:
    prediction: probabilities (D, H, W, 4) of background, Myo, LV and RV, in the canonical orientation.
    mask: class indices (d, h, w) on a grid of its own, in the canonical orientation. Its height along the stack must be
      right by 10 mm, and its directions by 15 degrees. Its place in the plane need not be right, nor its pixel size, if
      rows and columns are wrong by one factor.

  Returns:
    (D, H, W, 4) probabilities, which sum to 1, and the factor of the mask's size in the plane. None if the mask cannot
    be fitted: no slice has both hearts, the mask lacks a predicted LV, the stacks are not parallel, or the sizes differ
    too much.
  """
  window = _around(prediction.voxels[..., 1:3].sum(-1) > 0.5, prediction.spacing)
  window_of_mask = _around((mask.voxels == 1) | (mask.voxels == 2), mask.spacing)
  cosines = (_directions(prediction) * _directions(mask)).sum(0)
  if window is None or window_of_mask is None or cosines.min() < _PARALLEL:
    return None
  heart = prediction.cropped(*window)
  fitted = fit(heart, mask.cropped(*window_of_mask))
  if fitted is None:
    return None
  whole, lv = special.expit(fitted.distances / BLUR_MM)
  q = np.stack([1 - whole, whole * (1 - lv), whole * lv, 1 - whole], axis=-1)
  product = (heart.voxels + _FLOOR) * (q + _FLOOR) ** WEIGHT
  corrected = prediction.voxels.copy()
  corrected[:, *window][fitted.inside] = (product / product.sum(-1, keepdims=True))[fitted.inside]
  return corrected, fitted.scale


def fit(prediction: Volume, mask: Volume) -> Fitted | None:
  """Fits a mask to a prediction, both cut around the heart; None if they cannot be fitted.

  The stack is shifted, its slices get the areas of the prediction (see `_resized`) and are shifted in the plane, and
  the fit with the largest overlap is taken. A prediction that misses the apex overlaps most with a mask that is shifted
  too far, so a shift must gain overlap.

  Args:
    prediction: probabilities (D, H, W, 4).
    mask: class indices (d, h, w).
  """
  parts = _parts(prediction.voxels)
  block = max(1, round(_SEARCH_MM / prediction.spacing[1]))
  coarse = _shrunk(parts, block)
  pixel, pixel_of_mask = np.array(prediction.spacing[1:]), np.array(mask.spacing[1:])
  distances = np.stack([_signed_distances(part > 0, pixel_of_mask) for part in _parts(np.eye(4)[mask.voxels])])
  normal = _directions(prediction)[:, 0]
  levels, levels_of_mask = prediction.levels(normal), mask.levels(normal)
  half = mask.spacing[0] / 2
  inside = (levels_of_mask[0] - half <= levels) & (levels <= levels_of_mask[-1] + half)
  best, found = -np.inf, None
  for shift in _SHIFTS_MM:
    slices = _between(distances, levels_of_mask, levels[inside] + shift)
    resized = _resized(slices, pixel_of_mask, parts[:, inside], pixel)
    if resized is None:
      continue
    slices, scale = resized
    _, overlap = _place(slices, scale * pixel_of_mask, coarse[:, inside], block * pixel)
    gain = overlap - _RELUCTANCE * (shift / 5) ** 2
    if gain > best:
      best, found = gain, resized
  if found is None or not _SCALES[0] <= found[1] <= _SCALES[1]:
    return None
  slices, scale = found
  fitted = np.full((2, *parts.shape[1:]), -_FARTHEST_MM)
  fitted[:, inside] = _place(slices, scale * pixel_of_mask, parts[:, inside], pixel)[0][:2]
  return Fitted(fitted, inside, scale)


def _directions(volume: Volume) -> Float[np.ndarray, "3 3"]:
  """Columns: the direction across the slices, from the first to the last, and those of rows and columns."""
  rows, columns = (volume.affine[:3, axis] / np.linalg.norm(volume.affine[:3, axis]) for axis in (1, 2))
  across = np.cross(rows, columns) / np.linalg.norm(np.cross(rows, columns))
  return np.stack([across * np.sign(across @ volume.affine[:3, 0]), rows, columns], axis=1)


def _around(heart: Bool[np.ndarray, "D H W"], spacing: tuple[float, float, float]) -> tuple[slice, slice] | None:
  """Rows and columns of a heart with a margin; None without a heart."""
  places = np.argwhere(heart.any(0))
  if not len(places):
    return None
  margin = np.ceil(_MARGIN_MM / np.array(spacing[1:])).astype(int)
  (top, left), (bottom, right) = np.maximum(places.min(0) - margin, 0), places.max(0) + margin + 1
  return slice(top, bottom), slice(left, right)


def _parts(probs: Float[np.ndarray, "D H W 4"]) -> Float[np.ndarray, "3 D H W"]:
  """Probabilities of Myo and LV together, LV, and RV."""
  return np.stack([probs[..., 1] + probs[..., 2], probs[..., 2], probs[..., 3]])


def _shrunk(parts: Float[np.ndarray, "3 D H W"], block: int) -> Float[np.ndarray, "3 D h w"]:
  """Means of blocks of pixels; an edge that fills no block is padded with zeros."""
  padded = np.pad(parts, [(0, 0), (0, 0), *((0, -size % block) for size in parts.shape[2:])])
  _, _, height, width = padded.shape
  return padded.reshape(*parts.shape[:2], height // block, block, width // block, block).mean((3, 5))


def _signed_distances(part: Bool[np.ndarray, "d h w"], pixel: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "d h w"]:
  """Millimetres to the outline in the same slice, positive inside."""
  half = pixel.mean() / 2  # the outline lies between the pixels
  depth = lambda inside: ndimage.distance_transform_edt(inside, sampling=pixel) - half

  def of_slice(inside: np.ndarray) -> np.ndarray:
    if not inside.any():
      return np.full(inside.shape, -_FARTHEST_MM)
    return np.clip(np.where(inside, depth(inside), -depth(~inside)), -_FARTHEST_MM, _FARTHEST_MM)

  return np.stack([of_slice(inside) for inside in part])


def _between(
  distances: Float[np.ndarray, "3 d h w"], levels: Float[np.ndarray, " d"], wanted: Float[np.ndarray, " D"]
) -> Float[np.ndarray, "3 D h w"]:
  """Distances at other heights: interpolated between two slices, and those of the last slice beyond it."""
  position = np.interp(wanted, levels, np.arange(len(levels)))
  lower, upper = np.floor(position).astype(int), np.ceil(position).astype(int)
  share = (position - lower)[:, None, None]
  return (1 - share) * distances[:, lower] + share * distances[:, upper]


def _resized(
  distances: Float[np.ndarray, "3 D h w"],
  pixel_of_mask: Float[np.ndarray, " 2"],
  parts: Float[np.ndarray, "3 D H W"],
  pixel: Float[np.ndarray, " 2"],
) -> tuple[Float[np.ndarray, "3 D h w"], float] | None:
  """Distances to the outlines of a mask that gets the areas of a prediction, and the factor of its size in the plane.

  The areas are those of the slices where both have a heart. The factor gives Myo and LV together their area. Then the
  outline of LV moves by one distance, which gives LV its area: at another moment of the heartbeat, the cavity is
  smaller and the wall is thicker. The outline stays where no LV is predicted, or where it would move farther than
  distances are known. None if no slice has both hearts, or if the mask lacks a predicted LV.
  """
  pixels, pixels_of_mask = (parts[:2] > 0.5).sum((2, 3)), (distances[:2] > 0).sum((2, 3))
  both = (pixels[0] > 0) & (pixels_of_mask[0] > 0)
  pixels, pixels_of_mask = pixels[:, both].sum(1), pixels_of_mask[:, both].sum(1)
  if not pixels[0] or (pixels[1] and not pixels_of_mask[1]):
    return None
  scale = float(np.sqrt(pixels[0] * pixel.prod() / (pixels_of_mask[0] * pixel_of_mask.prod())))
  distances = scale * distances
  ordered = np.sort(distances[1, both], axis=None)[::-1]
  count = round(pixels_of_mask[0] * pixels[1] / pixels[0])
  # Halfway between the last pixel inside of the moved outline and the first one outside.
  move = ordered[max(count - 1, 0) : count + 1].mean()
  if pixels[1] and abs(move) < scale * _FARTHEST_MM:
    distances[1] -= move
  return distances, scale


def _place(
  distances: Float[np.ndarray, "3 D h w"],
  pixel_of_mask: Float[np.ndarray, " 2"],
  parts: Float[np.ndarray, "3 D H W"],
  pixel: Float[np.ndarray, " 2"],
) -> tuple[Float[np.ndarray, "3 D H W"], float]:
  """Distances on the grid of a prediction, each slice where it overlaps most, and the mean Dice of the three parts."""
  shape = np.array(parts.shape[2:])
  step = pixel / pixel_of_mask
  first = (np.array(distances.shape[2:]) - 1) / 2 - step * (shape - 1) / 2  # the middles lie on each other
  onto = (*distances.shape[:2], *shape)
  distances = ndimage.affine_transform(distances, [1, 1, *step], [0, 0, *first], onto, order=1, mode="nearest")
  spectrum = np.fft.rfft2(parts) * np.conj(np.fft.rfft2(special.expit(distances / BLUR_MM)))
  overlaps = np.fft.irfft2(spectrum.sum(0), s=parts.shape[2:])  # (D, H, W), by shift
  overlaps = overlaps + _STACK * overlaps.mean(0)
  reach = np.minimum(np.round(_REACH_MM / pixel), (shape - 1) // 2).astype(int)
  overlaps = np.roll(overlaps, reach, (1, 2))[:, : 2 * reach[0] + 1, : 2 * reach[1] + 1]
  shifts = np.stack(np.unravel_index(overlaps.reshape(len(overlaps), -1).argmax(1), overlaps.shape[1:]), 1) - reach
  for index, shift in enumerate(shifts):
    distances[:, index] = ndimage.shift(distances[:, index], (0, *shift), order=0, cval=-_FARTHEST_MM)
  soft = special.expit(distances / BLUR_MM)
  common, both = (soft * parts).sum((1, 2, 3)), soft.sum((1, 2, 3)) + parts.sum((1, 2, 3))
  return distances, float((2 * common / both).mean())
