"""NIfTI in and out: stacks in the canonical orientation of geometry.py, label files as class indices."""

import dataclasses
import functools
import gzip
import itertools
import math
import os
import re
import stat
import sys
import threading
import unicodedata
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from vamcei_jax.data.geometry import orient, orientation_of, read_geometry, spacing_of, stored_orientation
from vamcei_jax.data.labels import LabelValues, folded_values
from vamcei_jax.errors import InputError
from vamcei_jax.files import replacing

PROCESS = threading.RLock()  # held while log, warnings or stderr of the whole process are changed
SUFFIXES = (".nii", ".nii.gz")
MAX_VOXELS = 2**27  # of a volume, 512 x 512 x 512; larger headers are refused before memory is allocated
# Names of images in formats that are not read, and of NIfTI files whose suffix is in other letters or compression.
UNREAD = re.compile(r"\.(nii|hdr|img|mha|mhd|nrrd|nhdr|mgh|mgz|gipl)(\.(gz|bz2|xz|zst|zip))?", re.IGNORECASE)
HEADER = 2**26  # most bytes before the voxels: the header and its extensions
TRAILER = 2**20  # most bytes after the voxels
SHIFT = 2.0  # mm by which a mask may lie beside its image at most; half a slice if that is less
MANUAL = "_manual"  # ends the name of a mask that lies beside its image
MAPS = ("entropy", "probabilities")  # maps that prediction writes beside a mask, as NAME_MAP
MAP_ENDINGS = tuple(f"_{kind}" for kind in MAPS)
_CONVERT = "not a .nii or .nii.gz file; convert it first"

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
  lost: whether the header has lost the directions of rows and columns, see `Geometry`.
  stored: whether rows and columns are those of the file, whatever its header says.
  """

  voxels: np.ndarray
  affine: np.ndarray
  plane: str = "short_axis"
  lost: bool = False
  stored: bool = False

  @property
  def spacing(self) -> tuple[float, float, float]:
    """Millimetres from slice to slice, and from voxel to voxel along H and W; see spacing_of."""
    return spacing_of(self.affine)

  def levels(self, direction: np.ndarray) -> np.ndarray:
    """(D,) mm: where the middle of each slice lies along a unit direction (3,) in RAS."""
    _, height, width = self.voxels.shape[:3]
    first = self.affine @ (0, (height - 1) / 2, (width - 1) / 2, 1)
    return (first[:3] + np.arange(len(self.voxels))[:, None] * self.affine[:3, 0]) @ direction

  def cropped(self, rows: slice, columns: slice) -> "Volume":
    """The volume without the pixels outside these rows and columns."""
    affine = self.affine.copy()
    affine[:3, 3] += affine[:3, 1] * rows.start + affine[:3, 2] * columns.start
    return dataclasses.replace(self, voxels=self.voxels[:, rows, columns], affine=affine)

  def turned(self, turn: np.ndarray) -> "Volume":
    """The volume with its slices turned as one of TURNS says."""
    voxels, affine = orient(self.voxels, self.affine, turn)
    return dataclasses.replace(self, voxels=np.ascontiguousarray(voxels), affine=affine)


def read_volume(path: Files, plane: str = "short_axis", *, keep_lost: bool = False) -> Volume:
  """Reads an image, scaled as its header says, in the canonical orientation of a plane.

  Args:
    path: a NIfTI file, or the files of its slices in order.
    plane: of the slices, a key of PLANES.
    keep_lost: whether rows and columns whose directions are lost stay as they are in the file.

  Raises:
    InputError: a file that is missing, damaged or not a volume of finite real numbers.
  """
  read = _read(path, plane, keep="lost" if keep_lost else "never")
  volume = image_volume(path, read.voxels, read.affine, plane)
  return dataclasses.replace(volume, lost=read.lost, stored=read.stored)


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
  mask = _read(path, like.plane, keep="always" if like.stored else "never")
  if like.stored and mask.lost and np.allclose(mask.spacing, like.spacing, rtol=0.01):
    mask = dataclasses.replace(mask, affine=like.affine)  # lost directions tell no place
  check_grid(path, mask, like)
  return _classes(path, mask.voxels, label_values)


def check_grid(path: Files, volume: Volume, like: Volume) -> None:
  """Checks that the volume of the file `path` has the size and the position of the volume `like`.

  Raises:
    InputError: it has not; a position may differ by half a slice, and by SHIFT.
  """
  if volume.voxels.shape != like.voxels.shape:
    raise InputError(
      f"{_name(path)}: {_slices(volume.voxels)}, expected {_slices(like.voxels)}. Resample it to the image's grid."
    )
  if (apart := _distance(volume.affine, like.affine, like.voxels.shape)) > min(SHIFT, like.spacing[0] / 2):
    raise InputError(f"{_name(path)}: lies {apart:.2g} mm from its place by its affine. Repair its header.")


def read_mask(path: str | os.PathLike, label_values: LabelValues) -> Volume:
  """Reads a short-axis mask without its image: a Volume of uint8 class indices. See `read_classes`."""
  mask = _read(path, "short_axis", keep="never")
  return Volume(_classes(path, mask.voxels, label_values), mask.affine)


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


def split_name(file: Path) -> tuple[str, str]:
  """The name of a NIfTI file without its suffix, and its suffix."""
  stem = file.name.removesuffix(".gz").removesuffix(".nii")
  return stem, file.name[len(stem) :]


def volume_name(file: Path, folder: Path | None = None) -> str | None:
  """The name of a NIfTI file without its suffix; None for hidden files and for those of other types.

  Args:
    file: need not exist.
    folder: above the file; its name then begins with the folders in between: "sub-01/lge".
  """
  if not file.name.endswith(SUFFIXES) or file.name.startswith("."):
    return None
  place = file.with_name(split_name(file)[0]).relative_to(folder or file.parent)
  # Some systems decompose accented letters: two files of one name are then two strings.
  return unicodedata.normalize("NFC", place.as_posix())


def list_volumes(source: Path, leave_out: Path | None = None) -> list[Path]:
  """The volumes of a file, or of a folder and the folders in it, by name.

  Args:
    source: a NIfTI file, or a folder. NAME_manual, NAME_entropy and NAME_probabilities beside NAME are left out: they
      are masks and maps.
    leave_out: a folder that is not searched.

  Raises:
    InputError: no NIfTI file.
  """
  if source.is_file() and source.name.endswith(SUFFIXES):
    return [source]
  if source.is_file():
    raise InputError(f"{source}: {unread_reason(source) or _CONVERT}")
  paths = _list_files(source, leave_out)
  names = {volume_name(path, source) for path in paths}
  beside = {f"{name}{ending}" for name in names for ending in (MANUAL, *MAP_ENDINGS)}
  return [path for path in paths if volume_name(path, source) not in beside]


def list_unread(source: Path, leave_out: Path | None = None) -> list[str]:
  """A line for each image in a folder, and in the folders in it, that is in a format that is not read."""
  found = walk(source, leave_out) if source.is_dir() else []
  return [f"{path}: {reason}" for path in found if (reason := unread_reason(path))]


def unread_reason(file: Path) -> str:
  """Why an image is not read by its name, and the way out; empty for NIfTI files, and for files that are no images."""
  suffix = UNREAD.search(file.name)
  if not suffix or suffix.end() < len(file.name) or file.name.startswith(".") or file.name.endswith(SUFFIXES):
    return ""
  if suffix[0].lower() in SUFFIXES:
    return f"its suffix is {suffix[0]}. Rename it to {file.name[: suffix.start()]}{suffix[0].lower()}."
  return _CONVERT


def name_volumes(folder: Path) -> dict[str, Path]:
  """Name -> file of the NIfTI files in a folder and in the folders in it, by name.

  Raises:
    InputError: no such folder, no NIfTI file in it, two files of one name, or a name that is not printable.
  """
  named: dict[str, Path] = {}
  for path in _list_files(folder):
    if (name := volume_name(path, folder) or "") in named:
      raise InputError(f"{path}: a second file of this name, beside {named[name].name}; remove one of them")
    named[name] = path
  return named


def _list_files(folder: Path, leave_out: Path | None = None) -> list[Path]:
  """The NIfTI files in a folder and in the folders in it, by name."""
  if folder.exists() and not folder.is_dir():
    raise InputError(f"{folder}: a file; name its folder")
  if not folder.is_dir():
    raise InputError(f"{folder}: no such file or folder; name a folder of NIfTI files")
  paths = [path for path in walk(folder, leave_out) if volume_name(path)]
  for path in paths:
    if not str(path.relative_to(folder)).isprintable():  # line breaks, and bytes that are not UTF-8
      raise InputError(f"{folder}: a file is called {ascii(str(path.relative_to(folder)))}; rename it")
  if not paths:
    unread = list_unread(folder, leave_out)
    raise InputError(f"{folder}: no {' or '.join(SUFFIXES)} file in it" + (f". {unread[0]}" if unread else ""))
  return paths


def has_volumes(source: Path, leave_out: Path | None = None) -> bool:
  """Whether there is a NIfTI file in a folder or in the folders in it, but for those that are left out."""
  return source.is_dir() and any(map(volume_name, walk(source, leave_out)))


def walk(folder: Path, leave_out: Path | None, above: tuple[Path, ...] = ()) -> list[Path]:
  """The files in a folder and in the folders in it, by name, without hidden folders. Links are followed."""
  found: list[Path] = []
  for path in sorted(folder.iterdir()):
    # An empty folder with the name of a volume is a damaged file to its user.
    if path.is_dir() and (not volume_name(path) or any(path.iterdir())):
      hidden, loop = path.name.startswith("."), path.resolve() in (*above, folder.resolve())
      if not (hidden or loop or (leave_out is not None and leave_out.exists() and path.samefile(leave_out))):
        found += walk(path, leave_out, (*above, folder.resolve()))
    else:
      found.append(path)
  return found


@functools.cache
def _say_once(line: str) -> None:
  """Prints a line to stderr, the first time alone: a run reads its files several times."""
  print(line, file=sys.stderr)


def _read(path: Files, plane: str, *, keep: Literal["never", "lost", "always"]) -> Volume:
  """Voxels (D, H, W) as they are stored, in the canonical orientation.

  Args:
    path: of the file or files.
    plane: a key of PLANES.
    keep: when rows and columns stay as in the file: "lost" is where the header has lost their directions.
  """
  if not isinstance(path, str | os.PathLike):
    return Volume(*_read_slices(path), plane)
  image, voxels = load_image(path)
  geometry = read_geometry(str(path), image.header, pixdim=image.extra["pixdim"])
  for note in geometry.notes:
    _say_once(f"{path}: {note}")
  affine, lost = geometry.affine, geometry.lost and plane == "short_axis"
  stored = keep == "always" or (keep == "lost" and lost)
  if stored:
    orientation = stored_orientation(str(path), affine, voxels.shape)
  else:
    orientation = orientation_of(str(path), affine, voxels.shape, plane)
  return Volume(*orient(voxels, affine, orientation), plane, lost, stored)


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
      "Correct the mask or the label values (--config.data.label_values, --label_values). If some masks have other "
      'values than others, give all values of each class, as in --label_values="0,(1,200),(2,500),(3,600)".'
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
    dimensions: that it must have; further axes of length 1 are dropped.

  Raises:
    InputError: a file that is missing, damaged, of other dimensions or not of real numbers.
  """
  with _named_damage(path):
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for its writer
      raise OSError("not a regular file")
    with open(path, "rb") as file:
      zipped = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else open(path, "rb") as file, _silent_nibabel():
      image = _read_image(path, file, dimensions)
  return image, stored_voxels(path, image, dimensions)


def stored_voxels(name: str | os.PathLike, image: nib.Nifti1Image, dimensions: int) -> np.ndarray:
  """The scaled voxels of an image in its own order, without further axes of length 1.

  Raises:
    InputError: they cannot be read.
  """
  with _named_damage(name):
    return np.asanyarray(image.dataobj).reshape(image.shape[:dimensions])


@contextmanager
def _named_damage(name: str | os.PathLike) -> Iterator[None]:
  """Raises an InputError with this name in place of what damaged files raise."""
  try:
    yield
  except FileNotFoundError as error:
    raise InputError(f"{name}: no such file. Check the path.") from error
  except _DAMAGED as error:
    reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
    raise InputError(f"{name}: not a readable NIfTI file ({reason}). Export or copy it again.") from error


@contextmanager
def _silent_nibabel() -> Iterator[None]:
  """Suppresses nibabel's log and warnings: it mends some headers, and raises errors for the others."""
  logger = imageglobals.logger
  with PROCESS:
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
  if not 0 <= header.get_data_offset() <= HEADER:
    raise ValueError(f"voxels from byte {header.get_data_offset()} on, beyond {HEADER >> 20} MiB of header extensions")
  needed = header.get_data_offset() + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
  content = start + file.read(max(0, needed - len(start)))
  if needed > len(content):
    raise EOFError(f"{len(content)} of {needed} bytes")
  if len(_read_rest(file)) > TRAILER:
    raise ValueError(f"longer than the {needed} bytes by its header")
  image = kind.from_bytes(content)
  image.extra["pixdim"] = kind.header_class(start[: kind.header_class.sizeof_hdr], check=False)["pixdim"][1:4]
  return image


def _read_rest(file: BinaryIO | gzip.GzipFile) -> bytes:
  """At most TRAILER + 1 of the bytes after the voxels. Reading to the end verifies the checksum of a gzip file."""
  try:
    return file.read(TRAILER + 1)
  except gzip.BadGzipFile as error:
    if "Not a gzipped file" not in str(error):
      raise
    return b""  # other bytes after the gzip data, whose checksum was right


def check_header(path: str | os.PathLike, header: nib.Nifti1Header, dimensions: int) -> None:
  """Raises an InputError for a header of other dimensions, with too many voxels or with others than real numbers."""
  shape = header.get_data_shape()
  if len(shape) < dimensions or set(shape[dimensions:]) - {1}:
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
  check_name(path)
  try:
    with replacing(path) as temporary:
      image.to_filename(temporary)
  except OSError as error:
    raise InputError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from error


def check_name(path: Path) -> None:
  """Raises an InputError if a file of this name would be no NIfTI file."""
  if not path.name.endswith(SUFFIXES):
    raise InputError(f"{path}: not a NIfTI name; choose one that ends in .nii or .nii.gz.")
