"""A volume as a user gives it, in the canonical orientation, with the way back to its own axes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, ornt_transform

from vamcei_jax.data.dicom import read_voxels
from vamcei_jax.data.dicom_series import DicomVolume
from vamcei_jax.data.geometry import check_voxels, orient, orientation_of, read_geometry
from vamcei_jax.data.nifti import Volume, check_header, image_volume, load_image, save_image, stored_voxels
from vamcei_jax.errors import InputError

_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])


@dataclasses.dataclass(frozen=True)
class Scan:
  """A volume as a user gives it.

  Attributes:
    name: of the volume in error messages.
    volume: in the canonical orientation.
    orientation: (3, 2) canonical axis and direction of each of the scan's axes, as in nibabel.orientations.
    image: with the header and the affine of the scan.
    path: of the file, or None.
    lost: whether the directions of the axes within the slices are unknown, see `Geometry`.
    notes: what was assumed about the geometry, one sentence each.
    dicom: the slices of a DICOM volume, or None.
  """

  name: str
  volume: Volume
  orientation: np.ndarray
  image: nib.Nifti1Image
  path: Path | None = None
  dicom: DicomVolume | None = None
  lost: bool = False
  notes: tuple[str, ...] = ()

  def turned(self, turn: np.ndarray) -> "Scan":
    """The scan with another canonical orientation: its slices turned as one of TURNS says."""
    axes, directions = self.orientation.T
    composed = np.column_stack([turn[axes, 0], directions * turn[axes, 1]])
    return dataclasses.replace(self, volume=self.volume.turned(turn), orientation=composed)

  def restore_axes(self, maps: np.ndarray) -> np.ndarray:
    """Maps (D, H, W) or (D, H, W, K) in the canonical orientation with the scan's own axes."""
    return apply_orientation(maps, ornt_transform(_CANONICAL, self.orientation))

  def save(self, path: str | Path, maps: np.ndarray) -> None:
    """Writes maps with the scan's own axes as a NIfTI file with its header, or not at all.

    Raises:
      InputError: the file cannot be written, or has another suffix.
      ValueError: the maps are on another grid.
    """
    if maps.shape[:3] != self.image.shape[:3]:
      raise ValueError(f"a map on a grid of {maps.shape[:3]}, {self.name} has {self.image.shape[:3]}")
    header = self.image.header.copy()
    header.set_data_dtype(maps.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the display window of the image does not fit the map
    save_image(path, type(self.image)(maps, self.image.affine, header))


def read_scan(path: Path, plane: str, spacing: Sequence[float] | None = None) -> Scan:
  """The scan in a NIfTI file.

  Args:
    path: of the file.
    plane: a key of PLANES.
    spacing: mm along the file's axes, in place of the header's.

  Raises:
    InputError: the file cannot be read, holds no 3-D image of real numbers, or has an implausible voxel size.
  """
  image, voxels = load_image(path)
  return _make(str(path), image, voxels, plane, path, spacing, image.extra["pixdim"])


def scan_of_image(image: nib.spatialimages.SpatialImage, plane: str, spacing: Sequence[float] | None = None) -> Scan:
  """The scan of a nibabel image; see read_scan."""
  path = image.get_filename()
  name = path or "the image"
  image = nib.Nifti1Image.from_image(image)
  check_header(name, image.header, 3)
  voxels = stored_voxels(name, image, 3)
  return _make(name, image, voxels, plane, Path(path) if path else None, spacing)


def scan_of_dicom(volume: DicomVolume, plane: str) -> Scan:
  """The scan of a DICOM volume.

  Raises:
    InputError: its pixels are damaged, or cannot be decoded here.
  """
  voxels = read_voxels(volume)
  image = nib.Nifti1Image(voxels, volume.affine)
  image.header.set_xyzt_units("mm")
  # DICOM always holds the directions of the axes.
  return dataclasses.replace(_make(str(volume), image, voxels, plane, None, None), dicom=volume, lost=False)


def scan_of_array(voxels: np.ndarray, spacing: Sequence[float], plane: str) -> Scan:
  """The scan of an array (D, H, W), slices first, whose rows and columns have unknown directions.

  Args:
    voxels: any real type.
    spacing: mm along D, H and W.
    plane: a key of PLANES.

  Raises:
    InputError: the array is not 3-D or not of real numbers, or the spacing is not three positive numbers.
  """
  if voxels.ndim != 3 or not voxels.size or voxels.dtype.kind not in "iufb":
    raise InputError(f"array of shape {voxels.shape} and type {voxels.dtype}: expected real numbers (D, H, W)")
  affine = np.diag([*_checked(spacing), 1.0])
  volume = image_volume("the array", voxels, affine, plane)
  check_voxels("the array", volume.spacing)
  image = nib.Nifti1Image(np.zeros(voxels.shape, np.uint8), affine)
  return Scan("the array", volume, _CANONICAL, image, lost=plane == "short_axis")


def scan_of_volume(name: str, volume: Volume) -> Scan:
  """The scan of a volume that was read in the canonical orientation; its own axes are the canonical ones."""
  image = nib.Nifti1Image(np.zeros(volume.voxels.shape, np.uint8), volume.affine)
  return Scan(name, volume, _CANONICAL, image, lost=volume.lost and volume.plane == "short_axis")


def _make(
  name: str,
  image: nib.Nifti1Image,
  voxels: np.ndarray,
  plane: str,
  path: Path | None,
  spacing: Sequence[float] | None,
  pixdim: Sequence[float] | None = None,
) -> Scan:
  geometry = read_geometry(name, image.header, None if spacing is None else _checked(spacing), pixdim)
  orientation = orientation_of(name, geometry.affine, voxels.shape, plane)
  volume = image_volume(name, *orient(voxels, geometry.affine, orientation), plane)
  check_voxels(name, volume.spacing)
  lost = geometry.lost and plane == "short_axis"
  return Scan(name, volume, orientation, image, path, lost=lost, notes=geometry.notes)


def _checked(spacing: Sequence[float]) -> list[float]:
  mm = np.asarray(spacing)
  if mm.shape != (3,) or mm.dtype.kind not in "iuf" or not (np.isfinite(mm) & (mm > 0)).all():
    raise InputError(f"spacing={spacing}: must be three positive numbers, in mm")
  return [float(value) for value in mm]
