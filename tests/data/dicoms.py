"""DICOM files of small series, written for tests."""

import io
import struct

import numpy as np
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from tests.commands import ROOT

CINE = ROOT / "tests" / "data" / "dicom"  # two phases of three slices
# An oblique short-axis stack, in LPS.
ALONG_ROW = np.array([0.6, 0.8, 0.0])
ALONG_COLUMN = np.array([0.0, 0.0, -1.0])
NORMAL = np.cross(ALONG_ROW, ALONG_COLUMN)
ORIGIN = np.array([-40.0, 20.0, 30.0])
THICKNESS, PIXEL = 8.0, (1.5, 1.25)  # mm from row to row, from column to column


def uid(*parts):
  return generate_uid(entropy_srcs=[str(part) for part in parts])


# What the patient is told from, in all datasets: too long to be found among other bytes by chance.
SECRETS = ("SURNAME", "FORENAME", "471147", "19700131", "1970-01-31", "31.01.1970")


def make_slice(pixels, place, series="a", **elements):
  """The dataset of one slice: pixels (rows, columns) at a place in the stack, with these elements in its header."""
  dataset = FileDataset(None, {}, preamble=b"\0" * 128)
  dataset.file_meta = FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
  dataset.SOPInstanceUID = uid(series, place, *elements.items())
  dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
  dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid(series), uid("study")
  dataset.FrameOfReferenceUID = uid("frame of reference")
  dataset.Modality, dataset.SeriesDescription, dataset.SeriesNumber = "MR", "LGE sax: 8 mm", 7
  dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "SURNAME^FORENAME", "NUMBER-471147", "19700131"
  dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
  dataset.ImagePositionPatient = (ORIGIN + place * THICKNESS * NORMAL).tolist()
  dataset.ImageOrientationPatient = [*ALONG_ROW, *ALONG_COLUMN]
  dataset.PixelSpacing, dataset.SliceThickness = list(PIXEL), THICKNESS
  dataset.InstanceNumber = place + 1
  set_pixels(dataset, pixels)
  for name, value in elements.items():
    setattr(dataset, name, value)
  return dataset


def make_enhanced(frames, series="enhanced"):
  """The dataset of a multi-frame file.

  Args:
    frames: of each frame: pixels (rows, columns), place in the stack, trigger delay (ms), slope, complex component.
    series: text that names the series.
  """
  dataset = make_slice(frames[0][0], 0, series)
  for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "ImageType"):
    delattr(dataset, name)
  dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
  set_pixels(dataset, np.stack([pixels for pixels, *_ in frames]))
  dataset.NumberOfFrames = len(frames)
  shared = {"PixelMeasuresSequence": {"PixelSpacing": list(PIXEL), "SliceThickness": THICKNESS}}
  shared["PlaneOrientationSequence"] = {"ImageOrientationPatient": [*ALONG_ROW, *ALONG_COLUMN]}
  dataset.SharedFunctionalGroupsSequence = [groups(shared)]
  dataset.PerFrameFunctionalGroupsSequence = [
    groups(
      {
        "PlanePositionSequence": {"ImagePositionPatient": (ORIGIN + place * THICKNESS * NORMAL).tolist()},
        "CardiacSynchronizationSequence": {"NominalCardiacTriggerDelayTime": delay},
        "PixelValueTransformationSequence": {"RescaleSlope": slope, "RescaleIntercept": -1},
        "MRImageFrameTypeSequence": {
          "FrameType": ["ORIGINAL", "PRIMARY", "CARDIAC", "NONE"],
          "ComplexImageComponent": component,
        },
      }
    )
    for _, place, delay, slope, component in frames
  ]
  return dataset


def groups(sequences):
  """Functional groups: sequence -> element -> value."""
  dataset = Dataset()
  for sequence, elements in sequences.items():
    item = Dataset()
    for name, value in elements.items():
      setattr(item, name, value)
    setattr(dataset, sequence, [item])
  return dataset


def set_pixels(dataset, pixels):
  dataset.Rows, dataset.Columns = pixels.shape[-2:]
  dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
  dataset.BitsAllocated = dataset.BitsStored = 16
  dataset.HighBit, dataset.PixelRepresentation = 15, 1
  dataset.PixelData = pixels.astype("<i2").tobytes()


def write(folder, datasets):
  """Writes datasets as files without a suffix, named by their order."""
  folder.mkdir(parents=True, exist_ok=True)
  for number, dataset in enumerate(datasets):
    dataset.save_as(folder / f"IM{number:04d}", enforce_file_format=True)
  return folder


def voxels(slices=5, rows=20, columns=24, seed=0):
  """(slices, rows, columns) of a series."""
  return np.random.default_rng(seed).integers(-500, 3000, (slices, rows, columns))


def stack(stored, series="a", **elements):
  """The slices of a series."""
  return [make_slice(pixels, place, series, **elements) for place, pixels in enumerate(stored)]


def content(dataset):
  """The bytes of a dataset's file."""
  file = io.BytesIO()
  dataset.save_as(file, enforce_file_format=True)
  return file.getvalue()


def replace(stored, keyword, value):
  """The bytes of a file in which an element has another value, which need not be valid, or is missing (`None`).

  An element that the file lacks is added at the end of the header.
  """
  tag = tag_for_keyword(keyword)
  head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + dictionary_VR(tag).encode()
  start = stored.find(head)
  end = start + 8 + struct.unpack_from("<H", stored, start + 6)[0] if start >= 0 else 0
  if start < 0:
    start = end = stored.rindex(b"\xe0\x7f\x10\x00")
  new = b""
  if value is not None:
    packed = value.encode() if isinstance(value, str) else struct.pack("<H", value)
    packed += b" " * (len(packed) % 2)
    new = head + struct.pack("<H", len(packed)) + packed
  return stored[:start] + new + stored[end:]
