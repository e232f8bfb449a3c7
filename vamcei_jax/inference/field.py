"""Where the network looks: the part of a large image that has the heart, and how its slices lie."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.data.nifti import Volume
from vamcei_jax.inference.heart import find_heart
from vamcei_jax.inference.quality import expected_dice, open_wall, plausibility, slice_step
from vamcei_jax.inference.uncertainty import entropy

Region = tuple[slice, slice]  # rows and columns of a canonical volume


class View(NamedTuple):
  """The prediction of a network for a volume.

  probs: class probabilities (D, H, W, K) on the volume's grid.
  draws: the classes (D, H, W) of each latent sample.
  cut: whether the border of the network's field cuts a structure.
  """

  probs: np.ndarray
  draws: Sequence[np.ndarray] = ()
  cut: bool = False


Look = Callable[[Volume], View]

_MARGIN = 1.2  # an image this much larger than those of the training still is as they were
_LOOKS = 3  # times at most that the region is centred again on the heart that it shows
_SURE = 0.5  # sureness below which the heart is looked for elsewhere
_NEAR_MM = 5.0  # a region this near to its heart stays


def whole_slices(volume: Volume) -> Region:
  """The region of all pixels of the slices."""
  _, height, width = volume.voxels.shape
  return slice(0, height), slice(0, width)


def middle_region(volume: Volume, extent: Sequence[float] | None) -> Region:
  """The region in the middle of the slices, blank borders left out, as large as the images of the training.

  Args:
    volume: with slices that are not blank.
    extent: smallest and largest side, in mm, of the images that the network was trained on; None if unknown.

  Returns:
    The whole slices if `extent` is unknown, or along an axis on which they are not much larger.
  """
  height, width = volume.voxels.shape[1:]
  sizes = _window_size(volume, extent)
  regions = []
  for axis, (pixels, size) in enumerate(zip((height, width), sizes, strict=True), start=1):
    first, last = (0, pixels) if size == pixels else _content(volume.voxels, axis)
    start = min(max(round((first + last - size) / 2), 0), pixels - size)
    regions.append(slice(start, start + size))
  return regions[0], regions[1]


def find_field(
  look: Look, volumes: Sequence[Volume], extent: Sequence[float] | None
) -> tuple[int, Region, View | None]:
  """The orientation and the region of a volume in which the network sees the heart.

  In each orientation, the region begins in the middle and follows the heart that it shows. The orientation whose class
  probabilities have the lowest entropy is taken. Where no heart is surely seen there, overlapping windows of the
  region's size are looked at. The one with the surest segmentation is followed, and the surer of this place and the
  middle is taken.

  Args:
    look: volume -> view.
    volumes: the volume in one orientation or several, with slices that are not blank.
    extent: see middle_region.

  Returns:
    The number of the orientation, the region, and the view of it; no view if the network was not needed.
  """
  starts = [middle_region(volume, extent) for volume in volumes]
  if len(volumes) == 1 and starts[0] == whole_slices(volumes[0]):
    return 0, starts[0], None
  followed = [_follow(look, volume, start) for volume, start in zip(volumes, starts, strict=True)]
  number = min(range(len(volumes)), key=lambda number: entropy(followed[number][1].probs).mean())
  volume, (region, view) = volumes[number], followed[number]
  rows, columns = (_windows(pixels, part) for pixels, part in zip(volume.voxels.shape[1:], region, strict=True))
  if sureness(view.probs) >= _SURE or len(rows) * len(columns) == 1:
    return number, region, view
  windows = [(row, column) for row in rows for column in columns]
  best = max(windows, key=lambda window: sureness(look(volume.cropped(*window)).probs))
  found = _follow(look, volume, best)
  return number, *max((region, view), found, key=lambda place: sureness(place[1].probs))


def sureness(probs: np.ndarray) -> float:
  """How sure class probabilities (D, h, w, K) are of a heart, from 0 to 1: the score of Quality, without the RV.

  The RV does not count: where little of it is in the slices, a heart in the right place would look unsure. The LV's
  shape counts, because a network can be sure of what is no heart.
  """
  classes = probs.argmax(-1)
  dice = dict(zip(STRUCTURES, expected_dice(probs, classes), strict=True))
  return (dice["Myo"] + dice["LV"]) / 2 * plausibility(open_wall(classes), slice_step(classes))


def _window_size(volume: Volume, extent: Sequence[float] | None) -> tuple[int, int]:
  """Rows and columns of the windows; all of them along an axis on which the image is not much larger."""
  height, width = volume.voxels.shape[1:]
  if extent is None:
    return height, width
  low, high = extent
  side = math.sqrt(low * high)
  rows, columns = (
    pixels if pixels * mm <= _MARGIN * high else max(1, round(side / mm))
    for pixels, mm in zip((height, width), volume.spacing[1:], strict=True)
  )
  return rows, columns


def _content(voxels: np.ndarray, axis: int) -> tuple[int, int]:
  """The first pixel along an axis of the slices whose line is not blank, and the one after the last."""
  others = tuple(other for other in range(3) if other != axis)
  varied = np.flatnonzero(voxels.max(others) > voxels.min(others))
  return (int(varied[0]), int(varied[-1]) + 1) if varied.size else (0, voxels.shape[axis])


def _follow(look: Look, volume: Volume, region: Region) -> tuple[Region, View]:
  """The region, moved onto the heart that it shows, and the view of it."""
  view = look(volume.cropped(*region))
  if region == whole_slices(volume):
    return region, view
  for _ in range(_LOOKS):
    heart = find_heart(view.probs)
    moved = region if heart is None else _centred(region, heart, volume.voxels.shape[1:])
    steps = [(new.start - old.start) * mm for new, old, mm in zip(moved, region, volume.spacing[1:], strict=True)]
    if math.hypot(*steps) <= _NEAR_MM:
      break
    region, view = moved, look(volume.cropped(*moved))
  return region, view


def _windows(pixels: int, part: slice) -> list[slice]:
  """Windows as large as a part of an axis that cover it, each half over the next."""
  size = part.stop - part.start
  count = 1 + math.ceil(2 * (pixels - size) / size)
  return [slice(round(start), round(start) + size) for start in np.linspace(0, pixels - size, count)]


def _centred(region: Region, heart: Sequence[float], shape: Sequence[int]) -> Region:
  """A region around the pixel `heart` of another region, inside of the slices."""
  parts = []
  for old, at, pixels in zip(region, heart, shape, strict=True):
    size = old.stop - old.start
    start = min(max(round(old.start + at - (size - 1) / 2), 0), pixels - size)
    parts.append(slice(start, start + size))
  return parts[0], parts[1]
