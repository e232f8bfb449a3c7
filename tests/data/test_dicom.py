"""DICOM series as volumes: the right voxels at the right place, however the files look, or a line that says why."""

import importlib.util
import logging
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from tests.data import dicoms
from vamcei_jax.data.dicom import list_dicom, read_dicom, read_voxels
from vamcei_jax.errors import InputError


def read_all(folder):
  """Name -> voxels (slices, rows, columns); no file may be left out."""
  volumes, failures = list_dicom(folder)
  assert failures == []
  return {volume.name: read_voxels(volume).transpose(2, 1, 0) for volume in volumes}


def failure(folder):
  """The only line about what cannot be used."""
  _, failures = list_dicom(folder)
  assert len(failures) == 1, failures
  assert len(failures[0].splitlines()) == 1
  assert failures[0].startswith(str(folder))
  return failures[0]


def test_a_series_has_the_voxels_and_the_affine_that_itk_reads(tmp_path):
  volumes, failures = list_dicom(dicoms.CINE)
  assert failures == []
  assert [volume.name[:-7] for volume in volumes] == [f"SSFP-CINE-SAx_series5_phase{n}" for n in (1, 2)]
  for phase, volume in enumerate(volumes, start=1):
    folder = tmp_path / str(phase)
    folder.mkdir()
    for file in dicoms.CINE.glob(f"*{phase}.dcm"):
      shutil.copy(file, folder)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    np.testing.assert_array_equal(read_voxels(volume).transpose(2, 1, 0), sitk.GetArrayFromImage(image))
    directions = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps_to_ras = np.array([[-1.0], [-1.0], [1.0]])
    np.testing.assert_allclose(volume.affine[:3, :3], lps_to_ras * directions, atol=1e-3)
    np.testing.assert_allclose(volume.affine[:3, 3], lps_to_ras[:, 0] * image.GetOrigin(), atol=1e-3)


def test_files_may_be_nested_and_named_and_ordered_in_any_way(tmp_path):
  stored = dicoms.voxels()
  datasets = dicoms.stack(stored)
  for number in (3, 0, 4, 1, 2):
    dicoms.write(tmp_path / "ST0" / f"SE{number % 2}" / str(number), [datasets[number]])
  shutil.copytree(tmp_path / "ST0", tmp_path / "ST0_copy")
  (tmp_path / "README").write_text("no image")
  (tmp_path / ".hidden.dcm").write_text("no image")
  volume = read_dicom(tmp_path)
  np.testing.assert_array_equal(read_voxels(volume).transpose(2, 1, 0), stored)
  np.testing.assert_allclose(volume.affine @ [0, 0, 0, 1], [*(dicoms.ORIGIN * [-1, -1, 1]), 1])
  # One column, one row and one slice further.
  step = 1.25 * dicoms.ALONG_ROW + 1.5 * dicoms.ALONG_COLUMN + 8.0 * dicoms.NORMAL
  np.testing.assert_allclose(volume.affine @ [1, 1, 1, 0], [*(step * [-1, -1, 1]), 0], atol=1e-9)


def test_a_single_slice_has_the_thickness_of_the_header(tmp_path):
  dicoms.write(tmp_path, dicoms.stack(dicoms.voxels(1)))
  np.testing.assert_allclose(np.linalg.norm(read_dicom(tmp_path).affine[:3, 2]), dicoms.THICKNESS)
  dicoms.write(tmp_path, dicoms.stack(dicoms.voxels(1), SpacingBetweenSlices=10.0))  # with a gap
  np.testing.assert_allclose(np.linalg.norm(read_dicom(tmp_path).affine[:3, 2]), 10.0)
  dicoms.write(tmp_path, dicoms.stack(dicoms.voxels(1), SpacingBetweenSlices=-10.0))
  np.testing.assert_allclose(np.linalg.norm(read_dicom(tmp_path).affine[:3, 2]), 10.0)


def test_each_slice_has_its_own_scale(tmp_path):
  stored = dicoms.voxels(3)
  slopes = (1.0, 0.25, 3.5)
  dicoms.write(
    tmp_path, [dicoms.make_slice(stored[n], n, RescaleSlope=slopes[n], RescaleIntercept=n) for n in range(3)]
  )
  expected = [stored[n] * slopes[n] + n for n in range(3)]
  np.testing.assert_array_equal(read_voxels(read_dicom(tmp_path)).transpose(2, 1, 0), expected)


@pytest.mark.parametrize("delay", [0.0, 3.7], ids=["times of the series", "times of each slice"])
def test_phases_are_told_apart_by_their_trigger_times(tmp_path, delay):
  stored = [dicoms.voxels(4, seed=phase) for phase in range(11)]
  dicoms.write(
    tmp_path,
    [
      dicoms.make_slice(stored[phase][place], place, TriggerTime=50.0 * phase + delay * place, InstanceNumber=1)
      for place in range(4)
      for phase in reversed(range(11))
    ],
  )
  found = read_all(tmp_path)
  assert [name[:-7] for name in found] == [f"LGE-sax-8-mm_series7_phase{n:02d}" for n in range(1, 12)]
  np.testing.assert_array_equal(list(found.values()), stored)


def test_images_of_one_position_are_ordered_by_their_times_and_not_by_their_numbers(tmp_path):
  """Each position has trigger times of its own, and images are numbered from the last phase to the first."""
  stored = [dicoms.voxels(3, seed=phase) for phase in range(4)]
  times = lambda place, phase: {"TriggerTime": 50.0 * phase + 3.7 * place, "InstanceNumber": 9 * place - phase + 9}
  slices = [dicoms.make_slice(stored[n][place], place, **times(place, n)) for place in range(3) for n in range(4)]
  dicoms.write(tmp_path, slices)
  np.testing.assert_array_equal(list(read_all(tmp_path).values()), stored)


@pytest.mark.parametrize(
  ("types", "names"),
  [
    ((["ORIGINAL", "PRIMARY", "M", "NORM"], ["DERIVED", "PRIMARY", "R", "PSIR", "NORM"]), ("magnitude", "psir")),
    ((["ORIGINAL", "PRIMARY", "M_IR", "M", "IR"], ["ORIGINAL", "PRIMARY", "CR", "R", "IR"]), ("magnitude", "real")),
  ],
)
def test_magnitude_and_psir_of_one_series_are_two_volumes(tmp_path, types, names):
  stored = [dicoms.voxels(3, seed=kind) for kind in range(2)]
  dicoms.write(
    tmp_path, [dataset for kind in range(2) for dataset in dicoms.stack(stored[kind], ImageType=types[kind])]
  )
  found = read_all(tmp_path)
  assert len(found) == 2
  for values, word in zip(stored, names, strict=True):
    (name,) = (name for name in found if word in name)
    np.testing.assert_array_equal(found[name], values)


def test_magnitude_and_real_images_of_ge_are_two_volumes(tmp_path):
  stored = [dicoms.voxels(3, seed=kind) for kind in range(2)]
  datasets = [dataset for kind in range(2) for dataset in dicoms.stack(stored[kind], AcquisitionNumber=kind)]
  for number, dataset in enumerate(datasets):
    dataset.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x2F, "SS", 2 * (number // 3))
  dicoms.write(tmp_path, datasets)
  found = read_all(tmp_path)
  assert [name[:-7] for name in found] == ["LGE-sax-8-mm_series7", "LGE-sax-8-mm_series7_real"]
  np.testing.assert_array_equal(list(found.values()), stored)


def test_slices_whose_uids_an_anonymiser_has_made_equal_are_all_read(tmp_path):
  stored = dicoms.voxels(4)
  dicoms.write(tmp_path, dicoms.stack(stored, SOPInstanceUID="1.2.3"))
  np.testing.assert_array_equal(read_voxels(read_dicom(tmp_path)).transpose(2, 1, 0), stored)


def test_series_whose_uids_an_anonymiser_has_made_equal_stay_apart(tmp_path):
  stored = [dicoms.voxels(3, seed=number) for number in range(2)]
  for number, voxels in enumerate(stored):
    dicoms.write(tmp_path / str(number), dicoms.stack(voxels, series=number, SOPInstanceUID="1.2.3"))
  assert {array.tobytes() for array in read_all(tmp_path).values()} == {
    array.astype(np.float32).tobytes() for array in stored
  }


def series_of_slices(stored, **elements):
  """A series for each slice; descriptions end in its number."""
  changes = [{"SeriesDescription": f"PSIR sax {number}", "SeriesNumber": 20 + number} for number in range(len(stored))]
  slices = [dicoms.make_slice(pixels, place, f"s{place}") for place, pixels in enumerate(stored)]
  for dataset, change in zip(slices, changes, strict=True):
    for name, value in (change | elements).items():
      setattr(dataset, name, value)
  return slices


def test_series_of_one_slice_each_are_joined_to_a_stack(tmp_path):
  stored = dicoms.voxels(12)
  dicoms.write(tmp_path / "apart", series_of_slices(stored))
  dicoms.write(tmp_path / "one", dicoms.stack(stored))
  dicoms.write(tmp_path / "anonymous", series_of_slices(stored, PatientID=""))
  assert len(read_dicom(tmp_path / "anonymous").frames) == 12
  volume, expected = read_dicom(tmp_path / "apart"), read_dicom(tmp_path / "one")
  assert volume.series == 12
  assert volume.name.startswith("PSIR-sax-0_series20_")
  np.testing.assert_allclose(volume.affine, expected.affine)
  np.testing.assert_array_equal(read_voxels(volume), read_voxels(expected))


OTHER_SLICES = {
  "description": {"SeriesDescription": "PSIR 3ch"},
  "word with a digit": {"SeriesDescription": "PSIR sax T2"},
  "study": {"StudyInstanceUID": "1.2.3"},
  "patient": {"PatientID": "another"},
  "frame of reference": {"FrameOfReferenceUID": "1.2.3"},
  "type": {"ImageType": ["ORIGINAL", "PRIMARY", "P"]},
  "pixel spacing": {"PixelSpacing": [1.5, 1.5]},
  "place in the plane": {"ImagePositionPatient": (dicoms.ORIGIN + 24 * dicoms.NORMAL + 6 * dicoms.ALONG_ROW).tolist()},
}


@pytest.mark.parametrize("change", OTHER_SLICES.values(), ids=OTHER_SLICES)
def test_a_slice_of_another_stack_is_not_joined(tmp_path, change):
  slices = series_of_slices(dicoms.voxels(4))
  for name, value in change.items():
    setattr(slices[-1], name, value)
  volumes, failures = list_dicom(dicoms.write(tmp_path, slices))
  expected = [1, 1, 1, 1] if "ImagePositionPatient" in change else [1, 3]
  assert (sorted(len(volume.frames) for volume in volumes), failures) == (expected, [])


@pytest.mark.parametrize("places", [(0, 3, 6), (0, 1, 3), (0, 1, 1.5), (0, 0.5, 1), (0, 1, 1)])
def test_single_slices_that_do_not_follow_each_other_are_not_joined(tmp_path, places):
  slices = series_of_slices(dicoms.voxels(len(places)))
  for dataset, place in zip(slices, places, strict=True):
    dataset.ImagePositionPatient = (dicoms.ORIGIN + place * dicoms.THICKNESS * dicoms.NORMAL).tolist()
  volumes, failures = list_dicom(dicoms.write(tmp_path, slices))
  assert ([len(volume.frames) for volume in volumes], failures) == ([1, 1, 1], [])


@pytest.mark.parametrize("name", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_series_that_may_be_of_several_patients_are_not_joined(tmp_path, name):
  volumes, failures = list_dicom(dicoms.write(tmp_path, series_of_slices(dicoms.voxels(3), **{name: ""})))
  assert ([len(volume.frames) for volume in volumes], failures) == ([1, 1, 1], [])


def test_threads_leave_the_log_and_stderr_of_the_process_as_they_were(tmp_path):
  dicoms.write(tmp_path, dicoms.stack(dicoms.voxels(3)))
  before, stderr = logging.root.manager.disable, os.fstat(2)
  with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: read_voxels(read_dicom(tmp_path)), range(16)))
  assert logging.root.manager.disable == before
  assert os.path.samestat(os.fstat(2), stderr)


def test_an_enhanced_file_has_a_volume_for_each_phase_and_component(tmp_path):
  rng = np.random.default_rng(0)
  frames = [
    (rng.integers(0, 999, (20, 24)), place, 40.0 * phase, 0.5 + phase, component)
    for component in ("MAGNITUDE", "REAL")
    for phase in range(2)
    for place in range(4)
  ]
  dicoms.write(tmp_path, [dicoms.make_enhanced([frames[n] for n in rng.permutation(16)])])
  found = read_all(tmp_path)
  assert [name[:-7] for name in found] == [
    f"LGE-sax-8-mm_series7_{component}_phase{n}" for component in ("magnitude", "real") for n in (1, 2)
  ]
  expected = np.reshape([pixels * slope - 1 for pixels, _, _, slope, _ in frames], (4, 4, 20, 24))
  np.testing.assert_array_equal(list(found.values()), expected)


def test_series_of_one_name_stay_apart(tmp_path):
  stored = [dicoms.voxels(3, seed=number) for number in range(2)]
  dicoms.write(tmp_path, [dataset for number in range(2) for dataset in dicoms.stack(stored[number], series=number)])
  found = read_all(tmp_path)
  assert len(found) == 2
  assert {array.tobytes() for array in found.values()} == {array.astype(np.float32).tobytes() for array in stored}
  shutil.copytree(tmp_path, tmp_path / "elsewhere" / "again")
  assert list(read_all(tmp_path / "elsewhere")) == list(found)


def test_a_missing_slice_is_named(tmp_path):
  datasets = dicoms.stack(dicoms.voxels(3))
  dicoms.write(tmp_path / "gap", [datasets[0], datasets[1], dicoms.make_slice(dicoms.voxels(1)[0], 3)])
  height = dicoms.NORMAL @ dicoms.ORIGIN + 2 * dicoms.THICKNESS
  assert f"no slice at {height:.1f} mm, between IM0001 and IM0002" in failure(tmp_path / "gap")


def test_a_phase_without_its_last_slice_is_named_and_the_others_are_read(tmp_path):
  datasets = [d for phase in range(3) for d in dicoms.stack(dicoms.voxels(4), TriggerTime=30.0 * phase)]
  dicoms.write(tmp_path, [*datasets[:7], *datasets[8:]])
  volumes, _ = list_dicom(tmp_path)
  assert ["phase1" in volumes[0].name, "phase3" in volumes[1].name, len(volumes)] == [True, True, 2]
  assert "_phase2" in failure(tmp_path)
  assert "where other phases have one" in failure(tmp_path)


def test_a_repeated_slice_is_named(tmp_path):
  datasets = dicoms.stack(dicoms.voxels(4))
  again = dicoms.make_slice(dicoms.voxels(1)[0], 2, InstanceNumber=9)
  dicoms.write(tmp_path, [*datasets, again])
  assert failure(tmp_path).startswith(f"{tmp_path / 'IM0002'}: ")
  assert "2 images at the position of this file, 1 at others" in failure(tmp_path)


@pytest.mark.parametrize(
  ("elements", "problem"),
  [
    ({"ImageOrientationPatient": [1.0, 0, 0, 0, 1, 0]}, "not the orientation"),
    ({"PixelSpacing": [1.5, 1.5]}, "not the pixel spacing"),
    ({"ImagePositionPatient": [*(dicoms.ORIGIN + 16 * dicoms.NORMAL + dicoms.ALONG_ROW)]}, "off the stack"),
    ({"ImagePositionPatient": [0.0, float("nan"), 0.0]}, "lacks its size, place"),
    ({"PixelSpacing": None}, "lacks its size, place"),
    ({"SamplesPerPixel": 3}, "colour image"),
    ({"NumberOfFrames": 2}, "2 frames"),
  ],
)
def test_a_slice_that_does_not_belong_to_the_stack_is_named(tmp_path, elements, problem):
  datasets = dicoms.stack(dicoms.voxels(4))
  datasets[2] = dicoms.make_slice(dicoms.voxels(1)[0], 2, **elements)
  dicoms.write(tmp_path, datasets)
  lines = list_dicom(tmp_path)[1]
  assert problem in lines[0]
  assert "IM0002" in lines[0]


def test_slices_of_another_size_are_named(tmp_path):
  dicoms.write(tmp_path, [*dicoms.stack(dicoms.voxels(3)), dicoms.make_slice(np.zeros((8, 9)), 3)])
  assert f"{tmp_path / 'IM0003'}: 8 x 9 pixels, not the 20 x 24 of IM0000" in failure(tmp_path)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
def test_pixels_that_pydicom_has_compressed_are_read(tmp_path, syntax):
  stored = dicoms.voxels(3, 64, 72) + 500
  datasets = dicoms.stack(stored, PixelRepresentation=0)
  for dataset in datasets:
    dataset.compress(syntax, generate_instance_uid=False)
  dicoms.write(tmp_path, datasets)
  np.testing.assert_array_equal(read_voxels(read_dicom(tmp_path)).transpose(2, 1, 0), stored)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
def test_damaged_compressed_pixels_are_read_or_named_and_end_no_process(tmp_path, syntax):
  (dataset,) = dicoms.stack(dicoms.voxels(1, 64, 72) + 500, PixelRepresentation=0)
  dataset.compress(syntax, generate_instance_uid=False)
  good, path, refused = dicoms.content(dataset), tmp_path / "damaged.dcm", []
  rng = np.random.default_rng(0)
  for _ in range(60):
    damaged = bytearray(good)
    for place in rng.integers(good.rindex(b"\xe0\x7f\x10\x00") + 20, len(good), 8):
      damaged[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(damaged)
    try:
      assert read_voxels(read_dicom(path)).shape == (72, 64, 1)
    except InputError as error:
      refused.append(str(error))
  assert refused
  assert all(line.startswith(f"{path}: ") for line in refused)


def test_in_monochrome1_large_values_are_dark(tmp_path):
  voxels = dicoms.voxels(3)
  dicoms.write(tmp_path / "white", dicoms.stack(voxels))
  dicoms.write(tmp_path / "black", dicoms.stack(voxels, PhotometricInterpretation="MONOCHROME1"))
  white, black = (read_voxels(read_dicom(tmp_path / name)) for name in ("white", "black"))
  assert white.std() > 0
  np.testing.assert_array_equal(black, -white)


def test_pixels_that_itk_has_compressed_as_jpeg_lossless_are_read_or_their_decoder_is_named(tmp_path):
  stored = dicoms.voxels(3) + 500
  datasets = dicoms.stack(stored, PixelRepresentation=0)
  for pixels, dataset in zip(stored, datasets, strict=True):
    file = str(tmp_path / "compressed.dcm")
    sitk.WriteImage(sitk.GetImageFromArray(pixels.astype(np.uint16)), file, useCompression=True, compressor="JPEG")
    compressed = dcmread(file)
    dataset.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
    dataset.PixelData = compressed.PixelData
    assert dataset.file_meta.TransferSyntaxUID == JPEGLosslessSV1
  dicoms.write(tmp_path / "series", datasets)
  volume = read_dicom(tmp_path / "series")
  if importlib.util.find_spec("libjpeg") is None:
    with pytest.raises(InputError, match=r"no decoder of JPEG Lossless.*, or install pylibjpeg-libjpeg"):
      read_voxels(volume)
  else:
    np.testing.assert_array_equal(read_voxels(volume).transpose(2, 1, 0), stored)


@pytest.mark.parametrize(
  ("syntax", "name"),
  [("1.2.840.10008.1.2.4.102", "MPEG-4"), ("1.2.840.10008.1.2.4.51", "JPEG Extended"), ("1.2.3.4", "1.2.3.4")],
)
def test_a_transfer_syntax_that_cannot_be_decoded_is_named(tmp_path, syntax, name):
  datasets = dicoms.stack(dicoms.voxels(2))
  for dataset in datasets:
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
  dicoms.write(tmp_path, datasets)
  with pytest.raises(InputError, match=f"IM0000: .*{name}.*uncompressed"):
    read_voxels(read_dicom(tmp_path))


def test_a_file_that_is_deflated_as_a_whole_is_named(tmp_path):
  """A small file of this kind can grow to fill the memory."""
  (dataset,) = dicoms.stack(dicoms.voxels(1))
  dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
  dicoms.write(tmp_path, [dataset])
  assert "Deflated" in failure(tmp_path)


def test_files_without_a_preamble_are_read(tmp_path):
  stored = dicoms.voxels(3)
  for number, dataset in enumerate(dicoms.stack(stored)):
    del dataset.file_meta, dataset.preamble
    dataset.save_as(tmp_path / str(number), implicit_vr=number == 1, little_endian=True)
    assert (tmp_path / str(number)).read_bytes()[:2] == b"\x08\x00"
  np.testing.assert_array_equal(read_voxels(read_dicom(tmp_path)).transpose(2, 1, 0), stored)


def test_nothing_of_the_patient_is_in_names_and_lines(tmp_path):
  datasets = dicoms.stack(dicoms.voxels(4), PatientComments="SURNAME FORENAME")
  dicoms.write(tmp_path / "intact", datasets)
  del datasets[2].ImagePositionPatient
  datasets[1].Rows = 0
  dicoms.write(tmp_path / "broken", datasets)
  (volume,) = list_dicom(tmp_path / "intact")[0]
  texts = [volume.name, str(volume), *list_dicom(tmp_path / "broken")[1]]
  assert len(texts) >= 3
  for text in texts:
    assert not any(secret in text.upper() for secret in dicoms.SECRETS), text


def test_hidden_folders_and_the_folder_that_is_left_out_are_not_searched(tmp_path):
  for number, folder in enumerate(("study", ".trash", "masks")):
    dicoms.write(tmp_path / folder, dicoms.stack(dicoms.voxels(3), f"series {number}"))
  assert len(list_dicom(tmp_path)[0]) == 2
  volumes, failures = list_dicom(tmp_path, leave_out=tmp_path / "masks")
  assert failures == []
  assert [volume.name for volume in volumes] == [list_dicom(tmp_path / "study")[0][0].name]


def test_several_volumes_are_named_where_one_is_expected(tmp_path):
  with pytest.raises(InputError, match=r"2 volumes \(SSFP-CINE-SAx_series5_phase1_\w{6}, SSFP.*phase2_\w{6}\)"):
    read_dicom(dicoms.CINE)
  with pytest.raises(InputError, match=f"{tmp_path}: no DICOM image"):
    read_dicom(tmp_path)


def test_without_the_libraries_the_line_says_how_to_install_them(monkeypatch):
  for module in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
    monkeypatch.delitem(sys.modules, module)
  monkeypatch.setitem(sys.modules, "pydicom", None)
  volumes, failures = list_dicom(dicoms.CINE)
  assert volumes == []
  assert len(failures) == 1
  assert "pip install -e '.[dicom]'" in failures[0]


def test_segmentations_and_files_without_an_image_are_skipped(tmp_path):
  stored = dicoms.voxels(3)
  dicoms.write(tmp_path, dicoms.stack(stored))
  report = dicoms.make_slice(stored[0], 9, "report", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
  for name in ("Rows", "PixelData"):
    delattr(report, name)
  segmentation = dicoms.make_slice(stored[0], 9, "seg", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
  dicoms.write(tmp_path / "others", [report, segmentation])
  assert list_dicom(tmp_path)[1] == []
  assert len(list_dicom(tmp_path)[0]) == 1


def test_a_file_of_another_kind_that_is_called_dicom_is_named(tmp_path):
  (tmp_path / "a.dcm").write_text("no DICOM")
  assert f"{tmp_path / 'a.dcm'}: not a readable DICOM file" in failure(tmp_path)
