"""NIfTI in and out: stacks in the canonical orientation of geometry.py, label files as class indices."""

import dataclasses
import gzip
import itertools
import math
import os
import stat
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from vamcei_jax.data.geometry import orient, orientation_of, read_geometry
from vamcei_jax.data.labels import LabelValues, folded_values
from vamcei_jax.errors import InputError
from vamcei_jax.files import replacing

SUFFIXES = (".nii", ".nii.gz")
MAX_VOXELS = 2**27  # of a volume, 512 x 512 x 512; larger headers are refused before memory is allocated
TRAILER = 2**20  # most bytes before the voxels, and most bytes after them
MANUAL = "_manual"  # ends the name of a mask that lies beside its image
MAPS = ("entropy", "probabilities")  # maps that prediction writes beside a mask, as NAME_MAP
MAP_ENDINGS = tuple(f"_{kind}" for kind in MAPS)

# What gzip, numpy and nibabel raise on damaged files.
_DAMAGED = (
  ImageFileError,
  HeaderDataError,
  WrapStructError,
  EOFError,
  MemoryError,
  OSError,
  OverflowError,
  ValueError,
  zlib.error,
)

# A volume is a file, or the files of its 2-D slices, in order.
Files = str | os.PathLike | Sequence[str | os.PathLike]


@dataclasses.dataclass(frozen=True)
class Volume:
  """A volume in the canonical orientation of a plane.

  voxels: (D, H, W), slices first: float32 intensities of an image, or uint8 class indices of a mask.
  affine: (4, 4) float64, from the canonical voxel (d, h, w, 1) to RAS millimetres.
  plane: of the slices, a key of PLANES.
  """

  voxels: np.ndarray
  affine: np.ndarray
  plane: str = "short_axis"

  @property
  def spacing(self) -> tuple[float, float, float]:
    """Millimetres from voxel to voxel along D, H and W."""
    depth, height, width = voxel_sizes(self.affine).tolist()
    return depth, height, width


def read_volume(path: Files, plane: str = "short_axis") -> Volume:
  """Reads an image, scaled as its header says, in the canonical orientation of a plane.

  Args:
    path: a NIfTI file, or the files of its slices in order.
    plane: of the slices, a key of PLANES.

  Raises:
    InputError: a file that is missing, damaged or not a volume of finite real numbers.
  """
  return image_volume(path, *_read(path, plane), plane)


def image_volume(path: Files, voxels: np.ndarray, affine: np.ndarray, plane: str) -> Volume:
  """The Volume of an image in the canonical orientation; an InputError names `path` if a voxel is not finite."""
  with np.errstate(over="ignore"):
    return Volume(check_finite(path, voxels.astype(np.float32, order="C")), affine, plane)


def read_classes(path: Files, like: Volume, label_values: LabelValues) -> np.ndarray:
  """Reads a mask in the canonical orientation of its image's plane.

  Labels may be stored as rounded floats or through a scale factor: a voxel has a label value if it differs from it by
  0.01 at most (or by 1e-4 of the largest label value, if that is more).

  Args:
    path: the mask.
    like: the image that the mask belongs to.
    label_values: the file's values of each class, in the order of the class indices.

  Returns:
    (D, H, W) uint8 class indices.

  Raises:
    InputError: see `read_volume`; a mask that is not on its image's grid, or that has other values.
  """
  voxels, affine = _read(path, like.plane)
  check_grid(path, Volume(voxels, affine, like.plane), like)
  return _classes(path, voxels, label_values)


def check_grid(path: Files, volume: Volume, like: Volume) -> None:
  """Checks that the volume of the file `path` has the size and the position of the volume `like`.

  Raises:
    InputError: it has not.
  """
  if volume.voxels.shape != like.voxels.shape:
    raise InputError(
      f"{_name(path)}: {_slices(volume.voxels)}, expected {_slices(like.voxels)}. Resample it to the image's grid."
    )
  if (apart := _distance(volume.affine, like.affine, like.voxels.shape)) > max(like.spacing):
    raise InputError(f"{_name(path)}: lies {apart:.0f} mm from its place by its affine. Repair its header.")


def read_mask(path: str | os.PathLike, label_values: LabelValues) -> Volume:
  """Reads a short-axis mask without its image: a Volume of uint8 class indices. See `read_classes`."""
  voxels, affine = _read(path, "short_axis")
  return Volume(_classes(path, voxels, label_values), affine)


def write_volume(path: str | os.PathLike, voxels: np.ndarray, affine: np.ndarray) -> None:
  """Writes a new NIfTI file. The write is atomic.

  Args:
    path: ends in .nii or .nii.gz.
    voxels: (D, H, W) in the canonical orientation: an image, stored as float32, or a mask of label values, stored as
      integers. The first axis of the file is that of the columns, as in scanners' files.
    affine: (4, 4) from (d, h, w, 1) to RAS millimetres.

  Raises:
    InputError: a path that cannot be written.
  """
  voxels = compact(voxels) if np.issubdtype(voxels.dtype, np.integer) else voxels.astype(np.float32)
  image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
  image.header.set_xyzt_units("mm")
  save_image(path, image)


def volume_name(file: Path) -> str | None:
  """The name of a NIfTI file without its suffix; None for hidden files and for those of other types."""
  if not file.name.endswith(SUFFIXES) or file.name.startswith("."):
    return None
  return file.name.removesuffix(".gz").removesuffix(".nii")


def list_volumes(source: Path) -> list[Path]:
  """The volumes of a file or a folder, by name.

  Args:
    source: a NIfTI file, or a folder of them. Of a folder, NAME_manual, NAME_entropy and NAME_probabilities beside NAME
      are left out: they are masks and maps.

  Raises:
    InputError: no NIfTI file.
  """
  if source.is_file() and source.name.endswith(SUFFIXES):
    return [source]
  if source.is_file():
    raise InputError(f"{source}: not a {' or '.join(SUFFIXES)} file; convert it first")
  paths = _list_files(source)
  names = {volume_name(path) for path in paths}
  beside = {f"{name}{ending}" for name in names for ending in (MANUAL, *MAP_ENDINGS)}
  return [path for path in paths if volume_name(path) not in beside]


def name_volumes(folder: Path) -> dict[str, Path]:
  """Name -> file of the NIfTI files in a folder, by name.

  Raises:
    InputError: no such folder, no NIfTI file in it, two files of one name, or a name that is not printable.
  """
  named: dict[str, Path] = {}
  for path in _list_files(folder):
    if (name := volume_name(path) or "") in named:
      raise InputError(f"{path}: a second file of this name, beside {named[name].name}; remove one of them")
    named[name] = path
  return named


def _list_files(folder: Path) -> list[Path]:
  """The NIfTI files in a folder, by name."""
  if folder.exists() and not folder.is_dir():
    raise InputError(f"{folder}: a file; name its folder")
  if not folder.is_dir():
    raise InputError(f"{folder}: no such file or folder; name a folder of NIfTI files")
  paths = sorted(path for path in folder.iterdir() if volume_name(path))
  for path in paths:
    if not path.name.isprintable():  # line breaks, and bytes that are not UTF-8
      raise InputError(f"{folder}: a file is called {ascii(path.name)}; rename it")
  if not paths:
    raise InputError(f"{folder}: no {' or '.join(SUFFIXES)} file in it")
  return paths


def _read(path: Files, plane: str) -> tuple[np.ndarray, np.ndarray]:
  """Voxels (D, H, W) in the canonical orientation, and their affine."""
  if not isinstance(path, str | os.PathLike):
    return _read_slices(path)
  image, voxels = load_image(path)
  geometry = read_geometry(str(path), image.header)
  for note in geometry.notes:
    print(f"{path}: {note}", file=sys.stderr)
  affine = geometry.affine
  return orient(voxels, affine, orientation_of(str(path), affine, voxels.shape, plane))


def _classes(path: Files, voxels: np.ndarray, label_values: LabelValues) -> np.ndarray:
  """(D, H, W) uint8 class indices of voxels with label values; see `read_classes`."""
  check_finite(path, voxels)
  pairs = [(k, value) for k, folded in enumerate(folded_values(label_values)) for value in folded]
  classes, labels = zip(*pairs, strict=True)
  values, inverse = np.unique(voxels, return_inverse=True)
  distance = np.abs(values[:, None].astype(np.float64) - np.asarray(labels, np.float64))
  unknown = values[distance.min(axis=1) > 1e-4 * max(100, *map(abs, labels))]
  if len(unknown):
    found, allowed = ", ".join(f"{value:g}" for value in unknown[:5]), ", ".join(map(str, labels))
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    more += " (an image?)" if len(unknown) > 50 else ""
    raise InputError(
      f"{_name(path)}: unknown label values {found}{more}; expected only {allowed}. "
      "Correct the mask or the label values (--config.data.label_values, --label_values)."
    )
  return np.asarray(classes, np.uint8)[distance.argmin(axis=1)][inverse.reshape(voxels.shape)]


def _read_slices(paths: Sequence[str | os.PathLike]) -> tuple[np.ndarray, np.ndarray]:
  """Voxels (D, H, W) and affine of one file a slice, in the order of the files; rows and columns as stored."""
  images, slices = zip(*(load_image(path, dimensions=2) for path in paths), strict=True)
  for path, image in zip(paths, images, strict=True):
    read_geometry(str(path), image.header)  # raises an error for a singular affine
  for path, voxels in zip(paths, slices, strict=True):
    if voxels.shape != slices[0].shape:
      raise InputError(
        f"{path}: slice of {voxels.shape[0]} x {voxels.shape[1]}, {paths[0]} has "
        f"{slices[0].shape[0]} x {slices[0].shape[1]}. Bring a stack's slices to one grid."
      )
  affine = images[0].affine[:, [2, 1, 0, 3]]
  step = (images[-1].affine - images[0].affine)[:3, 3] / max(1, len(images) - 1)
  if np.linalg.norm(step) > 1e-3:  # else the files do not hold the positions of their slices
    affine[:3, 0] = step
  return np.stack([voxels.T for voxels in slices]), affine


def load_image(path: str | os.PathLike, dimensions: int = 3) -> tuple[nib.Nifti1Image, np.ndarray]:
  """A NIfTI file, and its scaled voxels in the order of the file.

  Args:
    path: of the file.
    dimensions: that it must have; a further axis of length 1 is dropped.

  Raises:
    InputError: a file that is missing, damaged, of other dimensions or not of real numbers.
  """
  try:
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for its writer
      raise OSError("not a regular file")
    with open(path, "rb") as file:
      zipped = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else open(path, "rb") as file, _silent_nibabel():
      image = _read_image(path, file, dimensions)
    return image, np.asanyarray(image.dataobj).reshape(image.shape[:dimensions])
  except FileNotFoundError as error:
    raise InputError(f"{path}: no such file. Check the path.") from error
  except _DAMAGED as error:
    reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
    raise InputError(f"{path}: not a readable NIfTI file ({reason}). Export or copy it again.") from error


@contextmanager
def _silent_nibabel() -> Iterator[None]:
  """Suppresses nibabel's log and warnings: it mends some headers, and raises errors for the others."""
  logger = imageglobals.logger
  before, logger.disabled = logger.disabled, True
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      yield
  finally:
    logger.disabled = before


def _read_image(path: str | os.PathLike, file: BinaryIO | gzip.GzipFile, dimensions: int) -> nib.Nifti1Image:
  """The image of an open file. Its header is checked before memory is allocated."""
  start = file.read(nib.Nifti2Header.sizeof_hdr)
  kind = nib.Nifti2Image if nib.Nifti2Header.may_contain_header(start) else nib.Nifti1Image
  header = kind.header_class(start[: kind.header_class.sizeof_hdr])
  check_header(path, header, dimensions)
  if not 0 <= header.get_data_offset() <= TRAILER:
    raise ValueError(f"voxels from byte {header.get_data_offset()} on")
  needed = header.get_data_offset() + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
  content = start + file.read(needed + TRAILER - len(start))
  if needed > len(content):
    raise EOFError(f"{len(content)} of {needed} bytes")
  if file.read(1):  # which verifies the checksum at the end of a gzip file
    raise ValueError(f"longer than the {needed} bytes by its header")
  return kind.from_bytes(content)


def check_header(path: str | os.PathLike, header: nib.Nifti1Header, dimensions: int) -> None:
  """Raises an InputError for a header of other dimensions, with too many voxels or with others than real numbers."""
  shape = header.get_data_shape()
  if len(shape) != dimensions and not (len(shape) == dimensions + 1 and shape[dimensions] == 1):
    way_out = "Stack the slices first." if len(shape) < dimensions else "Split the series first."
    kind = "volume" if dimensions == 3 else "slice"
    raise InputError(f"{path}: {len(shape)}-D image {shape}; expected one {dimensions}-D {kind}. {way_out}")
  if min(shape) < 1:
    raise InputError(f"{path}: empty image {shape}. Export it again.")
  if math.prod(shape) > MAX_VOXELS:
    raise InputError(f"{path}: {math.prod(shape)} voxels {shape}; at most {MAX_VOXELS} can be handled. Crop it.")
  if header.get_data_dtype().kind not in "iuf":
    kind = header.get_value_label("datatype")
    raise InputError(f"{path}: {kind} voxels; expected real numbers. Export it as a grey-scale image.")


def check_finite(path: Files, voxels: np.ndarray) -> np.ndarray:
  """The voxels. Raises an InputError if some are not finite."""
  bad = voxels.size - np.isfinite(voxels).sum()
  if bad:
    raise InputError(f"{_name(path)}: {bad} of {voxels.size} voxels are NaN or infinite. Replace them first.")
  return voxels


def _name(path: Files) -> str:
  """The name of a volume in errors: its file, or the first of its slices."""
  return str(path if isinstance(path, str | os.PathLike) else path[0])


def _distance(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
  """The largest distance (mm) between the positions that two affines give to the corners of a grid."""
  corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in shape))])
  return float(np.linalg.norm((affine - other) @ corners.T, axis=0).max())


def compact(values: np.ndarray) -> np.ndarray:
  """The values as int16, which every viewer reads, or as int32 if they are too large."""
  return values.astype(np.int16 if np.abs(values).max() < 2**15 else np.int32)


def _slices(voxels: np.ndarray) -> str:
  return "{} slices of {} x {}".format(*voxels.shape)


def save_image(path: str | os.PathLike, image: nib.Nifti1Image) -> None:
  """Writes a file atomically. Raises an InputError for a name of another type and a path that cannot be written."""
  path = Path(path)
  if not path.name.endswith(SUFFIXES):
    raise InputError(f"{path}: not a NIfTI name; choose one that ends in .nii or .nii.gz.")
  try:
    with replacing(path) as temporary:
      image.to_filename(temporary)
  except OSError as error:
    raise InputError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from error
