import json
import math

import numpy as np
import pytest
from scipy import ndimage

from vamcei_jax.data.labels import LABEL_VALUES
from vamcei_jax.data.nifti import read_classes, read_volume
from vamcei_jax.phantom.anatomy import GRID, LV, MYO, RV, Anatomy, Grid, draw_anatomy
from vamcei_jax.phantom.scanner import (
  FALLOFF,
  NOISE,
  add_rician_noise,
  cut_window,
  draw_patient,
  scan,
  voxel_means,
  write_nifti,
  write_nnunet,
)
from vamcei_jax.phantom.signal import AIR, BLOOD, MUSCLE, TISSUES

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


def test_seeds_numbers_and_domains_are_of_different_patients():
  people = [(0, 0, "bssfp"), (0, 1, "bssfp"), (1, 0, "bssfp"), (0, 0, "lge"), (0, 1, "lge"), (1, 0, "lge")]
  masks = {draw_patient(*person, COARSE).classes.tobytes() for person in people}
  assert len(masks) == len(people)


def test_arrays_have_the_documented_shapes_and_types(patients):
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
  median = lambda patient, k: np.median(patient.voxels[patient.classes == k])
  for patient in patients[:8]:
    assert median(patient, LV) > median(patient, RV) > 1.3 * median(patient, MYO)
  for patient in patients[8:]:
    assert median(patient, MYO) < 0.6 * median(patient, LV)
    assert median(patient, RV) > 0.85 * median(patient, LV)
  blood_to_wall = [median(patient, LV) / median(patient, MYO) for patient in patients]
  bssfp, lge = blood_to_wall[:8], blood_to_wall[8:]
  # bSSFP: about 3, a ratio of T2 / T1, little different between patients. LGE: the wall is nearly nulled in some.
  assert 2.4 < min(bssfp) < max(bssfp) < 3.4
  assert 2.2 < min(lge) < 3.5 < 5.0 < max(lge)


# Images of uniform regions


REGIONS = Grid(pixels=64, oversampling=1, sub_slices=1)


def scan_regions(seed, domain, left, right, depth=0.0, grid=REGIONS):
  """The image (4, 64, 64) of two regions, left and right of the middle, whose tissues have these signals."""
  samples = grid.pixels * grid.oversampling
  tissues = np.full((4 * grid.sub_slices, samples, samples), AIR, np.uint8)
  tissues[..., : samples // 2], tissues[..., samples // 2 :] = MUSCLE, BLOOD
  signals = np.zeros(TISSUES.shape[1])
  signals[MUSCLE], signals[BLOOD] = left, right
  anatomy = Anatomy(tissues, np.zeros_like(tissues), np.broadcast_to(np.float32(depth), tissues.shape))
  return scan(np.random.default_rng(seed), anatomy, signals, domain, grid)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_noise_in_air_has_the_level_of_the_domain_relative_to_blood(domain):
  levels, ratios = [], []
  for seed in range(60):
    image = scan_regions(seed, domain, 0.0, 0.3)
    air, blood = image[..., 4:26], image[..., 38:60]
    levels.append(air.mean() / math.sqrt(math.pi / 2) / blood.mean())  # of a Rayleigh distribution
    ratios.append(air.std() / air.mean())
  low, high = NOISE[domain]
  # 5 % are three standard errors; 60 uniform draws come closer than a tenth of the range to both of its ends.
  assert 0.95 * low < min(levels) < low + 0.1 * (high - low) + 0.05 * low
  assert high - 0.1 * (high - low) - 0.05 * high < max(levels) < 1.05 * high
  np.testing.assert_allclose(ratios, math.sqrt(4 / math.pi - 1), rtol=0.05)
  assert np.mean(ratios) == pytest.approx(math.sqrt(4 / math.pi - 1), rel=0.01)


@pytest.mark.parametrize("domain", DOMAINS)
def test_signals_fall_with_the_depth_under_the_skin(domain):
  """By a factor e over a length that the domain has."""
  depth = 1.5 * np.arange(64, dtype=np.float32)[:, None]
  lengths = []
  for seed in range(60):
    profile = scan_regions(seed, domain, 1.0, 1.0, depth)[:, 4:-4].mean((0, 2))
    lengths.append(-1 / np.polyfit(depth[4:-4, 0], np.log(profile), 1)[0])
  low, high = FALLOFF[domain]
  assert 0.9 * low < min(lengths) < low + 0.2 * (high - low)
  assert high - 0.2 * (high - low) < max(lengths) < 1.15 * high


def test_the_coil_does_not_change_the_signal_in_the_middle_of_the_stack():
  depth = 1.5 * np.arange(64, dtype=np.float32)[:, None]
  for seed in range(5):
    near, flat = (scan_regions(seed, "bssfp", 1.0, 1.0, of) for of in (depth, 0.0))
    np.testing.assert_allclose(near[2, 30:35].mean() / flat[2, 30:35].mean(), 1.0, atol=0.02)
    assert near[:, 4].mean() > 1.08 * flat[:, 4].mean()
    assert near[:, -4].mean() < 0.93 * flat[:, -4].mean()


@pytest.mark.parametrize("signal", [0.5, -0.5])
def test_images_are_magnitudes_in_proportion_to_the_signals(signal):
  for seed in range(5):
    image = scan_regions(seed, "bssfp", signal, 1.0)
    assert image[..., 4:26].mean() / image[..., 38:60].mean() == pytest.approx(0.5, rel=0.03)


def test_opposite_signals_in_a_voxel_cancel():
  """Voxels of two samples, one of either region, about the border."""
  grid = Grid(pixels=63, oversampling=2, sub_slices=1)  # the border is in the middle of a voxel
  image = scan_regions(0, "bssfp", -1.0, 1.0, grid=grid)
  assert image[..., 31].mean() < 0.75 * image[..., :28].mean()
  assert scan_regions(0, "bssfp", 1.0, 1.0, grid=grid)[..., 31].mean() > 0.97 * image[..., :28].mean()


def test_the_unit_of_the_intensities_is_random():
  means = [scan_regions(seed, "bssfp", 1.0, 1.0).mean() for seed in range(30)]
  assert 490 < min(means) < 700 < 1700 < max(means) < 2010


def test_scars_are_in_lge_alone_and_in_some_of_its_patients(monkeypatch):
  scarred = []

  def spy(rng, grid, *, scarred: bool, into=scarred):
    into.append(scarred)
    return draw_anatomy(rng, grid, scarred=scarred)

  monkeypatch.setattr("vamcei_jax.phantom.scanner.draw_anatomy", spy)
  for domain in DOMAINS:
    for index in range(20):
      draw_patient(0, index, domain, Grid(pixels=16, spacing=9.0, oversampling=1, sub_slices=1))
  assert not any(scarred[:20])
  assert 6 <= sum(scarred[20:]) <= 18


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
  window = cut_window(np.random.default_rng(0), patient, 20)
  assert window.voxels.shape == window.classes.shape == (len(patient.voxels), 20, 20)
  corner = np.linalg.solve(patient.affine, window.affine @ (0, 0, 0, 1))[:3].round().astype(int)
  part = (slice(None), *(slice(start, start + 20) for start in corner[1:]))
  np.testing.assert_array_equal(window.voxels, patient.voxels[part])
  np.testing.assert_array_equal(window.classes, patient.classes[part])


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
