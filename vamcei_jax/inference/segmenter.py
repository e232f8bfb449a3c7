"""The Segmenter: a trained network that turns a volume into a Prediction."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
from jax import Array

from vamcei_jax.config.schema import AugmentConfig, InferenceConfig, StageConfig
from vamcei_jax.data.dicom import is_dicom, read_dicom
from vamcei_jax.data.dicom_series import DicomVolume
from vamcei_jax.data.geometry import TURNS
from vamcei_jax.data.labels import CLASSES, STRUCTURES, first_values
from vamcei_jax.data.nifti import SUFFIXES, Volume, compact
from vamcei_jax.data.preprocess import (
  Centre,
  Preprocess,
  match_pixels,
  preprocess_image,
  preprocess_settings,
  restore_probabilities,
)
from vamcei_jax.data.scan import Scan, read_scan, scan_of_array, scan_of_dicom, scan_of_image
from vamcei_jax.environment import jax_settings
from vamcei_jax.errors import InputError
from vamcei_jax.files import expanded
from vamcei_jax.inference.field import Region, View, find_field, whole_slices
from vamcei_jax.inference.postprocess import postprocess, smooth_slices
from vamcei_jax.inference.prediction import Prediction
from vamcei_jax.inference.quality import Finding, assess, touches_border
from vamcei_jax.inference.uncertainty import entropy, structure_uncertainty, summarise_draws

_HALF_TURN = 3.14  # rotation in radians by which, with a flip, all orientations are reached
_LOST = "it is not known how the slices lie; of the eight ways, the one with the lowest entropy was taken"
VolumeLike = str | os.PathLike | Scan | DicomVolume | nib.spatialimages.SpatialImage | np.ndarray | Array


@dataclasses.dataclass(frozen=True)
class Segmenter:
  """A trained network for prediction; made by vamcei_jax.load_segmenter.

  Attributes:
    config: configuration of the stage that trained the network.
    inference: how it predicts.
    segment: (prepared volume (D, h, w), key = None) -> class probabilities (D, h, w, K).
    glance: the same without test-time augmentation, to find the heart and the orientation.
    locate: volume -> pixel on which the field is centred, or None for the middle of the image.

  Example:
    >>> segmenter = vamcei_jax.load_segmenter("weights/lge", tta=True)
    >>> prediction = segmenter("patient1.nii.gz")
  """

  config: StageConfig
  inference: InferenceConfig
  segment: Callable[..., np.ndarray] = dataclasses.field(repr=False)
  glance: Callable[..., np.ndarray] = dataclasses.field(repr=False)
  locate: Callable[[Volume], Centre] = dataclasses.field(repr=False)

  @jax_settings()
  def __call__(self, volume: VolumeLike, spacing: Sequence[float] | None = None) -> Prediction:
    """Segments a short-axis volume.

    Args:
      volume: NIfTI file, DICOM folder or file of one volume, DicomVolume, nibabel image, array (D, H, W) with the
        slices first, or a Scan.
      spacing: mm along D, H and W of an array, or along the axes of a NIfTI file or an image, in place of its header's.

    Returns:
      The prediction, on the grid and axes of the volume.

    Raises:
      InputError: the volume cannot be read, or its voxel size is implausible.

    Example:
      >>> prediction = segmenter("patient1.nii.gz")
      >>> prediction.volumes_ml["LV"]
    """
    scan = _read(volume, spacing, self.config.data.plane)
    filled = scan.volume.voxels.max((1, 2)) > scan.volume.voxels.min((1, 2))  # a blank slice is background
    scan, region, view, findings = self._find(scan, filled)
    part = _stack(scan.volume, filled).cropped(*region)
    if view is None:
      view = self._view(scan.name, part) if filled.any() else View(_background(part))
    probs, draws, cut = view
    classes = postprocess(probs) if self.inference.postprocess and filled.any() else probs.argmax(-1).astype(np.uint8)
    entropies, uncertainty = None, {}
    if draws:
      entropies = entropy(probs)
      uncertainty = structure_uncertainty(classes, draws, entropies, part.spacing)
    paste = partial(_paste, filled=filled, region=region)
    mask, maps = paste(classes, np.zeros_like(scan.volume.voxels, np.uint8)), paste(probs, _background(scan.volume))
    values = np.array(first_values(self.config.data.label_values))
    volumes_ml = _volumes(mask, scan.volume.spacing)
    return Prediction(
      mask=scan.restore_axes(compact(values)[mask]),
      probabilities=scan.restore_axes(maps),
      volumes_ml=volumes_ml,
      quality=assess(maps, mask, volumes_ml, uniform=not filled.any(), cut=cut, assumed=findings),
      uncertainty=uncertainty,
      entropy=None if entropies is None else scan.restore_axes(paste(entropies, np.zeros(mask.shape, np.float32))),
      scan=scan,
    )

  def _find(self, scan: Scan, filled: np.ndarray) -> tuple[Scan, Region, View | None, list[Finding]]:
    """Where to look: the scan in the orientation that is assumed, the region that has the heart, and what was assumed.

    Args:
      scan: as it was read.
      filled: (D,) whether a slice is not blank.

    Returns:
      The scan; rows and columns of the region; the view of it, or None if the network was not needed, or if the
      prediction needs test-time augmentation or samples; the findings.
    """
    findings = [Finding("voxel size assumed", note) for note in scan.notes]
    if scan.dicom is not None and scan.dicom.series > 1:
      findings.append(Finding("series joined", f"{scan.dicom.series} series of one slice each, taken as one stack"))
    if note := self._settings(scan.name, scan.volume)[1]:
      findings.append(Finding("pixels resampled", note))
    if not filled.any():
      return scan, whole_slices(scan.volume), None, findings
    # One prediction from the latent means is enough to find the heart.
    quick = dataclasses.replace(self, segment=self.glance, inference=dataclasses.replace(self.inference, samples=0))
    look = lambda volume: quick._view(scan.name, volume)
    searched = scan.lost and not every_orientation(self.config.augment)
    scans = [scan.turned(turn) for turn in TURNS] if searched else [scan]
    number, region, view = find_field(look, [_stack(each.volume, filled) for each in scans], self.inference.extent_mm)
    if searched:
      findings.append(Finding("orientation assumed", _LOST))
    scan = scans[number]
    stack = _stack(scan.volume, filled)
    if region != whole_slices(stack):
      size = "×".join(f"{n * mm:.0f}" for n, mm in zip(stack.voxels.shape[1:], stack.spacing[1:], strict=True))
      text = f"slices of {size} mm are larger than those of the training; a part of them was segmented"
      findings.append(Finding("heart looked for", text))
    return scan, region, view if quick == self else None, findings

  def _settings(self, name: str, volume: Volume) -> tuple[Preprocess, str]:
    """The grid of the network for a volume, and a note if its pixels are resampled."""
    settings = preprocess_settings(self.config.data)
    if not self.inference.resample:
      return settings, ""
    try:
      matched = match_pixels(settings, volume.spacing, self.inference.pixel_mm)
    except InputError as error:
      raise InputError(f"{name}: {error}") from None
    if matched == settings or matched.spacing is None:
      return settings, ""
    pixels = "×".join(f"{mm:.3g}" for mm in volume.spacing[1:])
    return matched, f"pixels of {pixels} mm, resampled to the {matched.spacing * settings.zoom:.3g} mm of the training"

  def _view(self, name: str, volume: Volume) -> View:
    """The prediction for a volume."""
    settings, _ = self._settings(name, volume)
    centre = self.locate(volume)
    image = preprocess_image(volume.voxels, volume.spacing, settings, centre)
    # At most over one slice: headers with too small a distance would mix the whole stack.
    distance = max(volume.spacing[0], self.inference.smooth)

    def restore(probs: np.ndarray) -> np.ndarray:
      smoothed = smooth_slices(probs, distance, self.inference.smooth)
      return restore_probabilities(smoothed, volume.voxels.shape, volume.spacing, settings, centre)

    # Every volume gets the same noise, so its prediction does not depend on the other volumes.
    keys = jax.random.split(jax.random.key(0), self.inference.samples) if self.inference.samples else (None,)
    fields = [self.segment(image, key) for key in keys]
    cut = any(touches_border(field.argmax(-1)) for field in fields)
    if not self.inference.samples:
      return View(restore(fields[0]), cut=cut)
    return View(*summarise_draws(map(restore, fields)), cut)


def _read(volume: VolumeLike, spacing: Sequence[float] | None, plane: str) -> Scan:
  if isinstance(volume, str | os.PathLike):
    return _read_path(expanded(os.fspath(volume)), plane, spacing)
  if isinstance(volume, Scan):
    return volume
  if isinstance(volume, DicomVolume):
    return _read_dicom(volume, plane, spacing)
  if isinstance(volume, nib.spatialimages.SpatialImage):
    return scan_of_image(volume, plane, spacing)
  if not isinstance(volume, np.ndarray | Array):
    raise InputError(f"{type(volume).__name__}: expected a NIfTI file, a nibabel image or an array (D, H, W)")
  if spacing is None:
    raise InputError("spacing: not given; an array needs spacing=(mm, mm, mm) along its slices, rows and columns")
  return scan_of_array(np.asarray(volume), spacing, plane)


def every_orientation(strengths: AugmentConfig) -> bool:
  """Whether a network was trained on slices in every orientation, so that none has to be searched for."""
  return bool(strengths.flip) and strengths.rotation >= _HALF_TURN


def _stack(volume: Volume, filled: np.ndarray) -> Volume:
  """The slices of a volume that are not blank."""
  return dataclasses.replace(volume, voxels=volume.voxels[filled])


def _background(volume: Volume) -> np.ndarray:
  """Class probabilities (D, H, W, K) of background alone."""
  probs = np.zeros((*volume.voxels.shape, len(CLASSES)), np.float32)
  probs[..., 0] = 1.0
  return probs


def _paste(part: np.ndarray, whole: np.ndarray, filled: np.ndarray, region: Region) -> np.ndarray:
  """The maps of the whole volume with those of a region of the slices that were looked at."""
  whole[filled, region[0], region[1]] = part
  return whole


def _read_path(path: Path, plane: str, spacing: Sequence[float] | None) -> Scan:
  if path.is_dir() or (path.is_file() and not path.name.endswith(SUFFIXES) and is_dicom(path)):
    return _read_dicom(read_dicom(path), plane, spacing)
  return read_scan(path, plane, spacing)


def _read_dicom(volume: DicomVolume, plane: str, spacing: Sequence[float] | None) -> Scan:
  if spacing is not None:
    raise InputError(f"{volume}: DICOM files hold their voxel size; leave the spacing out")
  return scan_of_dicom(volume, plane)


def _volumes(classes: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
  millilitres = float(np.prod(spacing)) / 1000.0
  return {name: float((classes == index).sum() * millilitres) for index, name in enumerate(STRUCTURES, start=1)}
