"""DICOM segmentations out: the mask of a DICOM volume, as viewers show it over the images. Needs the extra `dicom`."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import vamcei_jax
from vamcei_jax.data.dicom import INSTALL, input_error_if_any, read_dataset
from vamcei_jax.data.dicom_series import DicomVolume
from vamcei_jax.data.labels import STRUCTURES, LabelValues, class_indices
from vamcei_jax.errors import InputError
from vamcei_jax.files import replacing
from vamcei_jax.inference.prediction import Prediction

if TYPE_CHECKING:
  from highdicom.seg import Segmentation, SegmentDescription
  from pydicom import Dataset

# What highdicom copies from the images, and what anonymisation often removes; an empty value is valid.
_MAY_BE_EMPTY = (
  *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
  *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
MANUFACTURER = "vamcei_jax"
_COLOURS = {"Myo": (0, 158, 115), "LV": (213, 94, 0), "RV": (0, 114, 178)}


def save_dicom_seg(path: Path, prediction: Prediction, label_values: LabelValues) -> None:
  """Writes the mask of a DICOM volume as a binary DICOM segmentation with the segments Myo, LV and RV, or nothing.

  The file has the patient and the study of the images: it holds the patient's data.

  Args:
    path: of the file.
    prediction: of a DICOM volume.
    label_values: of the mask.

  Raises:
    InputError: the images are no DICOM volume, or lack what a segmentation must refer to; highdicom is not installed.

  Example:
    >>> prediction = segmenter("patient1_dicom")
    >>> save_dicom_seg(Path("patient1_seg.dcm"), prediction, segmenter.config.data.label_values)
  """
  volume = prediction.scan.dicom
  if volume is None:
    raise InputError(f"{prediction.scan.name}: no DICOM images, which a DICOM segmentation belongs to")
  if path.exists() and any(frame.file.exists() and path.samefile(frame.file) for frame in volume.frames):
    raise InputError(f"{path}: one of the images; choose another file for the segmentation")
  if volume.series > 1:
    raise InputError(f"{volume}: {volume.series} series; a DICOM segmentation belongs to one. Leave --dicom_seg out.")
  try:
    import highdicom  # noqa: F401
  except ImportError:
    raise InputError(f"{volume}: no DICOM segmentation. {INSTALL}") from None
  content = io.BytesIO()
  cannot = "no DICOM segmentation of these images. Leave --dicom_seg out, or export the original images."
  with input_error_if_any(volume, cannot):
    _segmentation(volume, _segments(prediction.mask, label_values)).save_as(content)
  try:
    with replacing(path) as temporary:
      temporary.write_bytes(content.getvalue())
  except OSError as error:
    raise InputError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from error


def is_by_vamcei_jax(path: Path) -> bool:
  """Whether a file is a DICOM segmentation that save_dicom_seg has written."""
  try:
    return path.is_file() and read_dataset(path, pixels=False).get("Manufacturer") == MANUFACTURER
  except InputError:
    return False


def _segments(mask: np.ndarray, label_values: LabelValues) -> np.ndarray:
  """Segment numbers (slices, rows, columns) of a mask (columns, rows, slices) of label values; 0 is background."""
  return class_indices(mask, label_values).transpose(2, 1, 0)


def _segmentation(volume: DicomVolume, segments: np.ndarray) -> "Segmentation":
  import highdicom
  from highdicom.content import PlanePositionSequence

  sources = _sources(volume)
  segmentation = highdicom.seg.Segmentation(
    source_images=sources,
    pixel_array=segments,
    plane_positions=[PlanePositionSequence("PATIENT", frame.position.tolist()) for frame in volume.frames],
    segmentation_type="BINARY",
    omit_empty_frames=bool(segments.any()),  # a file needs a frame
    segment_descriptions=[_describe(number, name) for number, name in enumerate(STRUCTURES, start=1)],
    series_instance_uid=highdicom.UID(),
    series_number=1000 + int(sources[0].get("SeriesNumber") or 0),
    series_description=f"{volume.name} vamcei_jax"[:64],
    sop_instance_uid=highdicom.UID(),
    instance_number=1,
    manufacturer=MANUFACTURER,
    manufacturer_model_name="vamcei_jax",
    software_versions=vamcei_jax.__version__,
    device_serial_number="0",
    content_description="Myocardium, LV and RV",
  )
  segmentation.ContentCreatorName = ""  # must be there, and may be empty
  return segmentation


def _sources(volume: DicomVolume) -> "list[Dataset]":
  """The headers of the volume's files, with empty values where anonymisation has removed an element."""
  files = dict.fromkeys(frame.file for frame in volume.frames)
  sources = [read_dataset(file, pixels=False) for file in files]
  for source in sources:
    for name in _MAY_BE_EMPTY:
      if name not in source:
        setattr(source, name, "")
  return sources


def _describe(number: int, structure: str) -> "SegmentDescription":
  import highdicom
  from pydicom.sr.codedict import codes

  codes_of = {
    "Myo": codes.SCT.StructureOfMyocardiumOfLeftVentricle,
    "LV": codes.SCT.LeftVentricle,
    "RV": codes.SCT.RightVentricle,
  }
  return highdicom.seg.SegmentDescription(
    segment_number=number,
    segment_label=structure,
    segmented_property_category=codes.SCT.AnatomicalStructure,
    segmented_property_type=codes_of[structure],
    algorithm_type="AUTOMATIC",
    algorithm_identification=highdicom.AlgorithmIdentificationSequence(
      name="vamcei_jax", family=codes.DCM.ArtificialIntelligence, version=vamcei_jax.__version__
    ),
    display_color=highdicom.color.CIELabColor.from_rgb(*_COLOURS[structure]),
  )
