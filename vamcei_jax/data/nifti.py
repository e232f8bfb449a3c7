"""NIfTI in and out: short-axis stacks in one canonical orientation, label files as class indices.

Short-axis stacks lie near 45 degrees to the body's axes, where "closest to RAS" permutes the axes differently from
patient to patient. So the axes are ordered by the stack itself: across the slices first (the largest spacing), then
rows and columns as they best align with a typical short-axis view. Volumes of the whole heart, whose slices may lie
along any axis, are ordered by the body's.
"""

import dataclasses
import gzip
import itertools
import math
import os
import stat
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from vamcei_jax.data.labels import LabelValues, folded_values
from vamcei_jax.errors import InputError
from vamcei_jax.files import replacing

# Unit directions in RAS of a typical short-axis view: from slice to slice (D), row to row (H), column to column (W).
VIEW = np.array([[0.65, -0.65, 0.45], [-0.45, 0.2, 0.85], [-0.66, -0.72, -0.1]])
VIEW /= np.linalg.norm(VIEW, axis=1, keepdims=True)
# The views in which volumes are seen: "short_axis" keeps the slices that were taken, the others are the body's planes.
VIEWS = {
  "short_axis": VIEW,
  "axial": np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]]),
  "coronal": np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]]),
  "sagittal": np.array([[1, 0, 0], [0, 0, -1], [0, -1, 0]]),
}

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


SUFFIXES = (".nii", ".nii.gz")
MAX_VOXELS = 2**27  # of a volume, 512 x 512 x 512: what is claimed beyond is refused before memory is taken
TRAILER = 2**20  # bytes that may lie before and behind the voxels
MANUAL = "_manual"  # ends the name of a mask that lies beside its image
MAPS = ("entropy", "probabilities")  # what prediction may write beside a mask, as NAME_MAP
MAP_ENDINGS = tuple(f"_{kind}" for kind in MAPS)

# Where a volume lies: a file, or the files of its 2-D slices, in order.
Files = str | os.PathLike | Sequence[str | os.PathLike]


@dataclasses.dataclass(frozen=True)
class Volume:
  """A stack in the canonical orientation of its view.

  voxels: (D, H, W) float32, slices first (uint8 class indices, if it is a mask).
  affine: (4, 4) float64, from the canonical voxel (d, h, w, 1) to RAS millimetres.
  view: a key of VIEWS.
  """

  voxels: np.ndarray
  affine: np.ndarray
  view: str = "short_axis"

  @property
  def spacing(self) -> tuple[float, float, float]:
    """Millimetres from voxel to voxel along D, H and W."""
    return tuple(nib.affines.voxel_sizes(self.affine).tolist())


def read_volume(path: Files, view: str = "short_axis") -> Volume:
  """The image in a NIfTI file, scaled as its header says and turned to the canonical orientation of a view."""
  voxels, affine = _read(path, view)
  with np.errstate(over="ignore"):
    return Volume(_finite(path, voxels.astype(np.float32, order="C")), affine, view)


def read_classes(path: Files, like: Volume, label_values: LabelValues) -> np.ndarray:
  """The mask in a NIfTI file, turned to the canonical orientation of its image's view.

  Files that store labels as rounded floats or through a scale factor are read as well: a value counts as a label when
  it is within 0.01 of it (or within 1e-4 of the largest label value, if that is more).

  Args:
    path: the mask.
    like: the image that the mask belongs to.
    label_values: the file's values of each class, in the order of the class indices.

  Returns:
    (D, H, W) uint8 class indices.
  """
  voxels, affine = _read(path, like.view)
  check_grid(path, Volume(voxels, affine, like.view), like)
  return _classes(path, voxels, label_values)


def check_grid(path: Files, volume: Volume, like: Volume) -> None:
  """Raises an InputError where a volume, from the file `path`, has not the size and the place of another one."""
  if volume.voxels.shape != like.voxels.shape:
    raise InputError(
      f"{_name(path)}: {_slices(volume.voxels)}, expected {_slices(like.voxels)}. Resample it to the image's grid."
    )
  if (apart := _distance(volume.affine, like.affine, like.voxels.shape)) > max(like.spacing):
    raise InputError(f"{_name(path)}: lies {apart:.0f} mm from its place by its affine. Repair its header.")


def read_mask(path: str | os.PathLike, label_values: LabelValues) -> Volume:
  """The mask in a NIfTI file that has no image beside it: a Volume whose voxels are uint8 class indices."""
  voxels, affine = _read(path, "short_axis")
  return Volume(_classes(path, voxels, label_values), affine)


def write_classes(
  path: str | os.PathLike,
  classes: np.ndarray,
  label_values: LabelValues,
  like: str | os.PathLike,
  view: str = "short_axis",
) -> None:
  """Writes (D, H, W) class indices as a mask on the grid of the file `like`, with its header, or not at all."""
  first = np.array([values[0] for values in folded_values(label_values)])
  write_map(path, _compact(first)[classes], like, view)


def write_map(
  path: str | os.PathLike, voxels: np.ndarray, like: str | os.PathLike, view: str = "short_axis"
) -> None:
  """Writes a map (D, H, W) or (D, H, W, K) on the grid of the file `like`, with its header, or not at all.

  `view` is that in which `like` was read.
  """
  image, original = _load(like)
  back = nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], _orientation(image.affine, view))
  voxels = nib.apply_orientation(voxels, back)
  if voxels.shape[:3] != original.shape:
    raise ValueError(f"a map on a grid of {voxels.shape[:3]}, {like} has {original.shape}")
  header = image.header.copy()
  header.set_data_dtype(voxels.dtype)
  header.set_slope_inter(1, 0)
  header["cal_min"] = header["cal_max"] = 0  # the display window is that of the image
  _save(path, type(image)(voxels, image.affine, header))


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


def volume_name(file: Path) -> str | None:
  """A NIfTI file's name without its suffix; None for other and for hidden files."""
  if not file.name.endswith(SUFFIXES) or file.name.startswith("."):
    return None
  return file.name.removesuffix(".gz").removesuffix(".nii")


def list_volumes(source: Path) -> list[Path]:
  """The volumes that `source` names: itself, or the NIfTI files in it but for masks and maps of others of them.

  These are NAME_manual, NAME_entropy and NAME_probabilities, beside NAME.

  Raises:
    InputError: nothing there.
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
    InputError: no such folder, none in it, two of one name, or a name that is no text.
  """
  named = {}
  for path in _list_files(folder):
    if (name := volume_name(path)) in named:
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


def _read(path: Files, view: str) -> tuple[np.ndarray, np.ndarray]:
  """Voxels (D, H, W) in the canonical orientation, and their affine."""
  if not isinstance(path, str | os.PathLike):
    return _read_slices(path)
  image, voxels = _load(path)
  turn = _orientation(image.affine, view)
  return nib.apply_orientation(voxels, turn), image.affine @ nib.orientations.inv_ornt_aff(turn, voxels.shape)


def _classes(path: Files, voxels: np.ndarray, label_values: LabelValues) -> np.ndarray:
  """Class indices of label values; see read_classes."""
  _finite(path, voxels)
  pairs = [(k, value) for k, own in enumerate(folded_values(label_values)) for value in own]
  classes, labels = zip(*pairs, strict=True)
  values, where = np.unique(voxels, return_inverse=True)
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
  return np.asarray(classes, np.uint8)[distance.argmin(axis=1)][where.reshape(voxels.shape)]


def _read_slices(paths: Sequence[str | os.PathLike]) -> tuple[np.ndarray, np.ndarray]:
  """As _read, from one file a slice: the slices in their order, rows and columns as they are stored."""
  images, slices = zip(*(_load(path, dimensions=2) for path in paths), strict=True)
  for path, voxels in zip(paths, slices, strict=True):
    if voxels.shape != slices[0].shape:
      raise InputError(
        f"{path}: slice of {voxels.shape[0]} x {voxels.shape[1]}, {paths[0]} has "
        f"{slices[0].shape[0]} x {slices[0].shape[1]}. Bring a stack's slices to one grid."
      )
  affine = images[0].affine[:, [2, 1, 0, 3]]
  step = (images[-1].affine - images[0].affine)[:3, 3] / max(1, len(images) - 1)
  if np.linalg.norm(step) > 1e-3:  # the files say where each slice lies
    affine[:3, 0] = step
  return np.stack([voxels.T for voxels in slices]), affine


def _orientation(affine: np.ndarray, view: str) -> np.ndarray:
  """(3, 2) target axis and direction (1 or -1) of each axis of a file, as in nibabel.orientations."""
  spacing = nib.affines.voxel_sizes(affine)
  directions = affine[:3, :3] / spacing
  orders = list(itertools.permutations(range(3)))  # which axes of the file become D, H and W
  if view == "short_axis":
    thickest = np.flatnonzero(spacing >= 0.99 * spacing.max())
    across = thickest[np.abs(directions[2, thickest]).argmax()]
    orders = [order for order in orders if order[0] == across]
  cosines = VIEWS[view] @ directions
  order = max(orders, key=lambda order: np.abs(cosines[[1, 2], order[1:]]).sum() + np.abs(cosines[0, order[0]]))
  turn = np.empty((3, 2), int)
  for target, axis in enumerate(order):
    turn[axis] = target, -1 if cosines[target, axis] < 0 else 1
  return turn


def _load(path: str | os.PathLike, dimensions: int = 3) -> tuple[nib.Nifti1Image, np.ndarray]:
  """A NIfTI file and its scaled voxels in file order, 3-D (or 2-D) and of real numbers, on a grid that is one."""
  try:
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for somebody to write into it
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
  """What nibabel logs of headers that it mends, or raises an error for as well, is not the user's."""
  logger = nib.imageglobals.logger
  before, logger.disabled = logger.disabled, True
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      yield
  finally:
    logger.disabled = before


def _read_image(path: str | os.PathLike, file: BinaryIO, dimensions: int) -> nib.Nifti1Image:
  """The image of an open file. What its header claims is looked at before memory is taken."""
  start = file.read(nib.Nifti2Header.sizeof_hdr)
  kind = nib.Nifti2Image if nib.Nifti2Header.may_contain_header(start) else nib.Nifti1Image
  header = kind.header_class(start[: kind.header_class.sizeof_hdr])
  _check(path, header.get_data_shape(), header.get_best_affine(), header, dimensions)
  if not 0 <= header.get_data_offset() <= TRAILER:
    raise ValueError(f"voxels from byte {header.get_data_offset()} on")
  needed = header.get_data_offset() + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
  content = start + file.read(needed + TRAILER - len(start))
  if needed > len(content):
    raise EOFError(f"{len(content)} of {needed} bytes")
  if file.read(1):  # at the end of a gzip file, its checksum is looked at
    raise ValueError(f"longer than the {needed} bytes that its header tells")
  return kind.from_bytes(content)


def _check(
  path: str | os.PathLike, shape: tuple[int, ...], affine: np.ndarray, header: nib.Nifti1Header, dimensions: int
) -> None:
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
  with np.errstate(all="ignore"):
    volume = abs(np.linalg.det(affine[:3, :3] / nib.affines.voxel_sizes(affine)))  # of the unit directions
  if not np.isfinite(affine).all() or not volume > 1e-3:
    raise InputError(f"{path}: affine is singular or not finite. Repair the header's sform or qform.")


def _finite(path: Files, voxels: np.ndarray) -> np.ndarray:
  """The voxels, all of which are finite."""
  bad = voxels.size - np.isfinite(voxels).sum()
  if bad:
    raise InputError(f"{_name(path)}: {bad} of {voxels.size} voxels are NaN or infinite. Replace them first.")
  return voxels


def _name(path: Files) -> str:
  """What an error calls a volume: its file, or the first of its slices."""
  return str(path if isinstance(path, str | os.PathLike) else path[0])


def _distance(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
  """The largest distance (mm) between the places that two affines give the corners of a grid."""
  corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in shape))])
  return float(np.linalg.norm((affine - other) @ corners.T, axis=0).max())


def _compact(values: np.ndarray) -> np.ndarray:
  """The values as int16, which every viewer reads, or as int32 where they need it."""
  return values.astype(np.int16 if np.abs(values).max() < 2**15 else np.int32)


def _slices(voxels: np.ndarray) -> str:
  return "{} slices of {} x {}".format(*voxels.shape)


def _save(path: str | os.PathLike, image: nib.Nifti1Image) -> None:
  path = Path(path)
  if not path.name.endswith(SUFFIXES):
    raise InputError(f"{path}: not a NIfTI name; choose one that ends in .nii or .nii.gz.")
  try:
    with replacing(path) as temporary:
      image.to_filename(temporary)
  except OSError as error:
    raise InputError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from error
