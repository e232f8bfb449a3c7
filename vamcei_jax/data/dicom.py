"""DICOM in: the files of a folder as volumes, one for each series, kind of image and phase.

The headers are read first (`list_dicom`), the pixels of one volume at a time (`read_voxels`). Needs the extra `dicom`.
"""

import logging
import os
import re
import stat
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vamcei_jax.data.dicom_series import PHASE_FIELDS, DicomVolume, Frame, grouped, joined, volumes_of
from vamcei_jax.data.nifti import PROCESS, SUFFIXES, walk
from vamcei_jax.errors import InputError

if TYPE_CHECKING:
  from pydicom import Dataset

INSTALL = "Install the DICOM libraries: .venv/bin/python -m pip install -e '.[dicom]'"
FILE_SUFFIXES = (".dcm", ".dicom", ".ima")  # files that must be DICOM; files of other names are recognised by content
COMPONENTS = {"M": "magnitude", "P": "phase", "R": "real", "I": "imaginary"}  # short values of ImageType
GE_COMPONENTS = ("magnitude", "phase", "real", "imaginary")  # by the number in GE's private element
TOLERANCE = 0.05  # of the unit vectors
FARTHEST = 1e5  # mm; positions and distances that are larger are refused

# Decoders of compressed pixels, the preferred ones first. GDCM is not among them: damaged pixels can crash it.
DECODERS = ("pylibjpeg", "pyjpegls", "pillow", "pydicom")
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_DEFLATED = "1.2.840.10008.1.2.1.99"


def list_dicom(source: Path, leave_out: Path | None = None) -> tuple[list[DicomVolume], list[str]]:
  """The volumes of a DICOM file, or of all DICOM files in a folder and its subfolders, by name.

  DICOM files are recognised by their content. NIfTI files, hidden files and folders, segmentations and files without an
  image are skipped.

  Args:
    source: a file or a folder.
    leave_out: a folder that is not searched.

  Returns:
    The volumes, and one line for each file or series that cannot be used.

  Example:
    >>> volumes, problems = list_dicom(Path("study"))
    >>> predictions = {volume.name: segmenter(volume) for volume in volumes}
  """
  paths = list(_candidates(source, leave_out))
  if not paths:
    return [], []
  try:
    import pydicom  # noqa: F401
  except ImportError:
    return [], [f"{paths[0]}: a DICOM file. {INSTALL}"]
  frames: dict[tuple, Frame] = {}  # by what copies of a file share
  failures = []
  for path in paths:
    try:
      frames |= {
        (frame.series, frame.kind, frame.uid, frame.index, *frame.position, *map(str, frame.times)): frame
        for frame in _read_frames(path)
      }
    except InputError as error:
      failures.append(str(error))
  volumes = []
  for stack in joined(grouped(frames.values(), lambda frame: frame.series)):
    found, wrong = volumes_of(stack)
    volumes += found
    failures += wrong
  return sorted(volumes, key=lambda volume: volume.name), failures


def read_dicom(source: Path) -> DicomVolume:
  """The only volume of a DICOM file or folder.

  Raises:
    InputError: no DICOM file, several volumes, or a file that cannot be used.
  """
  volumes, failures = list_dicom(source)
  if failures:
    raise InputError(failures[0])
  if not volumes:
    raise InputError(f"{source}: no DICOM image in it. Name a NIfTI file or the folder of a DICOM series.")
  if len(volumes) > 1:
    names = ", ".join(volume.name for volume in volumes)
    raise InputError(f"{source}: {len(volumes)} volumes ({names}). Name a folder of one, or use vamcei_jax.predict.")
  return volumes[0]


def read_voxels(volume: DicomVolume) -> np.ndarray:
  """The voxels (columns, rows, slices) of a volume in float32, scaled as the header says.

  Raises:
    InputError: pixels that are damaged, or in a transfer syntax that cannot be decoded here.
  """
  slices = {}
  for frames in grouped(volume.frames, lambda frame: frame.file):
    for frame, pixels in zip(frames, _decode(frames), strict=True):
      if pixels.shape != frame.size:
        raise InputError(f"{frame.file}: pixels of {pixels.shape}, {frame.size} by its header. Export it again.")
      slope, intercept = frame.scale
      with np.errstate(over="ignore", invalid="ignore"):
        slices[frame.file, frame.index] = (pixels.T * slope + intercept).astype(np.float32)
  return np.stack([slices[frame.file, frame.index] for frame in volume.frames], axis=-1)


def is_dicom(path: Path) -> bool:
  """Whether a readable file begins as a DICOM file does, with a preamble or without it."""
  try:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
      return False
    with open(path, "rb") as file:
      head = file.read(132)
  except OSError:
    return False
  return _has_preamble(head) or (head[:2] == b"\x08\x00" and head[3:4] == b"\x00")


def read_dataset(path: Path, *, pixels: bool) -> "Dataset":
  """The content of a DICOM file, with its pixel data or without it.

  Raises:
    InputError: it is damaged, or compressed as a whole.
  """
  from pydicom import dcmread
  from pydicom.filereader import read_file_meta_info
  from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

  with input_error_if_any(path, "not a readable DICOM file. Export or copy it again."):
    with open(path, "rb") as file:
      preamble = _has_preamble(file.read(132))
    # A small file of this syntax can grow to fill the memory.
    if preamble and read_file_meta_info(path).get("TransferSyntaxUID") == _DEFLATED:
      raise InputError(f"{path}: Deflated Explicit VR Little Endian. Decompress it, for example with dcmconv.")
    dataset = dcmread(path, stop_before_pixels=not pixels, force=not preamble)
    if "TransferSyntaxUID" not in dataset.file_meta:
      implicit = dataset.original_encoding[0]
      dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return dataset


def _candidates(source: Path, leave_out: Path | None) -> Iterator[Path]:
  """DICOM files, and files that are called so, by name."""
  visible = lambda path: not path.name.startswith(".")
  for path in filter(visible, walk(source, leave_out)) if source.is_dir() else [source]:
    if path.name.endswith(SUFFIXES):
      continue
    if path.suffix.lower() in FILE_SUFFIXES or is_dicom(path):
      yield path


def _has_preamble(head: bytes) -> bool:
  return head[128:132] == b"DICM"


@contextmanager
def input_error_if_any(name: object, problem: str) -> Iterator[None]:
  """Raises an InputError in place of other errors: a damaged file can raise many exception types.

  Their texts are left out, as they may quote the patient's data. So are warnings and log.
  """
  from pydicom.config import disable_value_validation

  with PROCESS:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
      with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield
    except InputError:
      raise
    except Exception as error:
      raise InputError(f"{name}: {problem}") from error
    finally:
      logging.disable(before)


def _read_frames(path: Path) -> list[Frame]:
  """The slices of a file; none of a file without an image, and of a segmentation."""
  from pydicom import Dataset

  if not str(path).isprintable():  # line breaks, and bytes that are not UTF-8
    raise InputError(f"a DICOM file is called {ascii(str(path))}; rename it")
  if not path.exists():
    raise InputError(f"{path}: no such file. Check the path.")
  if not is_dicom(path):
    raise InputError(f"{path}: not a readable DICOM file. Export or copy it again.")
  dataset = read_dataset(path, pixels=False)
  with input_error_if_any(
    path, "an image whose header lacks its size, place or pixel spacing, or is damaged. Export it again."
  ):
    if _has_no_image(dataset):
      return []
    if dataset.get("SamplesPerPixel", 1) != 1:
      raise InputError(f"{path}: a colour image. Export the original images.")
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or [Dataset()]
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    if int(dataset.get("NumberOfFrames") or 1) != len(groups):
      raise InputError(f"{path}: {dataset.NumberOfFrames} frames, {len(groups)} with a place. Export it again.")
    return [_frame(path, index, [group, *shared, dataset]) for index, group in enumerate(groups)]


def _has_no_image(dataset: "Dataset") -> bool:
  """Whether a file is a segmentation, or of a class without pixels: a report, a presentation state, a directory."""
  from pydicom.uid import UID

  kind = UID(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
  return kind in _SEGMENTATIONS or ("Rows" not in dataset and "Storage" in kind.name and "Image" not in kind.name)


def _frame(path: Path, index: int, holders: "Sequence[Dataset]") -> Frame:
  """The slice whose values are in these datasets: its functional groups, the shared ones, and the file's."""
  dataset = holders[-1]
  number = lambda name, sequence, default: float(_value(holders, sequence, name) or default)
  vector = lambda name, sequence: np.array([float(value) for value in _value(holders, sequence, name)])
  times = (_value(holders, sequence, name) for name, sequence in PHASE_FIELDS.items())
  sign = -1.0 if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else 1.0  # there, 0 is white
  frame = Frame(
    file=path,
    index=index,
    uid=str(dataset.get("SOPInstanceUID") or path),
    subject=tuple(str(dataset.get(name) or "") for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")),
    series=str(dataset.get("SeriesInstanceUID") or path.parent),
    title=_title(dataset),
    kind=_kind(holders),
    size=(int(dataset.Rows), int(dataset.Columns)),
    spacing=vector("PixelSpacing", "PixelMeasuresSequence"),
    orientation=vector("ImageOrientationPatient", "PlaneOrientationSequence").reshape(2, 3),
    position=vector("ImagePositionPatient", "PlanePositionSequence"),
    # Some scanners write a negative distance.
    thickness=abs(number("SpacingBetweenSlices", "PixelMeasuresSequence", 0))
    or abs(number("SliceThickness", "PixelMeasuresSequence", 0)),
    scale=(
      sign * number("RescaleSlope", "PixelValueTransformationSequence", 1),
      sign * number("RescaleIntercept", "PixelValueTransformationSequence", 0),
    ),
    times=(*(float("nan") if value is None else float(value) for value in times), index),
  )
  across = frame.orientation @ frame.orientation.T
  shapes = frame.spacing.shape == (2,) and frame.position.shape == (3,) and min(frame.size) > 0
  square = np.abs(across - np.eye(2)).max() <= TOLERANCE
  within = np.abs([*frame.spacing, *frame.position, frame.thickness]).max() < FARTHEST
  positive = frame.spacing.min() > 0
  if not (shapes and square and within and positive and np.isfinite(frame.scale).all()):
    raise ValueError("implausible geometry")
  return frame


def _value(holders: "Sequence[Dataset]", sequence: str, name: str) -> Any:
  """The value of an element: in a functional group, or else in the file's dataset; None if it is empty or missing."""
  for holder in holders:
    for item in holder.get(sequence, ()) if sequence else ():
      if item.get(name) is not None:
        return item.get(name)
  return holders[-1].get(name)


def _title(dataset: "Dataset") -> str:
  """Description and number of the series: letters, digits, `-` and `_`."""
  text = str(dataset.get("SeriesDescription") or dataset.get("ProtocolName") or "")
  plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
  description = re.sub(r"[^A-Za-z0-9]+", "-", plain)[:40].strip("-")
  return f"{description or 'dicom'}_series{int(dataset.get('SeriesNumber') or 0)}"


def _kind(holders: "Sequence[Dataset]") -> frozenset[str]:
  """The kind of image in words: of ImageType or FrameType, of the complex component, and of GE's private element."""
  dataset = holders[-1]
  types = _value(holders, "MRImageFrameTypeSequence", "FrameType") or dataset.get("ImageType") or ()
  values = [types] if isinstance(types, str) else list(types)
  values.append(_value(holders, "MRImageFrameTypeSequence", "ComplexImageComponent") or "")
  words = {COMPONENTS.get(str(value), re.sub(r"[^a-z0-9]+", "", str(value).lower())) for value in values}
  with suppress(KeyError, IndexError, TypeError):  # not of GE
    words.add(GE_COMPONENTS[dataset.private_block(0x0043, "GEMS_PARM_01")[0x2F].value])
  return frozenset(words - {""})


def _decode(frames: Sequence[Frame]) -> list[np.ndarray]:
  """Stored values (rows, columns) of slices of one file."""
  from pydicom.pixels import get_decoder, iter_pixels

  path = frames[0].file
  dataset = read_dataset(path, pixels=True)
  syntax = dataset.file_meta.TransferSyntaxUID
  name = "".join(letter for letter in getattr(syntax, "name", str(syntax)) if letter.isprintable())
  with input_error_if_any(path, f"pixels that cannot be decoded ({name}). Export it again, uncompressed."):
    try:
      decoder = get_decoder(syntax)
      available = [plugin for plugin in DECODERS if plugin in decoder.available_plugins]
    except NotImplementedError:
      decoder, available = None, []
    if decoder is None or (decoder.is_encapsulated and not available):
      more = ", or install pylibjpeg-libjpeg" if "Lossless" in name else ""
      raise InputError(f"{path}: no decoder of {name}. Export it uncompressed, for example with gdcmconv --raw{more}.")
    plugin = available[0] if available else ""
    with _silent_codecs():
      return list(iter_pixels(dataset, indices=[frame.index for frame in frames], raw=True, decoding_plugin=plugin))


@contextmanager
def _silent_codecs() -> Iterator[None]:
  """Hides what libraries in C print on stderr about damaged pixels, beside the errors that they report."""
  stderr = os.dup(2)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nowhere, 2)
    yield
  finally:
    os.dup2(stderr, 2)
    os.close(nowhere)
    os.close(stderr)
