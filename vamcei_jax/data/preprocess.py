"""From a volume to the network's grid and back: intensities to [0, 1], in-plane resampling, crop and pad.

The field, the pixels that the network gets, is centred on the image. A field that is smaller than the image can be
centred on any pixel instead, such as the middle of the heart.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy import ndimage

from vamcei_jax.config.schema import DataConfig
from vamcei_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Settings by which volumes become network input. Slices are never mixed.

  size: pixels (H, W) of the field.
  spacing: in-plane spacing in mm to resample to by the headers; None ignores the headers.
  zoom: pixels of the network per pixel of the volume, where spacing is None: 0.75 makes 144 pixels of 192.
  percentiles: of each volume, mapped to 0 and 1.
  """

  size: tuple[int, int] = (192, 192)
  spacing: float | None = None
  zoom: float = 1.0
  percentiles: tuple[float, float] = (1.0, 99.0)


Spacing = tuple[float, float, float]
# A position (row, column) in pixels of the original grid; None is the middle of the image.
Centre = Sequence[float] | None


def preprocess_settings(data: DataConfig) -> Preprocess:
  """The settings of a configuration."""
  return Preprocess(data.size, data.spacing, data.zoom, data.percentiles)


def preprocess_image(voxels: np.ndarray, spacing: Spacing, settings: Preprocess, centre: Centre = None) -> np.ndarray:
  """Brings an image to the network's grid and range.

  Args:
    voxels: (D, H, W) in any unit.
    spacing: mm along D, H, W.
    settings: see `Preprocess`.
    centre: of the field.

  Returns:
    (D, h, w) float32 in [0, 1]. Padding is 0; a constant volume gives zeros.
  """
  voxels = np.asarray(voxels, np.float64)
  low, high = np.percentile(voxels, settings.percentiles)
  if low == high:  # nearly all voxels have one value: the others must still differ from it
    low, high = voxels.min(), voxels.max()
  scaled = np.clip((voxels - low) / (high - low or 1.0), 0.0, 1.0).astype(np.float32)
  size = _resampled_size(voxels.shape, spacing, settings)
  return _window(_resample(scaled, size), settings.size, _corner(voxels.shape, size, settings, centre)).clip(0.0, 1.0)


def match_pixels(settings: Preprocess, spacing: Spacing, pixel_mm: Sequence[float] | None) -> Preprocess:
  """Adapts the settings of a network to a volume whose pixels differ in size from those of its training.

  They do not change if they resample by the headers anyway, if the training's pixel size is unknown, or if the volume's
  pixels are of that size within 1 %. Else they resample to the nearest size of the training, divided by the zoom.

  Args:
    settings: of the network.
    spacing: of the volume.
    pixel_mm: smallest and largest pixel, in mm, of the target volumes in the training; None if unknown.

  Raises:
    InputError: pixels that are more than eight times too large or too small.
  """
  if settings.spacing is not None or not pixel_mm:
    return settings
  (low, high), pixels = pixel_mm, spacing[1:]
  if all(0.99 * low <= mm <= 1.01 * high for mm in pixels):
    return settings
  if not all(low / 8 <= mm <= 8 * high for mm in pixels):
    size = "×".join(f"{mm:g}" for mm in pixels)
    way_out = "correct the header, or predict with --noresample"
    raise InputError(f"pixels of {size} mm, but the network was trained on {low:g} to {high:g} mm; {way_out}")
  return dataclasses.replace(settings, spacing=min(max(math.sqrt(math.prod(pixels)), low), high) / settings.zoom)


def preprocess_classes(
  classes: np.ndarray, spacing: Spacing, settings: Preprocess, centre: Centre = None
) -> np.ndarray:
  """(D, H, W) class indices -> (D, h, w) uint8 on the grid of `preprocess_image`; padding is background."""
  size = _resampled_size(classes.shape, spacing, settings)
  return _window(_resample_classes(classes, size), settings.size, _corner(classes.shape, size, settings, centre))


def preprocess_probabilities(
  probs: np.ndarray, spacing: Spacing, settings: Preprocess, centre: Centre = None
) -> np.ndarray:
  """Class probabilities (D, H, W, K) -> (D, h, w, K) on the grid of `preprocess_image`; padding is background."""
  size = _resampled_size(probs.shape[:3], spacing, settings)
  corner = _corner(probs.shape[:3], size, settings, centre)
  maps = np.moveaxis(np.asarray(probs, np.float32), -1, 0)
  windows = [_window(_resample(p, size), settings.size, corner, fill=float(k == 0)) for k, p in enumerate(maps)]
  return np.stack(windows, axis=-1)


def foreground_centre(weights: np.ndarray) -> tuple[float, float]:
  """The centre of mass (row, column) of weights (D, H, W), rounded to quarters of a pixel; the middle if all are 0.

  Quarters are exact in any floating-point format: a stored centre puts the field on the same pixels.
  """
  plane = np.asarray(weights, np.float64).sum(axis=0)
  height, width = plane.shape
  if not plane.any():
    return (height - 1) / 2, (width - 1) / 2
  row, column = np.asarray(ndimage.center_of_mass(plane), np.float64).tolist()
  return round(4 * row) / 4, round(4 * column) / 4


def restore_probabilities(
  probs: np.ndarray, shape: tuple[int, int, int], spacing: Spacing, settings: Preprocess, centre: Centre = None
) -> np.ndarray:
  """Brings class probabilities back to the original grid: the inverse of `preprocess_image`.

  Args:
    probs: (D, h, w, K) on the grid of `preprocess_image`.
    shape: (D, H, W) of the original image.
    spacing: of the original image.
    settings, centre: those by which the image was preprocessed.

  Returns:
    (D, H, W, K) float32, which still sum to 1. Pixels outside of the field are background.
  """
  size = _resampled_size(shape, spacing, settings)
  corner = [-start for start in _corner(shape, size, settings, centre)]
  maps = np.moveaxis(np.asarray(probs, np.float32), -1, 0)
  restored = [_resample(_window(p, size, corner, fill=float(k == 0)), shape[1:]) for k, p in enumerate(maps)]
  return np.stack(restored, axis=-1)


def restore_classes(
  classes: np.ndarray, shape: tuple[int, int, int], spacing: Spacing, settings: Preprocess, centre: Centre = None
) -> np.ndarray:
  """(D, h, w) class indices -> (D, H, W) uint8 on the original grid; see `restore_probabilities`."""
  size = _resampled_size(shape, spacing, settings)
  corner = [-start for start in _corner(shape, size, settings, centre)]
  return _resample_classes(_window(classes, size, corner), shape[1:])


def covers(shape: tuple[int, int, int], spacing: Spacing, settings: Preprocess) -> bool:
  """Whether the field contains the whole image of this shape and spacing."""
  size = _resampled_size(shape, spacing, settings)
  return all(pixels <= field for pixels, field in zip(size, settings.size, strict=True))


def restore_position(
  position: Sequence[float], shape: tuple[int, int, int], spacing: Spacing, settings: Preprocess
) -> tuple[float, float]:
  """A position (row, column) in a field that is centred on the image, as a position on the original grid.

  Rounded to quarters of a pixel, see `foreground_centre`.
  """
  size = _resampled_size(shape, spacing, settings)
  corner = _corner(shape, size, settings, None)
  places = zip(position, corner, shape[1:], size, strict=True)
  row, column = (round(4 * ((at + first + 0.5) * old / new - 0.5)) / 4 for at, first, old, new in places)
  return row, column


def _resampled_size(shape: tuple[int, int, int], spacing: Spacing, settings: Preprocess) -> tuple[int, int]:
  """Pixels (H, W) of the whole slice after resampling."""
  factors = [settings.zoom if settings.spacing is None else mm / settings.spacing for mm in spacing[1:]]
  # Rounded twice, so that the last bit of an affine makes no difference.
  height, width = (max(1, round(round(n * factor, 3))) for n, factor in zip(shape[1:], factors, strict=True))
  return height, width


def _resample(stack: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Linear interpolation of slices, aligned at the outer edges of the image; an axis that shrinks is smoothed first."""
  if stack.shape[1:] == tuple(size):
    return stack
  factors = np.array([stack.shape[0], *size]) / stack.shape
  smooth = ndimage.gaussian_filter(stack, np.maximum(0.0, (1.0 / factors - 1.0) / 2.0), mode="nearest")
  # Slice by slice: SciPy would interpolate along the stack, too, although nothing changes there.
  zoom = partial(ndimage.zoom, zoom=factors[1:], order=1, mode="nearest", grid_mode=True)
  return np.stack([zoom(part) for part in smooth])


def _resample_classes(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The class with the largest share of each new pixel."""
  classes = np.asarray(classes, np.uint8)
  if classes.shape[1:] == tuple(size):
    return classes
  shares = [_resample((classes == k).astype(np.float32), size) for k in range(classes.max() + 1)]
  return np.argmax(shares, axis=0).astype(np.uint8)


def _corner(shape: tuple[int, int, int], size: tuple[int, int], settings: Preprocess, centre: Centre) -> list[int]:
  """The resampled pixel (row, column) at which the field begins; negative where the field is larger than the image.

  A field that is smaller than the image stays inside of it.

  Args:
    shape: (D, H, W) of the original image.
    size: of the resampled slice.
  """
  corner = []
  for axis, (pixels, field) in enumerate(zip(size, settings.size, strict=True)):
    room = pixels - field
    if room <= 0:
      corner.append(-(-room // 2))
      continue
    middle = (shape[axis + 1] - 1) / 2 if centre is None else centre[axis]
    resampled = (middle + 0.5) * pixels / shape[axis + 1] - 0.5
    # With a margin, so that the last bits of the middle of the image make no difference.
    corner.append(min(max(math.floor(resampled - (field - 1) / 2 + 1e-3), 0), room))
  return corner


def _window(stack: np.ndarray, size: tuple[int, int], corner: Sequence[int], fill: float = 0) -> np.ndarray:
  """Crops or pads slices to `size` pixels from `corner` on. The old size and the negative corner undo it."""
  out = np.full((len(stack), *size), fill, stack.dtype)
  source, target = [slice(None)], [slice(None)]
  for old, new, start in zip(stack.shape[1:], size, corner, strict=True):
    first, last = max(start, 0), min(start + new, old)
    source.append(slice(first, last))
    target.append(slice(first - start, last - start))
  out[tuple(target)] = stack[tuple(source)]
  return out
