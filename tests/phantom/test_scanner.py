import json
import math

import numpy as np
import pytest
from scipy import ndimage

from vamcei_jax.data.labels import LABEL_VALUES
from vamcei_jax.data.nifti import read_classes, read_volume
from vamcei_jax.phantom.anatomy import GRID, LV, MYO, RV, Grid
from vamcei_jax.phantom.scanner import (
  add_rician_noise,
  cut_window,
  draw_patient,
  voxel_means,
  write_nifti,
  write_nnunet,
)

DOMAINS = ("bssfp", "lge")
COARSE = Grid(pixels=48, spacing=3.0)  # quick, for what does not depend on the grid


@pytest.fixture(scope="module")
def patients():
  return [draw_patient(0, index, domain) for domain in DOMAINS for index in range(8)]


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_patient_is_the_same_however_many_were_drawn_before(domain):
  first = draw_patient(3, 5, domain, COARSE)
  for index in range(3):
    draw_patient(3, index, domain, COARSE)
  again = draw_patient(3, 5, domain, COARSE)
  np.testing.assert_array_equal(first.voxels, again.voxels)
  np.testing.assert_array_equal(first.classes, again.classes)
  np.testing.assert_array_equal(first.affine, again.affine)


def test_seeds_numbers_and_domains_are_different_people():
  people = [(0, 0, "bssfp"), (0, 1, "bssfp"), (1, 0, "bssfp"), (0, 0, "lge"), (0, 1, "lge"), (1, 0, "lge")]
  masks = {draw_patient(*person, COARSE).classes.tobytes() for person in people}
  assert len(masks) == len(people)


def test_arrays_have_the_forms_that_they_say(patients):
  for patient in patients:
    assert patient.voxels.shape == patient.classes.shape
    assert patient.voxels.shape[1:] == (96, 96)
    assert 8 <= len(patient.voxels) <= 12
    assert patient.voxels.dtype == np.float32
    assert patient.classes.dtype == np.uint8
    assert np.isfinite(patient.voxels).all()
    assert patient.voxels.min() >= 0
    directions = patient.affine[:3, :3] / (8.0, 1.5, 1.5)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)


def test_the_wall_separates_the_cavity_from_everything_else(patients):
  for patient in patients:
    # In basal slices the valve plane may cut the ring open.
    for plane in patient.classes[: np.flatnonzero((patient.classes == LV).any((1, 2)))[-1] - 1]:
      neighbours = ndimage.binary_dilation(plane == LV) & (plane != LV)
      assert (plane[neighbours] == MYO).all()


def test_the_right_ventricle_lies_left_of_the_left_one_and_starts_above_its_apex(patients):
  for patient in patients:
    lv, rv = (np.argwhere(patient.classes == k) for k in (LV, RV))
    assert rv[:, 2].mean() < lv[:, 2].mean() - 15
    assert rv[:, 0].min() > lv[:, 0].min()


def test_some_slices_show_no_class(patients):
  empty = np.array([[not patient.classes[end].any() for end in (0, -1)] for patient in patients])
  assert 0 < empty.mean() < 1


def test_volumes_are_those_of_hearts(patients):
  ml = GRID.thickness * GRID.spacing**2 / 1000
  for patient in patients:
    assert 60 < ml * (patient.classes == LV).sum() < 250
    assert 60 < ml * (patient.classes == MYO).sum() < 220
    assert 60 < ml * (patient.classes == RV).sum() < 250


def test_a_voxel_is_the_mean_of_its_samples():
  grid = Grid(pixels=5, oversampling=3, sub_slices=2)
  samples = np.random.default_rng(0).normal(size=(8, 15, 15))
  expected = [[[samples[2 * d : 2 * d + 2, 3 * h : 3 * h + 3, 3 * w : 3 * w + 3].mean() for w in range(5)]
               for h in range(5)] for d in range(4)]  # fmt: skip
  np.testing.assert_allclose(voxel_means(samples, grid), expected, atol=1e-6)


@pytest.mark.parametrize("grain", [0.0, 0.7])
def test_noise_is_rayleigh_in_air_and_gaussian_on_tissue(grain):
  rng = np.random.default_rng(0)
  air = add_rician_noise(rng, np.zeros((8, 128, 128), np.float32), 2.0, grain)
  # The standard error of the means is below 0.01 even with neighbours alike.
  np.testing.assert_allclose(air.mean(), 2 * math.sqrt(math.pi / 2), rtol=0.01)
  np.testing.assert_allclose(air.std(), 2 * math.sqrt(2 - math.pi / 2), rtol=0.02)
  tissue = add_rician_noise(rng, np.full((8, 128, 128), 100, np.float32), 2.0, grain)
  np.testing.assert_allclose([tissue.mean(), tissue.std()], [100 + 4 / 200, 2], rtol=0.01)


def test_contrasts_differ_as_the_sequences_do(patients):
  of = lambda patient, k: np.median(patient.voxels[patient.classes == k])
  for patient in patients[:8]:
    assert of(patient, LV) > of(patient, RV) > 1.3 * of(patient, MYO)
  for patient in patients[8:]:
    assert of(patient, MYO) < 0.6 * of(patient, LV)
    assert of(patient, RV) > 0.85 * of(patient, LV)


def test_nifti_files_hold_what_was_drawn(tmp_path):
  write_nifti(tmp_path, seed=4, sources=2, targets=3, masks=1, grid=COARSE)
  names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.nii.gz"))
  assert names == [
    *(f"C0/patient{n}_C0{kind}.nii.gz" for n in (1, 2) for kind in ("", "_manual")),
    "LGE/patient1_LGE.nii.gz",
    "LGE/patient1_LGE_manual.nii.gz",
    "LGE/patient2_LGE.nii.gz",
    "LGE/patient3_LGE.nii.gz",
  ]
  for name, domain, index in (("C0", "bssfp", 1), ("LGE", "lge", 0)):
    patient = draw_patient(4, index, domain, COARSE)
    stem = tmp_path / name / f"patient{index + 1}_{name}"
    volume = read_volume(f"{stem}.nii.gz")
    np.testing.assert_array_equal(volume.voxels, patient.voxels)
    np.testing.assert_allclose(volume.affine, patient.affine, rtol=0, atol=1e-4)  # headers hold float32
    np.testing.assert_array_equal(read_classes(f"{stem}_manual.nii.gz", volume, LABEL_VALUES), patient.classes)


def test_a_window_shows_a_part_of_the_patient_where_it_was():
  patient = draw_patient(4, 0, "lge", COARSE)
  seen = cut_window(np.random.default_rng(0), patient, 20)
  assert seen.voxels.shape == seen.classes.shape == (len(patient.voxels), 20, 20)
  corner = np.linalg.solve(patient.affine, seen.affine @ (0, 0, 0, 1))[:3].round().astype(int)
  part = (slice(None), *(slice(start, start + 20) for start in corner[1:]))
  np.testing.assert_array_equal(seen.voxels, patient.voxels[part])
  np.testing.assert_array_equal(seen.classes, patient.classes[part])


def test_nnunet_folders_describe_themselves(tmp_path):
  write_nnunet(tmp_path, sources=1, targets=3, masks=2, grid=COARSE, window=24)
  names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
  assert names == [
    "bssfp/dataset.json",
    "bssfp/imagesTr/bssfp_001_0000.nii.gz",
    "bssfp/labelsTr/bssfp_001.nii.gz",
    "lge/dataset.json",
    *(f"lge/imagesTr/lge_00{number}_0000.nii.gz" for number in (1, 2, 3)),
    *(f"lge/labelsTr/lge_00{number}.nii.gz" for number in (1, 2)),
  ]
  description = json.loads((tmp_path / "lge" / "dataset.json").read_text())
  assert description["labels"] == {"background": 0, "Myo": 1, "LV": 2, "RV": 3}
  assert read_volume(tmp_path / "lge" / "imagesTr" / "lge_003_0000.nii.gz").voxels.shape[1:] == (24, 24)
