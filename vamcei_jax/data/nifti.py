"""NIfTI in and out: short-axis stacks in one canonical orientation, label files as class indices.

Short-axis stacks lie near 45 degrees to the body's axes, where "closest to RAS" permutes the axes differently from
patient to patient. So the axes are ordered by the stack itself: across the slices first (the largest spacing), then
rows and columns as they best align with a typical short-axis view.
"""

import dataclasses
import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from vamcei_jax.errors import InputError
from vamcei_jax.files import replacing

# Unit directions in RAS of a typical short-axis view: from slice to slice (D), row to row (H), column to column (W).
VIEW = np.array([[0.65, -0.65, 0.45], [-0.45, 0.2, 0.85], [-0.66, -0.72, -0.1]])
VIEW /= np.linalg.norm(VIEW, axis=1, keepdims=True)

# What gzip, numpy and nibabel raise on damaged files.
_DAMAGED = (
  nib.filebasedimages.ImageFileError,
  nib.spatialimages.HeaderDataError,
  nib.wrapstruct.WrapStructError,
  EOFError,
  MemoryError,
  OSError,
  OverflowError,
  ValueError,
  zlib.error,
)


@dataclasses.dataclass(frozen=True)
class Volume:
  """A short-axis stack in the canonical orientation.

  voxels: (D, H, W) float32, slices first.
  affine: (4, 4) float64, from the canonical voxel (d, h, w, 1) to RAS millimetres.
  """

  voxels: np.ndarray
  affine: np.ndarray

  @property
  def spacing(self) -> tuple[float, float, float]:
    """Millimetres from voxel to voxel along D, H and W."""
    return tuple(nib.affines.voxel_sizes(self.affine).tolist())


def read_volume(path: str | os.PathLike) -> Volume:
  """The image in a NIfTI file, scaled as its header says and turned to the canonical orientation."""
  image, voxels = _load(path)
  turn = _orientation(image.affine)
  affine = image.affine @ nib.orientations.inv_ornt_aff(turn, voxels.shape)
  with np.errstate(over="ignore"):
    voxels = _finite(path, nib.apply_orientation(voxels, turn).astype(np.float32, order="C"))
  return Volume(voxels, affine)


def read_classes(path: str | os.PathLike, like: Volume, label_values: Sequence[int]) -> np.ndarray:
  """The mask in a NIfTI file, turned to the canonical orientation.

  Files that store labels as rounded floats or through a scale factor are read as well: a value counts as a label when
  it is within 0.01 of it (or within 1e-4 of the largest label value, if that is more).

  Args:
    path: the mask.
    like: the image that the mask belongs to.
    label_values: the file's value of each class, in the order of the class indices.

  Returns:
    (D, H, W) uint8 class indices.
  """
  image, voxels = _load(path)
  voxels = nib.apply_orientation(_finite(path, voxels), _orientation(image.affine))
  if voxels.shape != like.voxels.shape:
    raise InputError(
      f"{path}: mask of {_slices(voxels)}, its image has {_slices(like.voxels)}. Resample the mask to the image's grid."
    )
  labels = np.asarray(label_values, np.float64)
  values, where = np.unique(voxels, return_inverse=True)
  distance = np.abs(values[:, None].astype(np.float64) - labels)
  unknown = values[distance.min(axis=1) > 1e-4 * max(100, np.abs(labels).max())]
  if len(unknown):
    found, allowed = ", ".join(f"{value:g}" for value in unknown[:5]), ", ".join(map(str, label_values))
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    raise InputError(f"{path}: unknown label values {found}{more}; expected only {allowed}. Correct the mask.")
  return distance.argmin(axis=1).astype(np.uint8)[where.reshape(voxels.shape)]


def write_classes(
  path: str | os.PathLike, classes: np.ndarray, label_values: Sequence[int], like: str | os.PathLike
) -> None:
  """Writes (D, H, W) class indices as a mask on the grid of the file `like`, with its header, or not at all."""
  image, voxels = _load(like)
  turn = _orientation(image.affine)
  back = nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], turn)
  labels = nib.apply_orientation(_compact(np.asarray(label_values))[classes], back)
  if labels.shape != voxels.shape:
    raise ValueError(f"classes on a grid of {labels.shape}, {like} has {voxels.shape}")
  header = image.header.copy()
  header.set_data_dtype(labels.dtype)
  header["cal_min"] = header["cal_max"] = 0  # the display window is that of the image
  _save(path, type(image)(labels, image.affine, header))


def write_volume(path: str | os.PathLike, voxels: np.ndarray, affine: np.ndarray) -> None:
  """Writes a (D, H, W) image (as float32) or mask of label values (as integers) as a new NIfTI file, or not at all.

  Args:
    path: ends in .nii or .nii.gz.
    voxels: in the canonical orientation; stored column first, as scanners do.
    affine: (4, 4) from (d, h, w, 1) to RAS millimetres.
  """
  voxels = _compact(voxels) if np.issubdtype(voxels.dtype, np.integer) else voxels.astype(np.float32)
  image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
  image.header.set_xyzt_units("mm")
  _save(path, image)


def _orientation(affine: np.ndarray) -> np.ndarray:
  """(3, 2) target axis and direction (1 or -1) of each axis of a file, as in nibabel.orientations."""
  spacing = nib.affines.voxel_sizes(affine)
  directions = affine[:3, :3] / spacing
  thickest = np.flatnonzero(spacing >= 0.99 * spacing.max())
  across = thickest[np.abs(directions[2, thickest]).argmax()]
  cosines = VIEW @ directions
  a, b = np.delete(np.arange(3), across)
  rows, columns = max((a, b), (b, a), key=lambda pair: np.abs(cosines[[1, 2], pair]).sum())
  turn = np.empty((3, 2), int)
  for target, axis in enumerate((across, rows, columns)):
    turn[axis] = target, -1 if cosines[target, axis] < 0 else 1
  return turn


def _load(path: str | os.PathLike) -> tuple[nib.Nifti1Image, np.ndarray]:
  """A NIfTI file and its scaled voxels in file order, 3-D and of real numbers, on a grid that is one."""
  try:
    content = Path(path).read_bytes()
    if content.startswith(b"\x1f\x8b"):
      content = gzip.decompress(content)  # all of it, so that the checksum is looked at
    kind = nib.Nifti2Image if nib.Nifti2Header.may_contain_header(content) else nib.Nifti1Image
    image = kind.from_bytes(content)
    _check(path, image)
    needed = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    if needed > len(content):
      raise EOFError(f"{len(content)} of {needed} bytes")
    return image, np.asanyarray(image.dataobj).reshape(image.shape[:3])
  except FileNotFoundError as error:
    raise InputError(f"{path}: no such file. Check the path.") from error
  except _DAMAGED as error:
    reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
    raise InputError(f"{path}: not a readable NIfTI file ({reason}). Export or copy it again.") from error


def _check(path: str | os.PathLike, image: nib.Nifti1Image) -> None:
  shape, affine = image.shape, image.affine
  if len(shape) != 3 and not (len(shape) == 4 and shape[3] == 1):
    way_out = "Split the series first." if len(shape) > 3 else "Stack the slices first."
    raise InputError(f"{path}: {len(shape)}-D image {shape}; expected one 3-D volume. {way_out}")
  if min(shape) < 1:
    raise InputError(f"{path}: empty image {shape}. Export it again.")
  if image.get_data_dtype().kind not in "iuf":
    kind = image.header.get_value_label("datatype")
    raise InputError(f"{path}: {kind} voxels; expected real numbers. Export it as a grey-scale image.")
  with np.errstate(all="ignore"):
    volume = abs(np.linalg.det(affine[:3, :3] / nib.affines.voxel_sizes(affine)))  # of the unit directions
  if not np.isfinite(affine).all() or not volume > 1e-3:
    raise InputError(f"{path}: affine is singular or not finite. Repair the header's sform or qform.")


def _finite(path: str | os.PathLike, voxels: np.ndarray) -> np.ndarray:
  """The voxels, all of which are finite."""
  bad = voxels.size - np.isfinite(voxels).sum()
  if bad:
    raise InputError(f"{path}: {bad} of {voxels.size} voxels are NaN or infinite. Replace them first.")
  return voxels


def _compact(values: np.ndarray) -> np.ndarray:
  """The values as int16, which every viewer reads, or as int32 where they need it."""
  return values.astype(np.int16 if np.abs(values).max() < 2**15 else np.int32)


def _slices(voxels: np.ndarray) -> str:
  return "{} slices of {} x {}".format(*voxels.shape)


def _save(path: str | os.PathLike, image: nib.Nifti1Image) -> None:
  path = Path(path)
  if not path.name.endswith((".nii", ".nii.gz")):
    raise InputError(f"{path}: not a NIfTI name; choose one that ends in .nii or .nii.gz.")
  try:
    with replacing(path) as temporary:
      image.to_filename(temporary)
  except OSError as error:
    raise InputError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from error
