"""A Prediction: mask, probabilities, volumes and quality of one volume."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from vamcei_jax.data.nifti import check_name
from vamcei_jax.data.scan import Scan
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.metrics import DENSITY
from vamcei_jax.files import expanded, replacing
from vamcei_jax.inference.quality import Quality

SAVABLE = ("mask", "probabilities", "entropy")


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a Segmenter predicts of one volume. Arrays have the grid and the axes of the volume.

  Attributes:
    mask: (X, Y, Z) label values, as in the masks of the training data.
    probabilities: (X, Y, Z, K) float32 class probabilities: background, Myo, LV, RV.
    volumes_ml: structure -> volume of the mask in ml.
    quality: findings by name, and a score in [0, 1].
    uncertainty: structure -> statistics over latent samples; empty without samples.
    entropy: (X, Y, Z) of the probabilities in nats, or None without samples.
    scan: the volume.

  Example:
    >>> prediction = segmenter("patient1.nii.gz")
    >>> prediction.mask, prediction.volumes_ml["LV"], prediction.quality.score
    >>> prediction.save("mask.nii.gz")
  """

  mask: np.ndarray = dataclasses.field(repr=False)
  probabilities: np.ndarray = dataclasses.field(repr=False)
  volumes_ml: Mapping[str, float]
  quality: Quality
  uncertainty: Mapping[str, Mapping[str, float | None]]
  entropy: np.ndarray | None = dataclasses.field(repr=False)
  scan: Scan = dataclasses.field(repr=False)

  @property
  def myocardial_mass_g(self) -> float:
    """Mass of the myocardium in g, at 1.05 g/ml.

    Example:
      >>> print(f"{prediction.myocardial_mass_g:.0f} g")
    """
    return DENSITY * self.volumes_ml["Myo"]

  def save(self, path: str | Path, what: str = "mask") -> None:
    """Writes a map as a NIfTI file with the header of the volume.

    Args:
      path: of the file; ends in .nii or .nii.gz.
      what: "mask", "probabilities" or "entropy".

    Raises:
      InputError: the path is that of the volume, or the file cannot be written.

    Example:
      >>> prediction.save("mask.nii.gz")
    """
    self.save_maps({what: path})

  def save_maps(self, files: Mapping[str, str | Path], remove: Iterable[Path] = ()) -> None:
    """Writes several maps. No file is replaced before all of them are on the disk.

    A link in the place of a file is replaced, its target is not.

    Args:
      files: map -> its file, see `save`. The file of the first map gets its name last.
      remove: files that are removed before the new ones get their names.

    Raises:
      InputError: see `save`.

    Example:
      >>> prediction.save_maps({"mask": "mask.nii.gz", "probabilities": "probabilities.nii.gz"})
    """
    paths, remove = {what: expanded(path) for what, path in files.items()}, list(remove)
    for what, path in paths.items():
      self._check(what, path)
    for path in remove:
      self._refuse_volume(path, "map")
    path = temporary = Path()
    try:
      with ExitStack() as finished:
        for what, path in paths.items():
          temporary = finished.enter_context(replacing(path))
          self.scan.save(temporary, getattr(self, what))
        for file in remove:
          file.unlink(missing_ok=True)
    except OSError as error:
      where = error.filename2 or path
      raise InputError(f"{where}: cannot be written ({error.strerror}). Choose another place.") from error
    except InputError as error:
      raise InputError(str(error).replace(str(temporary), str(path))) from error

  def _check(self, what: str, path: Path) -> None:
    """Raises an InputError if there is no such map, or if it cannot have this file."""
    if what == "entropy" and self.entropy is None:
      raise InputError("entropy: computed with samples=N in load_segmenter only")
    if what not in SAVABLE:
      raise InputError(f"{what}: not a map of a prediction; choose from {', '.join(SAVABLE)}")
    check_name(path)
    if path.is_dir():
      raise InputError(f"{path}: a folder; choose another file for the {what}")
    self._refuse_volume(path, what)

  def _refuse_volume(self, path: Path, what: str) -> None:
    """Raises an InputError if a file that is written or removed is that of the volume."""
    volume = self.scan.path
    if volume is not None and volume.exists() and path.exists() and os.path.samefile(path, volume):
      raise InputError(f"{path}: the volume itself; choose another file for the {what}")
