"""From a volume to the network's grid and back: intensities to [0, 1], in-plane resampling, centre crop and pad."""

import dataclasses

import numpy as np
from scipy import ndimage

from vamcei_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """How volumes become network input; slices are never mixed.

  size: pixels (H, W) of the network's field, cropped and padded about the centre.
  spacing: in-plane millimetres to resample to, as the headers say; None leaves the headers alone.
  zoom: factor on the pixel grid when spacing is None: 0.75 makes 144 pixels of 192.
  percentiles: of each volume, mapped to 0 and 1.
  """

  size: tuple[int, int] = (192, 192)
  spacing: float | None = None
  zoom: float = 1.0
  percentiles: tuple[float, float] = (1.0, 99.0)

  def __post_init__(self):
    rules = {
      "size": (min(self.size) > 0, "positive"),
      "spacing": (self.spacing is None or self.spacing > 0, "positive, or None"),
      "zoom": (self.zoom > 0, "positive"),
      "percentiles": (
        len(self.percentiles) == 2 and 0 <= self.percentiles[0] < self.percentiles[1] <= 100,
        "two rising numbers in [0, 100]",
      ),
    }
    for field, (holds, expected) in rules.items():
      if not holds:
        raise InputError(f"config.data.{field}={getattr(self, field)}: must be {expected}")


def preprocess_image(voxels: np.ndarray, spacing: tuple[float, float, float], settings: Preprocess) -> np.ndarray:
  """(D, H, W) image of any unit -> (D, h, w) float32 in [0, 1]; a constant volume gives zeros, padding is 0."""
  voxels = np.asarray(voxels, np.float64)
  low, high = np.percentile(voxels, settings.percentiles)
  if low == high:  # nearly all of it is one value: keep what is not
    low, high = voxels.min(), voxels.max()
  scaled = np.clip((voxels - low) / (high - low or 1.0), 0.0, 1.0).astype(np.float32)
  resampled = _resample(scaled, _resampled_size(voxels.shape, spacing, settings))
  return _centre(resampled, settings.size).clip(0.0, 1.0)


def preprocess_classes(classes: np.ndarray, spacing: tuple[float, float, float], settings: Preprocess) -> np.ndarray:
  """(D, H, W) class indices -> (D, h, w) uint8 on the grid of preprocess_image, padding is background."""
  resampled = _resample_classes(classes, _resampled_size(classes.shape, spacing, settings))
  return _centre(resampled, settings.size)


def restore_probabilities(
  probs: np.ndarray, shape: tuple[int, int, int], spacing: tuple[float, float, float], settings: Preprocess
) -> np.ndarray:
  """(D, h, w, K) class probabilities -> (D, H, W, K) float32 on the grid that the image came on.

  Args:
    probs: on the grid of preprocess_image.
    shape: (D, H, W) of the original image.
    spacing: of the original image.
    settings: what the image was preprocessed with.

  Returns:
    Probabilities that still sum to 1; pixels that the network did not see are background.
  """
  size = _resampled_size(shape, spacing, settings)
  maps = np.moveaxis(np.asarray(probs, np.float32), -1, 0)
  restored = [_resample(_centre(p, size, fill=float(k == 0)), shape[1:]) for k, p in enumerate(maps)]
  return np.stack(restored, axis=-1)


def restore_classes(
  classes: np.ndarray, shape: tuple[int, int, int], spacing: tuple[float, float, float], settings: Preprocess
) -> np.ndarray:
  """(D, h, w) class indices -> (D, H, W) uint8 on the grid that the image came on; see restore_probabilities."""
  size = _resampled_size(shape, spacing, settings)
  return _resample_classes(_centre(classes, size), shape[1:])


def _resampled_size(
  shape: tuple[int, int, int], spacing: tuple[float, float, float], settings: Preprocess
) -> tuple[int, int]:
  """Pixels (H, W) of the whole slice after resampling; rounded twice, so that an affine's last bit decides nothing."""
  factors = [settings.zoom if settings.spacing is None else mm / settings.spacing for mm in spacing[1:]]
  return tuple(max(1, round(round(pixels * factor, 3))) for pixels, factor in zip(shape[1:], factors, strict=True))


def _resample(stack: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Linear, aligned at the outer edges of the pixels, smoothed first along what shrinks; identity at its own size."""
  if stack.shape[1:] == tuple(size):
    return stack
  factors = np.array([stack.shape[0], *size]) / stack.shape
  smooth = ndimage.gaussian_filter(stack, np.maximum(0.0, (1.0 / factors - 1.0) / 2.0), mode="nearest")
  return ndimage.zoom(smooth, factors, order=1, mode="nearest", grid_mode=True)


def _resample_classes(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The class with the largest share of each new pixel."""
  classes = np.asarray(classes, np.uint8)
  if classes.shape[1:] == tuple(size):
    return classes
  shares = [_resample((classes == k).astype(np.float32), size) for k in range(classes.max() + 1)]
  return np.argmax(shares, axis=0).astype(np.uint8)


def _centre(stack: np.ndarray, size: tuple[int, int], fill: float = 0) -> np.ndarray:
  """The stack cropped and padded about its centre to `size`; the same call with the old size puts it back."""
  out = np.full((len(stack), *size), fill, stack.dtype)
  source, target = [slice(None)], [slice(None)]
  for old, new in zip(stack.shape[1:], size, strict=True):
    common = min(old, new)
    source.append(slice((old - common) // 2, (old - common) // 2 + common))
    target.append(slice((new - common) // 2, (new - common) // 2 + common))
  out[tuple(target)] = stack[tuple(source)]
  return out
