"""Broken NIfTI and DICOM files of many kinds, and wrong values for each field of a configuration."""

import gzip
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation

from tests.data import dicoms

SHAPE = (6, 7, 4)
# Oblique, as short-axis stacks are. Of parallel axes, prediction tries all directions, which takes eight times as long.
AFFINE = from_matvec(Rotation.from_euler("xyz", (40, -30, 35), degrees=True).as_matrix() * (1.5, 1.5, 8.0))
NAN, INF = float("nan"), float("inf")

# Where the fields of a NIfTI-1 header lie, and how they are packed.
FIELDS = {
  "sizeof_hdr": (0, "<i"),
  "dim": (40, "<h"),
  "datatype": (70, "<h"),
  "bitpix": (72, "<h"),
  "pixdim": (76, "<f"),
  "vox_offset": (108, "<f"),
  "scl_slope": (112, "<f"),
  "scl_inter": (116, "<f"),
  "qform_code": (252, "<h"),
  "sform_code": (254, "<h"),
  "quatern_b": (256, "<f"),
  "srow_x": (280, "<f"),
  "srow_y": (296, "<f"),
  "srow_z": (312, "<f"),
}
VALUES = {
  "sizeof_hdr": (0, -1, 347, 540, 2**31 - 1),
  "datatype": (0, 1, 3, 5, 32, 128, 255, 999, 1536, 1792, 2048, 2304, -1),
  "bitpix": (0, 1, 64, -8, 32767),
  "vox_offset": (-1.0, 0.0, 1.0, 347.0, 1e5, 1e9, 1e30, NAN, INF, -INF),
  "scl_slope": (0.0, NAN, INF, 1e38, -1e38),
  "scl_inter": (NAN, INF, 3e38),
  "qform_code": (-1, 99),
  "sform_code": (-1, 0, 99),
  "quatern_b": (NAN, INF, 5.0),
}
SIZES = (0, -1, -32768, 1, 5, 32767)  # of a dimension


def write_corpus(folder: Path, masks: bool = False) -> Iterator[Path]:
  """Writes broken files and yields their paths: images or, with `masks`, masks of the values 0, 200, 500 and 600."""
  folder.mkdir(parents=True, exist_ok=True)
  good = good_file(masks)
  for number, (kind, content) in enumerate(broken(good, masks)):
    # A name says what is wrong, some in ways that names themselves break things.
    odd = (" ", "ä", "'", "%s", "{0}", "$HOME", "-o", "")[number % 8]
    for ending, packed in ((".nii", content), (".nii.gz", gzip.compress(content, 1))):
      if ending == ".nii" or number % 3 == 0:
        path = folder / f"{number:03d}{odd}{kind}{ending}"
        path.write_bytes(packed)
        yield path
  yield from write_damaged_gzip(folder, good)
  yield from write_no_files(folder)


def good_file(masks: bool) -> bytes:
  """The content of an intact file."""
  rng = np.random.default_rng(0)
  voxels = rng.choice([0, 200, 500, 600], SHAPE).astype(np.int16) if masks else rng.random(SHAPE, np.float32)
  return nib.Nifti1Image(voxels, AFFINE).to_bytes()


def broken(good: bytes, masks: bool) -> Iterator[tuple[str, bytes]]:
  """Yields (what is wrong, content)."""
  ends = {0, 1, 2, 4, 39, 40, 42, 70, 80, 108, 112, 253, 280, 327, 343, 344, 347, 348, 349, 351, 352, 353, 400}
  for end in sorted(ends | {len(good) - 1}):
    yield f"cut{end}", good[:end]
  for magic in (b"\0\0\0\0", b"n+2\0", b"N+1\0", b"\xff\xff\xff\xff"):
    yield "magic", good[:344] + magic + good[348:]
  yield "of_a_pair", good[:344] + b"ni1\0" + good[348:]
  for field, values in VALUES.items():
    for value in values:
      yield f"{field}_{value}", patch(good, field, 0, value)
  for index in range(8):
    for value in (*SIZES, 2, 3, 6, 7, 8) if index == 0 else SIZES:
      yield f"dim{index}_{value}", patch(good, "dim", index, value)
  for sizes in ((3, 32767, 32767, 32767), (7, *[32767] * 7), (3, 30000, 30000, 8), (3, 2000, 2000, 2000)):
    content = good
    for index, value in enumerate(sizes):
      content = patch(content, "dim", index, value)
    yield f"huge{sizes[0]}", content
  for index in range(4):
    for value in (0.0, -1.5, NAN, INF, 1e-30, 1e30):
      yield f"pixdim{index}_{value}", patch(patch(good, "sform_code", 0, 0), "pixdim", index, value)
  for row in ("srow_x", "srow_y", "srow_z"):
    for value in (0.0, NAN, INF, -INF):
      yield f"{row}_{value}", patch(good, row, {"srow_x": 0, "srow_y": 1, "srow_z": 2}[row], value)
  for size in (-1, 0, 7, 16, 2**31 - 1):  # of a header extension
    extended = patch(good, "vox_offset", 0, 368.0)
    yield f"extension{size}", extended[:348] + b"\1\0\0\0" + struct.pack("<ii", size, 6) + b"\0" * 8 + extended[352:]
  yield "long", good + b"\0" * 2**21
  yield "not_nifti", b"\x89PNG\r\n" + os.urandom(400)
  yield "text", b"patient,structure,dice\n" * 40
  yield from wrong_voxels(masks)
  rng = np.random.default_rng(1)
  for number in range(60):
    content = bytearray(good)
    for place in rng.integers(0, 352, 3):
      content[place] ^= 1 << int(rng.integers(8))
    yield f"flipped{number}", bytes(content)


def wrong_voxels(masks: bool) -> Iterator[tuple[str, bytes]]:
  """Yields (what is wrong, content) of files with right headers."""
  kinds = (np.complex64, np.complex128, np.float64, np.uint8, np.int8, np.uint16, np.int64, np.uint64)
  for kind in kinds:
    yield f"of_{np.dtype(kind)}", nib.Nifti1Image(np.full(SHAPE, 7, kind), AFFINE, dtype=kind).to_bytes()
  colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
  yield "colours", nib.Nifti1Image(colours, AFFINE).to_bytes()
  for shape in ((6,), (6, 7), (*SHAPE, 2), (*SHAPE, 1, 2), (*SHAPE, 1, 1, 3)):
    yield f"{len(shape)}d", nib.Nifti1Image(np.ones(shape, np.float32), AFFINE).to_bytes()
  for value in (NAN, INF, -INF, 3e38):
    voxels = np.zeros(SHAPE, np.float32)
    voxels[0, 0, 0] = value
    yield f"voxel_{value}", nib.Nifti1Image(voxels, AFFINE).to_bytes()
  yield "constant", nib.Nifti1Image(np.full(SHAPE, 3, np.int16), AFFINE).to_bytes()
  if masks:
    for value in (199.9, 100.0, -1.0, 1e30, 6e4):
      yield f"label_{value}", nib.Nifti1Image(np.full(SHAPE, value, np.float32), AFFINE).to_bytes()


def write_damaged_gzip(folder: Path, good: bytes) -> Iterator[Path]:
  """Truncated, corrupted and overfull gzip files."""
  packed = gzip.compress(good, 1)
  claims_much = patch(patch(patch(good, "dim", 1, 500), "dim", 2, 500), "dim", 3, 500)
  zeros = gzip.compress(b"\0" * 2**26, 9) * 60  # 3.75 GiB
  contents = {
    "wrong_sum": packed[:-8] + b"\0\0\0\0" + packed[-4:],
    "wrong_length": packed[:-4] + b"\xff\xff\xff\x7f",
    "twice": packed + packed,
    "garbage_behind": packed + b"garbage",
    "not_zipped": good,
    "bomb": gzip.compress(good) + zeros,
    "bomb_in_voxels": gzip.compress(claims_much) + zeros,
    "bomb_before_voxels": gzip.compress(patch(good, "vox_offset", 0, 3e9)) + zeros,
    "zipped_twice": gzip.compress(packed),
    "header_alone": b"\x1f\x8b",
  }
  for end in range(1, len(packed), max(1, len(packed) // 24)):
    contents[f"cut{end}"] = packed[:end]
  for name, content in contents.items():
    path = folder / f"gzip_{name}.nii.gz"
    path.write_bytes(content)
    yield path


def write_no_files(folder: Path) -> Iterator[Path]:
  """Writes links, a pipe and a folder that have the names of volumes."""
  loop, dangling, pipe, directory = (folder / f"{name}.nii" for name in ("loop", "dangling", "pipe", "directory"))
  loop.symlink_to(loop)
  dangling.symlink_to(folder / "nowhere.nii")
  os.mkfifo(pipe)
  directory.mkdir()
  yield from (loop, dangling, pipe, directory)


DICOM_VALUES = {
  "Rows": (0, 1, 5, 65535),
  "Columns": (0, 1, 8, 65535),
  "BitsAllocated": (0, 1, 8, 12, 32, 64, 65535),
  "BitsStored": (0, 12, 17, 65535),
  "PixelRepresentation": (0, 2, 65535),
  "SamplesPerPixel": (0, 2, 3, 65535),
  "NumberOfFrames": ("0", "2", "-1", "2147483647", "x"),
  "PhotometricInterpretation": ("MONOCHROME1", "RGB", "PALETTE COLOR", "", "\n\x1b[31m"),
  "PixelSpacing": ("0\\0", "-1\\1", "1e-30\\1", "1e30\\1", "nan\\1", "1", "1\\1\\1", "", "x\\y"),
  "SliceThickness": ("0", "-8", "nan", "inf", "1e300", ""),
  "ImagePositionPatient": ("0\\0", "nan\\0\\0", "inf\\0\\0", "1e300\\0\\0", "", "a\\b\\c"),
  "ImageOrientationPatient": (
    "0\\0\\0\\0\\0\\0",
    "1\\0\\0\\1\\0\\0",
    "5\\0\\0\\0\\5\\0",
    "1\\0\\0",
    "nan\\0\\0\\0\\1\\0",
  ),
  "RescaleSlope": ("0", "nan", "inf", "1e38", "1e300", "x", "1\\2"),
  "RescaleIntercept": ("nan", "-inf", "3e38", "x"),
  "InstanceNumber": ("x", "99999999999999999999", ""),
  "SeriesNumber": ("x", "-1", "5\\6"),
  "SeriesDescription": ("", "../../../etc/passwd", "a\0b", "\n\x1b[31m", "é" * 3000, "$HOME %s {0}"),
  "ImageType": ("", "\\" * 50, "x" * 5000),
  "SOPClassUID": ("", "1.2.3", "x"),
  "SOPInstanceUID": ("", "x" * 5000),
  "SpecificCharacterSet": ("nosuch", "ISO 2022 IR 87\\x"),
}
TRANSFER_SYNTAXES = ("", "x", "1.2", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
TRANSFER_SYNTAXES += tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 90, 91, 102, 201, 202))
TRANSFER_SYNTAXES += ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2\n")


def write_dicom_corpus(folder: Path) -> Iterator[Path]:
  """Writes broken DICOM files, each of its own series, and yields their paths."""
  folder.mkdir(parents=True, exist_ok=True)
  for number, (kind, content) in enumerate(broken_dicom()):
    path = folder / f"{number:03d}{(' ', 'ä', '%s', '{0}', '-o', '')[number % 6]}{kind}.dcm"
    path.write_bytes(content)
    yield path
  loop, dangling, pipe = (folder / f"{name}.dcm" for name in ("loop", "dangling", "pipe"))
  loop.symlink_to(loop)
  dangling.symlink_to(folder / "nowhere.dcm")
  os.mkfifo(pipe)
  yield from (loop, dangling, pipe)


def good_dicom(series: str, **elements: object) -> bytes:
  """The content of an intact file: one slice."""
  pixels = np.random.default_rng(0).integers(0, 999, SHAPE[:2])
  return dicoms.content(dicoms.make_slice(pixels, 0, series, **elements))


def broken_dicom() -> Iterator[tuple[str, bytes]]:
  """Yields (what is wrong, content)."""
  good = good_dicom("cut")
  for end in (0, 1, 127, 128, 131, 132, 140, 200, 300, *range(400, len(good), 97), len(good) - 1):
    yield f"cut{end}", good_dicom(f"cut{end}")[:end]
  yield "magic", good.replace(b"DICM", b"DICX", 1)
  yield "text", b"patient,structure,dice\n" * 40
  yield (
    "deep",
    good_dicom("deep")
    + b"\xe0\x7f\x10\x00SQ\0\0\xff\xff\xff\xff" * 1
    + (b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" * 3000),
  )
  for name, values in DICOM_VALUES.items():
    for number, value in enumerate(values):
      kind = f"{name}{number}"
      yield kind, dicoms.replace(good_dicom(kind, SpecificCharacterSet="ISO_IR 192"), name, value)
    yield f"without_{name}", dicoms.replace(good_dicom(f"without_{name}"), name, None)
  for number, syntax in enumerate(TRANSFER_SYNTAXES):
    for kind in (f"plain_syntax{number}", f"packed_syntax{number}"):
      content = good_dicom(kind)
      if kind.startswith("packed"):  # in fragments of rubbish
        content = content[: content.rindex(b"\xe0\x7f\x10\x00")] + (
          b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x40\0\0\0"
          + np.random.default_rng(number).bytes(64)
          + b"\xfe\xff\xdd\xe0\0\0\0\0"
        )
      yield kind, dicoms.replace(content, "TransferSyntaxUID", syntax)
  bomb = zlib.compressobj(9, wbits=-15)
  zeros = (bomb.compress(b"\0" * 2**26) + bomb.flush(zlib.Z_FULL_FLUSH)) * 64  # 4 GiB
  yield "bomb", dicoms.replace(good_dicom("bomb"), "TransferSyntaxUID", "1.2.840.10008.1.2.1.99")[:400] + zeros
  rng = np.random.default_rng(1)
  for number in range(80):
    content = bytearray(good_dicom(f"flipped{number}"))
    for place in rng.integers(128, len(content) - 84, 3):
      content[place] ^= 1 << int(rng.integers(8))
    yield f"flipped{number}", bytes(content)


def patch(content: bytes, field: str, index: int, value: float) -> bytes:
  """The content with one element of a field of its header replaced."""
  start, form = FIELDS[field]
  size = struct.calcsize(form)
  start += index * size
  return content[:start] + struct.pack(form, value) + content[start + size :]


# A bad value for each kind of field, whatever its range.
NOT_WHOLE = ("3", None, NAN, INF, True, 2.0, 2.5, -1, 2**40, (1,), b"1", 1 + 0j)
NOT_A_NUMBER = ("0.1", None, NAN, INF, -INF, True, -1, -1e-9, 1e39, 10**5000, (0.1,), [], b"1")
NOT_A_TEXT = ("", None, 3, 0.5, True, ("lge",), b"lge", "a\0b")
NOT_A_TUPLE = ((), [], None, 3, "ab", {"a": 1}, NAN)
NO_ELEMENT = ("x", None, NAN, True, (), -1e39, 1 + 0j)
CHOICES = {"data.plane", "data.empty_slices", "model.norm", "model.dtype", "loss.global_kl.estimator"}
CHOICES |= {"optimizer.schedule", "model.latent", "model.heads"}
MAY_BE_EMPTY = {"augment.flip", "model.decoder_widths", "optimizer.constant"}
ANY_LENGTH = {*MAY_BE_EMPTY, "distillation.teachers", "model.widths", "grid.rows", "grid.seeds", "stages"}
MAY_BE_NONE = {"data.root", "data.spacing"}
MAY_BE_ZERO = {"seed", "translation.blocks"}
# What a row of a grid may not change: unknown fields, fields that are no array of the state, values out of range.
ROW_CHANGES = ({"loss.weights.nosuch": 1.0}, {"train.steps": 3}, {"seed": 1}, {3: 1.0}, {"loss.ramp": (0, -1)})
ROW_CHANGES += (
  {"loss.weights.global_alignment": (0.0,) * 9},
  {"loss.weights.prior_kl": -1.0},
  {"optimizer.rates.segmenter": NAN},
  {"loss": {"ramp": (0, 1)}},
)
OUT_OF_RANGE = {
  "seed": (2**32,),
  "data.label_values": ((0, 1, 2, 2), (0, 1, 2, 2**31), (0, 1, (2, 0), 3), (0, 1, (), 3), (0, 1, (2, (4,)), 3)),
  "data.size": ((62, 64), (0, 64), (64.0, 64), (-16, 64)),
  "data.crop": ((47, 48), (48, 0), (48, 48.5)),
  "data.root": (3, True, ("a",), b"a"),
  "data.spacing": ("1.5", 0, 0.0, -1.5, NAN, INF, True, (1.5, 1.5)),
  "data.zoom": (0, 0.0),
  "data.percentiles": ((99.0, 1.0), (1.0, 1.0), (-1.0, 99.0), (1.0, 100.1)),
  "augment.flip": ((2,), (-1,), (0.0,), (True,)),
  "model.widths": ((16, 0), (16, 32.0, 64, 128), (-8, 16, 32, 64)),
  "model.latent_scales": (4, 99, 2**31 - 1),
  "model.logvar_range": ((-1.0, -3.0), (-21.0, 0.0), (0.0, 88.0)),
  "loss.weights.global_alignment": ((1e-6,), (1e-6, 1e-6, -1e-6)),
  "loss.prototypes.temperature": (0, 0.0, 1e-30),
  "loss.prototypes.confidence": (1.01, 2),
  "loss.ramp": ((-1, 100), (0, -100)),
  "optimizer.b1": (1, 1.0, 0.9999999999),
  "optimizer.clip": (0, 0.0, 1e-30),
  "train.ema_decay": (1, 1.0, 0.9999999999),
  "distillation.temperature": (0, 1e-30),
  "distillation.teachers": ((0, 0), (0.0, 0.0), (-0.5, 1.0), (1.0,), (1.0, 1.0, 1.0, 1.0)),
  "grid.rows": (
    (("a",),),
    (("a", {}), ("a", {})),
    (("", {}),),
    (("a", "cycle"),),
    (("a", ("generator",)),),
    *((("a", changes),) for changes in ROW_CHANGES),
  ),
  "grid.seeds": ((0, 0), (0, 2**32)),
  "stages": (("nosuch",), ("vamcei", "vamcei"), ("distill",), ("no_adaptation", ("vamcei",))),
}
SECTIONS = ("data", "augment", "model", "loss", "loss.weights", "loss.global_kl", "loss.prototypes", "optimizer")
SECTIONS += ("optimizer.rates", "train", "grid", "stage")


def broken_fields(fields: Mapping[str, object]) -> Iterator[tuple[str, object]]:
  """Yields (field, wrong value) for a configuration with these fields, dotted name -> right value; `...`: removed."""
  for field, good in fields.items():
    plain = re.sub(r"^stage\.[a-z_]+\.", "", field)
    numeric = isinstance(good, int | float)
    values = list(OUT_OF_RANGE.get(plain, ()))
    if plain.startswith("data.options."):
      values += ["", None, -1, 2.5, NAN, True, (1,), b"1"]
    elif plain in CHOICES:
      values += [*NOT_A_TEXT, "nosuch", good.upper() + "x", f" {good}", (good,)]
    elif isinstance(good, str):
      values += NOT_A_TEXT
    elif isinstance(good, bool):
      values += ["True", None, 0, 1, NAN, (True,)]
    elif isinstance(good, int):
      values += NOT_WHOLE if plain in MAY_BE_ZERO else (*NOT_WHOLE, 0)
    elif numeric:
      values += NOT_A_NUMBER
    elif isinstance(good, tuple | list):
      empty = () if plain in MAY_BE_EMPTY else ((), [])
      values += [*empty, *(value for value in NOT_A_TUPLE if value not in ((), []))]
      values += [(*good[:-1], element) for element in NO_ELEMENT if plain != "data.label_values" or element != ()]
      values += [] if plain in ANY_LENGTH else [good[:-1], (*good, good[-1])]
    if field == "stages":
      values.append(...)
    yield from ((field, value) for value in values if value is not None or plain not in MAY_BE_NONE)
  for section in SECTIONS:
    yield from ((section, value) for value in (3, None, "x", (1,)))
  stages = sorted({field.split(".")[1] for field in fields if field.startswith("stage.")})
  in_stages = [f"stage.{stage}.{name}" for stage in stages for name in ("nosuch", "train", "seed", "model.widths")]
  for field in ("trian", "train.stepz", "model.width", "data.option", "stage.nosuch", *in_stages):
    yield field, 3
