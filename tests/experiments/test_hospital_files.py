"""Files as hospitals leave them: how they are changed, and that the shipped weights segment them alike."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, voxel_sizes

import vamcei_jax
from experiments.hospital_files import changes, labelled, score
from tests.commands import ROOT
from vamcei_jax.data.labels import LABEL_VALUES

# The changes that default tests segment, as the beginnings of their names.
ONE_OF_EACH = ("heart -70", "directions lost, way 5", "sform", "slices 0.5", "blank slices in the middle", "metres")
KEEP_PLACE = ("heart", "isotropic", "blank", "as it is")  # the others change the affine or the order of voxels


@pytest.fixture(scope="module")
def changed():
  """A volume whose one bright voxel is class 500, in all changed files."""
  image = np.random.default_rng(0).uniform(size=(192, 160, 8)).astype(np.float32)
  image[100, 60, 4] = 9.0
  affine = np.eye(4)
  affine[:3, :3] = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] * (0.75, 0.75, 8.0)
  return changes(nib.Nifti1Image(image, affine), np.where(image == 9.0, 500, 0).astype(np.int16)), affine


def test_image_and_mask_change_together(changed):
  files, affine = changed
  assert len(files) == 19
  for name, (image, mask) in files.items():
    assert image.shape == mask.shape, name
    brightest = np.argwhere(mask == 500)
    assert image.get_fdata()[tuple(brightest[len(brightest) // 2])] > 1.5, name


def test_the_heart_stays_at_its_place_where_the_affine_is_right(changed):
  files, affine = changed
  for name, (image, mask) in files.items():
    if name.startswith(KEEP_PLACE) and not name.startswith("blank"):
      place = apply_affine(image.affine, np.argwhere(mask == 500).mean(axis=0))
      np.testing.assert_allclose(place, apply_affine(affine, (100, 60, 4)), atol=0.8, err_msg=name)


def test_headers_are_wrong_in_the_way_that_is_said(changed):
  files, affine = changed
  image = lambda name: files[name][0]
  np.testing.assert_allclose(voxel_sizes(image("sform an identity").affine), 1.0)
  np.testing.assert_allclose(image("sform an identity").header.get_zooms(), (0.75, 0.75, 8.0))
  assert image("both codes 0").header["sform_code"] == image("both codes 0").header["qform_code"] == 0
  assert image("metres").header.get_xyzt_units()[0] == "meter"
  np.testing.assert_allclose(voxel_sizes(image("slices 0.5 mm apart").affine), (0.75, 0.75, 0.5), rtol=1e-5)
  np.testing.assert_allclose(voxel_sizes(image("isotropic, 1 mm").affine), 1.0, rtol=0.01)
  ways = {files[f"directions lost, way {number}"][0].get_fdata().tobytes() for number in range(8)}
  assert len(ways) == 8


def test_dice_is_of_label_values():
  mask, truth = np.array([0, 200, 500, 600, 600]), np.array([0, 200, 500, 600, 200])
  expected = pytest.approx({"Myo": 2 / 3, "LV": 1.0, "RV": 2 / 3})
  assert score(mask, truth, LABEL_VALUES) == expected
  assert score(np.array([0, 3, 2, 1])[np.searchsorted(LABEL_VALUES, mask)], truth, (0, 3, 2, 1)) == expected


@pytest.mark.skipif("MSCMRSEG_DIR" not in os.environ, reason="MSCMRSEG_DIR names no MS-CMRSeg folder")
@pytest.mark.parametrize(("patients", "kinds"), [(1, ONE_OF_EACH), pytest.param(5, ("",), marks=pytest.mark.slow)])
def test_the_shipped_weights_segment_all_of_them_as_the_plain_file(patients, kinds):
  """Mean Dice within 0.02; within 0.05 where the distance of slices is falsely small."""
  segmenter, scores = vamcei_jax.load_segmenter(ROOT / "weights" / "mscmrseg_student"), {}
  for _, image, mask in list(labelled(Path(os.environ["MSCMRSEG_DIR"])))[:patients]:
    files = changes(image, mask)
    for name in ("as it is", *(name for name in files if name.startswith(kinds) and name != "as it is")):
      file, truth = files[name]
      scores.setdefault(name, []).append(np.mean(list(score(segmenter(file).mask, truth, LABEL_VALUES).values())))
  means = {name: np.mean(values) for name, values in scores.items()}
  plain = means.pop("as it is")
  assert plain > 0.85
  assert len(means) == (6 if patients == 1 else 18)
  for name, value in means.items():
    assert value > plain - (0.05 if name == "slices 0.5 mm apart" else 0.02), (name, value, plain)
