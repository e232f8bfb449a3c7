"""The Segmenter: a trained network that turns a volume into a Prediction."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
from jax import Array

from vamcei_jax.config.schema import InferenceConfig, StageConfig
from vamcei_jax.data.dicom import is_dicom, read_dicom
from vamcei_jax.data.dicom_series import DicomVolume
from vamcei_jax.data.labels import STRUCTURES, folded_values
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
from vamcei_jax.errors import InputError
from vamcei_jax.inference.postprocess import postprocess, smooth_slices
from vamcei_jax.inference.prediction import Prediction
from vamcei_jax.inference.quality import assess, touches_border
from vamcei_jax.inference.uncertainty import entropy, structure_uncertainty, summarise_draws

VolumeLike = str | os.PathLike | DicomVolume | nib.spatialimages.SpatialImage | np.ndarray | Array


@dataclasses.dataclass(frozen=True)
class Segmenter:
  """A trained network for prediction; made by vamcei_jax.load_segmenter.

  Attributes:
    config: configuration of the stage that trained the network.
    inference: how it predicts.
    segment: (prepared volume (D, h, w), key = None) -> class probabilities (D, h, w, K).
    locate: volume -> pixel on which the field is centred, or None for the middle of the image.
  """

  config: StageConfig
  inference: InferenceConfig
  segment: Callable[..., np.ndarray] = dataclasses.field(repr=False)
  locate: Callable[[Volume], Centre] = dataclasses.field(repr=False)

  def __call__(self, volume: VolumeLike, spacing: Sequence[float] | None = None) -> Prediction:
    """Segments a short-axis volume.

    Args:
      volume: NIfTI file, DICOM folder or file of one volume, DicomVolume, nibabel image, or array (D, H, W) with the
        slices first.
      spacing: mm along D, H and W, of an array.

    Returns:
      The prediction, on the grid and axes of the volume.

    Raises:
      InputError: the volume cannot be read, its voxel size is implausible, or a file or an image comes with `spacing`.

    Example:
      >>> prediction = segmenter("patient1.nii.gz")
      >>> prediction.volumes_ml["LV"]
    """
    scan = _read(volume, spacing, self.config.data.plane)
    settings, note = self._settings(scan)
    centre = self.locate(scan.volume)
    image = preprocess_image(scan.volume.voxels, scan.volume.spacing, settings, centre)
    probs, draws, cut = self._probabilities(image, scan.volume, settings, centre)
    classes = postprocess(probs) if self.inference.postprocess else probs.argmax(-1).astype(np.uint8)
    entropies = entropy(probs) if draws else None
    uncertainty = {}
    if entropies is not None:
      uncertainty = structure_uncertainty(classes, draws, entropies, scan.volume.spacing)
    values = np.array([value[0] for value in folded_values(self.config.data.label_values)])
    return Prediction(
      mask=scan.restore_axes(compact(values)[classes]),
      probabilities=scan.restore_axes(probs),
      volumes_ml=_volumes(classes, scan.volume.spacing),
      quality=assess(probs, classes, uniform=image.min() == image.max(), cut=cut, note=note),
      uncertainty=uncertainty,
      entropy=None if entropies is None else scan.restore_axes(entropies),
      scan=scan,
    )

  def _settings(self, scan: Scan) -> tuple[Preprocess, str]:
    """The grid of the network for a scan, and a note if its pixels are resampled."""
    settings = preprocess_settings(self.config.data)
    if not self.inference.resample:
      return settings, ""
    try:
      matched = match_pixels(settings, scan.volume.spacing, self.inference.pixel_mm)
    except InputError as error:
      raise InputError(f"{scan.name}: {error}") from None
    if matched == settings or matched.spacing is None:
      return settings, ""
    pixels = "×".join(f"{mm:.3g}" for mm in scan.volume.spacing[1:])
    return matched, f"pixels of {pixels} mm, resampled to the {matched.spacing * settings.zoom:.3g} mm of the training"

  def _probabilities(
    self, image: np.ndarray, volume: Volume, settings: Preprocess, centre: Centre
  ) -> tuple[np.ndarray, list[np.ndarray], bool]:
    """Class probabilities (D, H, W, K) on the volume's grid, the classes of each latent sample, and whether the
    border of the network's field cuts a structure."""

    def restore(probs: np.ndarray) -> np.ndarray:
      smoothed = smooth_slices(probs, volume.spacing[0], self.inference.smooth)
      return restore_probabilities(smoothed, volume.voxels.shape, volume.spacing, settings, centre)

    # Every volume gets the same noise, so its prediction does not depend on the other volumes.
    keys = jax.random.split(jax.random.key(0), self.inference.samples) if self.inference.samples else (None,)
    fields = [self.segment(image, key) for key in keys]
    cut = any(touches_border(field.argmax(-1)) for field in fields)
    if not self.inference.samples:
      return restore(fields[0]), [], cut
    return *summarise_draws(map(restore, fields)), cut


def _read(volume: VolumeLike, spacing: Sequence[float] | None, plane: str) -> Scan:
  if spacing is not None and isinstance(volume, str | os.PathLike | DicomVolume | nib.spatialimages.SpatialImage):
    raise InputError("spacing: for arrays only; that of a file or an image is in its header")
  if isinstance(volume, str | os.PathLike):
    return _read_path(Path(volume).expanduser(), plane)
  if isinstance(volume, DicomVolume):
    return scan_of_dicom(volume, plane)
  if isinstance(volume, nib.spatialimages.SpatialImage):
    return scan_of_image(volume, plane)
  if not isinstance(volume, np.ndarray | Array):
    raise InputError(f"{type(volume).__name__}: expected a NIfTI file, a nibabel image or an array (D, H, W)")
  if spacing is None:
    raise InputError("spacing: not given; an array needs spacing=(mm, mm, mm) along its slices, rows and columns")
  return scan_of_array(np.asarray(volume), spacing, plane)


def _read_path(path: Path, plane: str) -> Scan:
  if path.is_dir() or (path.is_file() and not path.name.endswith(SUFFIXES) and is_dicom(path)):
    return scan_of_dicom(read_dicom(path), plane)
  return read_scan(path, plane)


def _volumes(classes: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
  millilitres = float(np.prod(spacing)) / 1000.0
  return {name: float((classes == index).sum() * millilitres) for index, name in enumerate(STRUCTURES, start=1)}
