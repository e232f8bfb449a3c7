"""The slices of a DICOM series as volumes, one for each kind of image and phase: pure functions of their headers."""

import dataclasses
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np

from vamcei_jax.data.nifti import MAX_VOXELS
from vamcei_jax.errors import InputError

TOLERANCE = 0.05  # of the distance between slices
SAME_PLACE = 0.1  # mm along the normal; slices that are closer lie at one position
NEIGHBOURS = (0.9, 2.0)  # slice thicknesses; single slices that are nearer or farther apart are no stack

# What may tell apart the images of one position, and the functional group that has it in multi-frame files.
PHASE_FIELDS = {
  "TemporalPositionIndex": "FrameContentSequence",
  "TemporalPositionIdentifier": "",
  "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
  "TriggerTime": "",
  "InversionTime": "",
  "EffectiveEchoTime": "MREchoSequence",
  "EchoTime": "",
  "AcquisitionNumber": "",
  "InstanceNumber": "",
}


@dataclasses.dataclass(frozen=True)
class Frame:
  """A slice: an image of a single-frame file, or one of the images of a multi-frame file.

  Attributes:
    file: that holds the slice.
    index: of the slice in its file.
    uid: SOPInstanceUID of the file.
    subject: PatientID, StudyInstanceUID and FrameOfReferenceUID.
    series: SeriesInstanceUID.
    title: printable description and number of the series.
    kind: words of ImageType and of the complex component.
    size: rows and columns.
    spacing: (2,) mm from row to row and from column to column.
    orientation: (2, 3) unit directions along a row and along a column, in LPS.
    position: (3,) mm of the first pixel, in LPS.
    thickness: mm from slice to slice by the header, or 0 if the header does not say.
    scale: slope and intercept of the stored values.
    times: the values of PHASE_FIELDS, NaN where the header lacks one, and the index.
  """

  file: Path
  index: int
  uid: str
  subject: tuple[str, ...]
  series: str
  title: str
  kind: frozenset[str]
  size: tuple[int, int]
  spacing: np.ndarray
  orientation: np.ndarray
  position: np.ndarray
  thickness: float
  scale: tuple[float, float]
  times: tuple[float, ...]

  @property
  def height(self) -> float:
    """Position along the normal of the slice, in mm."""
    return float(np.cross(*self.orientation) @ self.position)


@dataclasses.dataclass(frozen=True)
class DicomVolume:
  """The slices of one series, kind of image and phase.

  Attributes:
    name: printable, for files; tells the series, the kind and the phase, and nothing of the patient.
    frames: slices along the normal.
    affine: (4, 4) from (column, row, slice, 1) to RAS mm.
  """

  name: str
  frames: tuple[Frame, ...]
  affine: np.ndarray = dataclasses.field(repr=False)

  def __str__(self) -> str:
    return f"{self.frames[0].file.parent}: {self.name}"

  @property
  def series(self) -> int:
    """The number of series from which the slices are."""
    return len({frame.series for frame in self.frames})


def grouped(frames: Iterable[Frame], key: Callable[[Frame], Hashable]) -> list[list[Frame]]:
  """The slices that have one key, for each key in the order in which it occurs first."""
  groups = defaultdict(list)
  for frame in frames:
    groups[key(frame)].append(frame)
  return list(groups.values())


def joined(series: Iterable[list[Frame]]) -> list[list[Frame]]:
  """The series, those of one slice each joined to stacks: some scanners write a series for each breath-hold.

  They are joined if they have one patient, study, frame of reference, description (without a number at its end), kinds,
  number of images, size, pixel spacing and orientation, and if their slices follow each other at equal distances.

  Args:
    series: the slices of each.
  """
  stacks: dict[Hashable, list[list[Frame]]] = defaultdict(list)
  for frames in sorted(series, key=lambda frames: (frames[0].title, frames[0].series)):
    first, kinds = frames[0], frozenset(frame.kind for frame in frames)
    description = re.sub(r"([-_]\d+)*_series-?\d+$", "", first.title)
    geometry = (*first.size, *np.round([*first.spacing, *first.orientation.ravel()], 3))
    # Without a study or a frame of reference, slices may be of several patients. An anonymiser may empty the PatientID.
    joinable = len(_heights(frames)) == 1 and all(first.subject[1:])
    stacks[(first.subject, description, kinds, len(frames), geometry) if joinable else first.series].append(frames)
  return [frames for stack in stacks.values() for frames in ([sum(stack, [])] if _is_stack(stack) else stack)]


def _is_stack(series: Sequence[list[Frame]]) -> bool:
  """Whether the slices of series of one slice each follow each other at equal distances."""
  gaps, thickness = np.diff(sorted(frames[0].height for frames in series)), series[0][0].thickness
  near, far = (limit * thickness for limit in NEIGHBOURS)
  return len(gaps) > 0 and near <= gaps.min() <= far and not volumes_of(sum(series, []))[1]


def volumes_of(series: Sequence[Frame]) -> tuple[list[DicomVolume], list[str]]:
  """The volumes of a series, and one line for each that cannot be made.

  Args:
    series: the slices of a series, or of several that are joined, each once.
  """
  kinds = grouped(series, lambda frame: frame.kind)
  common = frozenset.intersection(*(stack[0].kind for stack in kinds))
  digest = hashlib.sha256(series[0].series.encode()).hexdigest()[:6]  # equal titles in other studies, other patients
  volumes, failures = [], []
  for stack in kinds:
    words = "-".join(sorted(stack[0].kind - common))
    title = f"{stack[0].title}_{words}" if words else stack[0].title
    try:
      _check_alike(stack)
      heights = _heights(stack)
      phases = _phases(stack, heights, title)
    except InputError as error:
      failures.append(str(error))
      continue
    for number, frames in enumerate(phases, start=1):
      phase = f"_phase{number:0{len(str(len(phases)))}d}" if len(phases) > 1 else ""
      try:
        volumes.append(_volume(f"{title}{phase}_{digest}", frames, heights))
      except InputError as error:
        failures.append(str(error))
  return volumes, failures


def _check_alike(frames: Sequence[Frame]) -> None:
  """Checks that slices have one size, pixel spacing and orientation.

  Raises:
    InputError: it names the first slice that differs.
  """
  first = frames[0]
  for frame in frames:
    differs = ""
    if frame.size != first.size:
      differs = f"{frame.size[0]} x {frame.size[1]} pixels, not the {first.size[0]} x {first.size[1]}"
    elif not np.allclose(frame.spacing, first.spacing, rtol=1e-3):
      differs = "not the pixel spacing"
    elif not np.allclose(frame.orientation, first.orientation, atol=1e-3):
      differs = "not the orientation"
    if differs:
      raise InputError(f"{frame.file}: {differs} of {first.file.name}, of the same series. Separate the images.")


def _heights(frames: Sequence[Frame]) -> np.ndarray:
  """Positions (mm along the normal) at which slices lie, in ascending order."""
  heights = np.sort([frame.height for frame in frames])
  return heights[np.diff(heights, prepend=-np.inf) > SAME_PLACE]


def _phases(frames: Sequence[Frame], heights: np.ndarray, title: str) -> list[list[Frame]]:
  """The slices of each phase.

  Where the slices of all positions share the values of a field, a phase has one of its values. Else (each breath-hold
  has its own trigger times) the n-th images of all positions, in the order of the field, are a phase.
  """
  places = grouped(frames, lambda frame: int(np.abs(heights - frame.height).argmin()))
  most = max(map(len, places))
  if most == 1:
    return [list(frames)]
  fields = [field for field in range(len(PHASE_FIELDS) + 1) if all(_tells_apart(place, field) for place in places)]
  for field in fields:
    values = sorted({frame.times[field] for frame in frames})
    if len(values) == most:
      return [[frame for frame in frames if frame.times[field] == value] for value in values]
  counts = sorted(map(len, places))
  usual = counts[len(counts) // 2]
  unusual = [place for place in places if len(place) != usual]
  if unusual:
    raise InputError(
      f"{unusual[0][0].file}: {title}: {len(unusual[0])} images at the position of this file, {usual} at others. "
      "Copy missing images again, or remove repeated ones."
    )
  if not fields:
    raise InputError(
      f"{places[0][0].file}: {title}: {usual} images at one position, which nothing in the headers tells apart. "
      "Separate the images."
    )
  ordered = [sorted(place, key=lambda frame: frame.times[fields[0]]) for place in places]
  return [list(phase) for phase in zip(*ordered, strict=True)]


def _tells_apart(place: Sequence[Frame], field: int) -> bool:
  values = {frame.times[field] for frame in place}
  return len(values) == len(place) and all(np.isfinite(value) for value in values)


def _volume(name: str, frames: Sequence[Frame], heights: np.ndarray) -> DicomVolume:
  """The volume of slices that must lie at these positions."""
  frames = sorted(frames, key=lambda frame: frame.height)
  volume = DicomVolume(name, tuple(frames), _affine(name, frames))
  _check_positions(volume, heights)
  rows, columns = frames[0].size
  if rows * columns * len(frames) > MAX_VOXELS or max(rows, columns, len(frames)) >= 2**15:
    raise InputError(
      f"{volume}: {len(frames)} slices of {rows} x {columns}; at most {MAX_VOXELS} voxels can be handled. Crop it."
    )
  return volume


def _check_positions(volume: DicomVolume, heights: np.ndarray) -> None:
  """Raises an InputError that names the first missing slice, or the first one off its place."""
  frames = volume.frames
  way_out = "Copy the whole series again, or leave it out."
  for height in heights:
    if min(abs(frame.height - height) for frame in frames) > SAME_PLACE:
      raise InputError(f"{volume}: no slice at {height:.1f} mm, where other phases have one. {way_out}")
  gaps = np.diff([frame.height for frame in frames])
  for gap, before, after in zip(gaps, frames, frames[1:], strict=False):
    if gap > 1.5 * min(gaps):
      missing = (before.height + after.height) / 2
      raise InputError(
        f"{volume}: no slice at {missing:.1f} mm, between {before.file.name} and {after.file.name}. {way_out}"
      )
  ras = np.array([-1, -1, 1])
  for index, frame in enumerate(frames):
    away = np.linalg.norm(volume.affine[:3, 2] * index + volume.affine[:3, 3] - frame.position * ras)
    if away > TOLERANCE * np.linalg.norm(volume.affine[:3, 2]):
      raise InputError(f"{volume}: {frame.file.name} lies {away:.1f} mm off the stack. Export the original slices.")


def _affine(name: str, frames: Sequence[Frame]) -> np.ndarray:
  """(4, 4) from (column, row, slice, 1) to RAS mm."""
  first, last = frames[0], frames[-1]
  if len(frames) > 1:
    step = (last.position - first.position) / (len(frames) - 1)
  elif first.thickness:
    step = np.cross(*first.orientation) * first.thickness
  else:
    raise InputError(f"{first.file}: {name}: one slice without SliceThickness. Export the original images.")
  lps = np.eye(4)
  lps[:3, 0] = first.orientation[0] * first.spacing[1]
  lps[:3, 1] = first.orientation[1] * first.spacing[0]
  lps[:3, 2], lps[:3, 3] = step, first.position
  return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
