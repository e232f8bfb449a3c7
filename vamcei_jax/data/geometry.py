"""The geometry of a file: voxel size, directions of the axes, the axis across the slices, canonical orientation.

Short-axis stacks lie near 45 degrees to the body's axes, where "closest to RAS" permutes the axes differently from
patient to patient. So the first canonical axis goes across the slices, and the other two are those that align best with
the rows and columns of a typical short-axis stack. Volumes of the whole heart, whose slices may lie along any axis, are
ordered by the axes of the body.

Headers are often incomplete or contradict themselves. `Geometry.notes` lists what is assumed in place of them.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff

from vamcei_jax.errors import InputError

# Unit directions in RAS of a typical short-axis stack: from slice to slice (D), row to row (H), column to column (W).
SHORT_AXIS = np.array([[0.65, -0.65, 0.45], [-0.45, 0.2, 0.85], [-0.66, -0.72, -0.1]])
SHORT_AXIS /= np.linalg.norm(SHORT_AXIS, axis=1, keepdims=True)
# Planes of the slices (D, H, W): "short_axis" keeps the slices as acquired, the others are the planes of the body.
PLANES = {
  "short_axis": SHORT_AXIS,
  "axial": np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]]),
  "coronal": np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]]),
  "sagittal": np.array([[1, 0, 0], [0, 0, -1], [0, -1, 0]]),
}

_MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}  # in the header's unit of length: metre, millimetre, micrometre
_IN_PLANE_MM, _ACROSS_MM = (0.1, 10.0), (0.5, 30.0)  # voxel sizes that a heart is imaged with
_PARALLEL = 0.999  # cosine above which an axis counts as parallel to an axis of the body


# The eight ways in which the rows and columns of slices can lie, as orientations of nibabel; the first changes nothing.
TURNS = [
  np.array([[0, 1], [rows, down], [3 - rows, right]]) for rows in (1, 2) for down in (1, -1) for right in (1, -1)
]


@dataclasses.dataclass(frozen=True)
class Geometry:
  """Where the voxels of a file lie.

  Attributes:
    affine: (4, 4) float64, from the file's voxel (i, j, k, 1) to RAS millimetres.
    lost: whether a short-axis stack has lost the directions of its axes: they are not in the header, or parallel to the
      axes of the body, as no short-axis stack lies.
    notes: what was assumed where the header contradicts itself, one sentence each.
  """

  affine: np.ndarray
  lost: bool
  notes: tuple[str, ...] = ()


def read_geometry(
  name: str,
  header: nib.Nifti1Header,
  spacing: Sequence[float] | None = None,
  pixdim: Sequence[float] | None = None,
) -> Geometry:
  """The geometry that a header describes.

  The voxel size is in the header twice: in `pixdim` and in the columns of `sform`. Where they differ by more than 1 %,
  a side that has a bare 1 on these axes loses, else `pixdim` is believed, as in tools that build on ITK.

  Args:
    name: of the file, for errors.
    header: of the file.
    spacing: voxel size in mm along the file's axes, in place of the header's.
    pixdim: the three numbers as they are in the file, where nibabel has changed the header: it makes 1 of 0.

  Raises:
    InputError: the header gives no voxel size, or its axes have no directions.
  """
  header, unit = header.copy(), _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
  sizes = np.abs(np.asarray(header["pixdim"][1:4] if pixdim is None else pixdim, np.float64))
  header["pixdim"][1:4] = np.where(_valid(sizes), sizes, 1.0)  # else a column of the qform would be 0
  with np.errstate(all="ignore"):
    affine = np.array(header.get_best_affine(), np.float64)
    sform = voxel_sizes(affine) if header["sform_code"] > 0 else None
    directions = affine[:3, :3] / voxel_sizes(affine)
    volume = abs(np.linalg.det(directions))
  if not np.isfinite(affine).all() or not volume > 1e-3:
    raise InputError(f"{name}: affine is singular or not finite. Repair the header's sform or qform.")
  if spacing is not None:
    size: np.ndarray = np.asarray(spacing, np.float64) / unit
    notes: tuple[str, ...] = ()
  else:
    size, notes = _voxel_size(name, sizes, sform, unit)
  affine[:3, :3] = directions * size
  affine[:3] *= unit
  coded = header["sform_code"] > 0 or header["qform_code"] > 0
  return Geometry(affine, not coded or is_parallel(affine), notes)


def is_parallel(affine: np.ndarray) -> bool:
  """Whether each axis of a volume is parallel to an axis of the body."""
  cosines = np.abs(affine[:3, :3] / voxel_sizes(affine))
  return bool((cosines > _PARALLEL).any(axis=0).all())


def check_voxels(name: str, spacing: Sequence[float]) -> None:
  """Raises an InputError for a voxel size (mm along D, H, W) that no image of a heart has."""
  limits = _ACROSS_MM, _IN_PLANE_MM, _IN_PLANE_MM
  if not all(0.99 * low <= mm <= 1.01 * high for mm, (low, high) in zip(spacing, limits, strict=True)):
    size = "×".join(f"{mm:.3g}" for mm in spacing)
    raise InputError(
      f"{name}: voxels of {size} mm (across the slices × in the plane); expected {_ACROSS_MM[0]:g} to "
      f"{_ACROSS_MM[1]:g} mm and {_IN_PLANE_MM[0]:g} to {_IN_PLANE_MM[1]:g} mm. Correct the header, or give "
      "--spacing=MM,MM,MM along the file's axes."
    )


def orientation_of(name: str, affine: np.ndarray, shape: Sequence[int], plane: str) -> np.ndarray:
  """The way of a file's axes into the canonical orientation of a plane.

  Args:
    name: of the file, for errors.
    affine: (4, 4) of the file.
    shape: voxels along the file's axes.
    plane: a key of PLANES.

  Returns:
    (3, 2) canonical axis and direction (1 or -1) of each axis of the file, as in nibabel.orientations.

  Raises:
    InputError: no axis of a short-axis stack can be told to go across its slices.
  """
  directions = affine[:3, :3] / voxel_sizes(affine)
  orders = list(itertools.permutations(range(3)))  # axes of the file that become D, H and W
  if plane == "short_axis":
    across = slice_axis(name, affine, shape)
    orders = [order for order in orders if order[0] == across]
  cosines = PLANES[plane] @ directions
  order = max(orders, key=lambda order: np.abs(cosines[[1, 2], order[1:]]).sum() + np.abs(cosines[0, order[0]]))
  turn = np.empty((3, 2), int)
  for target, axis in enumerate(order):
    turn[axis] = target, -1 if cosines[target, axis] < 0 else 1
  return turn


def stored_orientation(name: str, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """The orientation of a short-axis stack whose slices keep their rows and columns; see orientation_of."""
  across = slice_axis(name, affine, shape)
  column, row = (axis for axis in range(3) if axis != across)  # the first axis runs along a row
  turn = np.ones((3, 2), int)
  turn[[across, row, column], 0] = 0, 1, 2
  return turn


def slice_axis(name: str, affine: np.ndarray, shape: Sequence[int]) -> int:
  """The axis of a short-axis stack that goes across its slices.

  By what is surest first: at most half as many voxels as along any other axis; at least 1.5 times the spacing of any
  other axis; the direction of a typical stack, unless directions are lost; the axis that differs from two equal ones.

  Raises:
    InputError: none of them decides.
  """
  spacing, counts = voxel_sizes(affine), np.asarray(shape[:3])
  fewest, thickest = int(counts.argmin()), int(spacing.argmax())
  others = lambda values, axis: np.delete(values, axis)
  if 2 * counts[fewest] <= others(counts, fewest).min():
    return fewest
  if spacing[thickest] >= 1.5 * others(spacing, thickest).max():
    return thickest
  along = np.abs(SHORT_AXIS[0] @ (affine[:3, :3] / spacing))
  likeliest = int(along.argmax())
  if not is_parallel(affine) and along[likeliest] > others(along, likeliest).max() + 0.2:
    return likeliest
  alike = lambda a, b: counts[a] == counts[b] and abs(spacing[a] / spacing[b] - 1) < 0.01
  odd = [axis for axis in range(3) if alike(*others(np.arange(3), axis))]
  if len(odd) == 1:
    return odd[0]
  size = "×".join(f"{mm:.3g}" for mm in spacing)
  raise InputError(
    f"{name}: {'×'.join(map(str, counts))} voxels of {size} mm: which axis goes across the slices cannot be told. "
    "Resample it to its slices, or give --spacing=MM,MM,MM with the true distance of the slices."
  )


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
  """Millimetres from slice to slice of a volume (D, H, W), and from voxel to voxel along H and W.

  Slices may be shifted against each other. Their distance is that of their planes, so that the product of the three
  numbers is the volume of a voxel.
  """
  depth, height, width = map(float, voxel_sizes(affine))
  across = abs(float(np.linalg.det(affine[:3, :3]))) / (height * width)
  return across if abs(across / depth - 1.0) > 1e-4 else depth, height, width


def orient(voxels: np.ndarray, affine: np.ndarray, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Voxels (D, H, W) in the canonical orientation, and their affine; `orientation` is that of orientation_of."""
  return apply_orientation(voxels, orientation), affine @ inv_ornt_aff(orientation, voxels.shape)


def _valid(size: np.ndarray) -> np.ndarray:
  return np.isfinite(size) & (size > 0)


def _voxel_size(
  name: str, pixdim: np.ndarray, sform: np.ndarray | None, unit: float
) -> tuple[np.ndarray, tuple[str, ...]]:
  """The voxel size in the header's unit, and a note where its two places differ."""
  shown = lambda size: "×".join(f"{mm * unit:.3g}" for mm in size)
  if sform is None:
    _require_valid(name, pixdim)
    nothing = np.allclose(pixdim, 1.0)
    return pixdim, (f"the header has no voxel size; {shown(pixdim)} mm assumed",) if nothing else ()
  with np.errstate(all="ignore"):
    differ = ~(np.abs(pixdim / sform - 1) <= 0.01)
  if not differ.any():
    return sform, ()
  bare = np.allclose(pixdim[differ & _valid(pixdim)], 1.0)  # numbers that are missing are no better
  believed, chosen, other = ("sform", sform, pixdim) if bare else ("pixdim", pixdim, sform)
  rejected = "pixdim" if bare else "sform"
  _require_valid(name, chosen)
  return chosen, (f"voxel size of {shown(chosen)} mm by {believed}; {rejected} says {shown(other)} mm",)


def _require_valid(name: str, pixdim: np.ndarray) -> None:
  if not _valid(pixdim).all():
    size = "×".join(f"{mm:g}" for mm in pixdim)
    raise InputError(f"{name}: voxels of {size} by pixdim. Correct the header, or give --spacing=MM,MM,MM.")
