"""DICOM in, masks and DICOM segmentations out: on the voxels of the images, without patient data in names and masks."""

import gzip
import shutil

import highdicom
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.sr.codedict import codes

from tests.data import dicoms
from tests.inference.test_segmenter import by_intensity_and_place, make_segmenter
from vamcei_jax.data.dicom import list_dicom
from vamcei_jax.errors import InputError
from vamcei_jax.inference.dicom_seg import save_dicom_seg
from vamcei_jax.predict import plan_tasks, write_prediction

VALUES = (0, 200, 500, 600)
SEGMENTS = {"Myo": codes.SCT.StructureOfMyocardiumOfLeftVentricle, "LV": codes.SCT.LeftVentricle}
SEGMENTS["RV"] = codes.SCT.RightVentricle


@pytest.fixture
def segmenter():
  return make_segmenter(by_intensity_and_place)


def as_nifti(files, path):
  """Writes single-frame files in order of their positions as a NIfTI file, by ITK."""
  sitk.WriteImage(sitk.ReadImage([str(file) for file in files]), str(path))
  return path


def files_of_phase(phase):
  return [dicoms.CINE / f"I{number:04d}.dcm" for number in (200 + phase, 180 + phase, 160 + phase)]


@pytest.fixture(scope="module")
def predicted(tiny_run, run_command, tmp_path_factory):
  """The output folder of `predict` for the cine series, and what it printed."""
  output = tmp_path_factory.mktemp("masks")
  flags = [f"--workdir={tiny_run}", f"--input={dicoms.CINE}", f"--output={output}", "--dicom_seg", "--samples=2"]
  finished = run_command("vamcei_jax.predict", *flags)
  assert finished.returncode == 0, finished.stderr
  assert "2 of 2 volumes segmented" in finished.stdout
  return output, finished


@pytest.mark.parametrize("phase", [1, 2])
def test_a_phase_has_the_mask_of_the_same_volume_as_nifti(predicted, tiny_run, run_command, tmp_path, phase):
  (tmp_path / "nifti").mkdir()
  volume = as_nifti(files_of_phase(phase), tmp_path / "nifti" / "volume.nii.gz")
  flags = [f"--workdir={tiny_run}", f"--input={volume}", f"--output={tmp_path / 'masks'}", "--samples=2"]
  assert run_command("vamcei_jax.predict", *flags).returncode == 0
  expected = nib.load(tmp_path / "masks" / "volume.nii.gz")
  (path,) = predicted[0].glob(f"SSFP-CINE-SAx_series5_phase{phase}_??????.nii.gz")
  mask = nib.load(path)
  assert len(np.unique(mask.dataobj)) > 1
  np.testing.assert_array_equal(mask.dataobj, expected.dataobj)
  np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-3)
  assert mask.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("phase", [1, 2])
def test_the_segmentation_has_the_voxels_of_the_mask_on_its_images(predicted, phase):
  (path,) = predicted[0].glob(f"*_phase{phase}_*_seg.dcm")
  segmentation = highdicom.seg.segread(path)
  mask = np.asarray(nib.load(f"{str(path).removesuffix('_seg.dcm')}.nii.gz").dataobj)
  images = [dcmread(file) for file in files_of_phase(phase)]
  uids = [image.SOPInstanceUID for image in images]
  read = segmentation.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
  np.testing.assert_array_equal(np.array(VALUES)[read].transpose(2, 1, 0), mask)
  assert segmentation.StudyInstanceUID == images[0].StudyInstanceUID
  assert segmentation.FrameOfReferenceUID == images[0].FrameOfReferenceUID
  for number, (name, code) in enumerate(SEGMENTS.items(), start=1):
    segment = segmentation.get_segment_description(number)
    assert (segment.segment_label, segment.segmented_property_type) == (name, code)
    assert segment.algorithm_type.value == "AUTOMATIC"
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "vamcei_jax"


def test_files_have_nothing_of_the_patient_but_in_the_segmentation(run_command, tiny_run, tmp_path):
  datasets = dicoms.stack(dicoms.voxels(3, 40, 40))
  datasets += dicoms.stack(dicoms.voxels(3, 40, 40), "b", PhotometricInterpretation="SURNAME")
  datasets += [dicoms.make_slice(dicoms.voxels(1)[0], 0, "c", PixelSpacing=None)]
  dicoms.write(tmp_path / "in", datasets)
  flags = [f"--workdir={tiny_run}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--samples=2"]
  finished = run_command("vamcei_jax.predict", *flags)
  files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
  assert len(files) >= 3
  for name, stored in files.items():
    text = gzip.decompress(stored) if name.endswith(".gz") else stored
    for secret in dicoms.SECRETS:
      assert secret.encode() not in text.upper(), name
      assert secret not in name.upper()
  printed = (finished.stdout + finished.stderr).upper()
  assert finished.stderr
  assert not any(secret in printed for secret in dicoms.SECRETS), printed


def test_a_series_that_cannot_be_used_is_named_and_the_others_are_segmented(run_command, tiny_run, tmp_path):
  bad = dicoms.make_slice(dicoms.voxels(1)[0], 0, "bad", PixelSpacing=None)
  dicoms.write(tmp_path / "in", [*dicoms.stack(dicoms.voxels(3, 40, 40)), bad])
  flags = [f"--workdir={tiny_run}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
  finished = run_command("vamcei_jax.predict", *flags)
  assert finished.returncode == 1
  assert "1 of 2 volumes segmented" in finished.stdout
  assert f"{tmp_path / 'in' / 'IM0003'}: " in finished.stderr


def test_a_folder_of_one_volume_is_segmented_from_python(segmenter, tmp_path):
  for file in files_of_phase(1):
    shutil.copy(file, tmp_path)
  prediction = segmenter(tmp_path)
  expected = segmenter(as_nifti(files_of_phase(1), tmp_path / "volume.nii"))
  np.testing.assert_array_equal(prediction.mask, expected.mask)
  assert prediction.volumes_ml == pytest.approx(expected.volumes_ml, rel=1e-3)
  with pytest.raises(InputError, match="2 volumes .*phase1.*phase2"):
    segmenter(str(dicoms.CINE))
  with pytest.raises(InputError, match="spacing"):
    segmenter(tmp_path, spacing=(1, 1, 1))


def test_the_segmentation_of_one_phase_of_an_enhanced_file_refers_to_its_frames(segmenter, tmp_path):
  rng = np.random.default_rng(0)
  frames = [
    (rng.integers(0, 999, (40, 44)), place, 40.0 * phase, 1.0, "MAGNITUDE") for phase in range(2) for place in range(4)
  ]
  order = rng.permutation(8)
  dicoms.write(tmp_path, [dicoms.make_enhanced([frames[n] for n in order])])
  volume = list_dicom(tmp_path)[0][1]
  prediction = segmenter(volume)
  save_dicom_seg(tmp_path / "seg.dcm", prediction, VALUES)
  segmentation = highdicom.seg.segread(tmp_path / "seg.dcm")
  places = segmentation.get_volume(combine_segments=True)
  to_lps = np.diag([-1, -1, 1, 1])
  seen = 0
  for index in np.argwhere(places.array):
    column, row, place, _ = np.linalg.solve(volume.affine, to_lps @ places.affine @ [*index, 1]).round(3)
    assert prediction.mask[int(column), int(row), int(place)] == VALUES[places.array[tuple(index)]]
    seen += 1
  assert seen == np.count_nonzero(prediction.mask) > 100


@pytest.mark.parametrize("empty", [True, False])
def test_images_without_patient_and_masks_without_heart_have_a_segmentation(tmp_path, empty):
  datasets = dicoms.stack(dicoms.voxels(3, 40, 40))
  for dataset in datasets:
    del dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate
  dicoms.write(tmp_path / "in", datasets)
  none = lambda image, key=None: np.eye(4, dtype=np.float32)[np.zeros(image.shape, int)]
  prediction = make_segmenter(none if empty else by_intensity_and_place)(tmp_path / "in")
  save_dicom_seg(tmp_path / "seg.dcm", prediction, VALUES)
  segmentation = highdicom.seg.segread(tmp_path / "seg.dcm")
  assert segmentation.number_of_segments == 3
  assert segmentation.PatientName == ""
  assert segmentation.pixel_array.any() != empty


def test_a_segmentation_that_cannot_be_made_leaves_no_file(segmenter, tmp_path):
  datasets = dicoms.stack(dicoms.voxels(3, 40, 40))
  for dataset in datasets:
    del dataset.StudyInstanceUID
  dicoms.write(tmp_path / "in", datasets)
  prediction = segmenter(tmp_path / "in")
  with pytest.raises(InputError, match="no DICOM segmentation of these images"):
    save_dicom_seg(tmp_path / "out" / "seg.dcm", prediction, VALUES)
  assert not (tmp_path / "out").exists()
  array = segmenter(np.ones((3, 40, 40)), spacing=(8, 1.5, 1.5))
  with pytest.raises(InputError, match="no DICOM images"):
    save_dicom_seg(tmp_path / "seg.dcm", array, VALUES)


def test_joined_series_are_a_finding_and_have_no_segmentation(segmenter, tmp_path):
  stored = dicoms.voxels(3)
  slices = [dicoms.make_slice(pixels, place, f"s{place}") for place, pixels in enumerate(stored)]
  prediction = segmenter(dicoms.write(tmp_path / "in", slices))
  assert "series joined" in [finding.name for finding in prediction.quality.findings]
  with pytest.raises(InputError, match="3 series; a DICOM segmentation belongs to one"):
    save_dicom_seg(tmp_path / "seg.dcm", prediction, VALUES)
  assert not (tmp_path / "seg.dcm").exists()


def test_a_segmentation_never_replaces_an_image(segmenter, tmp_path):
  for file in files_of_phase(1):
    shutil.copy(file, tmp_path)
  image = tmp_path / files_of_phase(1)[0].name
  before = image.read_bytes()
  with pytest.raises(InputError, match="one of the images; choose another file"):
    save_dicom_seg(image, segmenter(tmp_path), VALUES)
  assert image.read_bytes() == before


def test_the_segmentation_of_an_earlier_mask_is_removed(segmenter, tmp_path):
  (task, _), _ = plan_tasks(dicoms.CINE, tmp_path)
  prediction = segmenter(task.volume)
  save_dicom_seg(task.file("seg"), prediction, VALUES)
  write_prediction(prediction, task, dicom_seg=True)
  assert task.file("seg").exists()
  write_prediction(prediction, task)
  assert task.mask.exists()
  assert not task.file("seg").exists()


def test_a_segmentation_of_another_program_stays(segmenter, tmp_path):
  (task, _), _ = plan_tasks(dicoms.CINE, tmp_path)
  prediction = segmenter(task.volume)
  shutil.copy(files_of_phase(1)[0], task.file("seg"))
  write_prediction(prediction, task)
  assert task.file("seg").exists()


def test_an_output_within_the_input_is_left_out_the_second_time(tmp_path):
  shutil.copytree(dicoms.CINE, tmp_path / "in")
  output = tmp_path / "in" / "masks"
  first, _ = plan_tasks(tmp_path / "in", output)
  output.mkdir()
  for task in first:
    task.mask.write_bytes(b"a mask of before")
  second, unusable = plan_tasks(tmp_path / "in", output)
  assert [task.name for task in second] == [task.name for task in first]
  assert len(first) == 2
  assert unusable == []
