"""Criteria that choose a network without labels: their values in closed form, and what a choice costs."""

import math
import re
import shutil
import types

import nibabel as nib
import numpy as np
import pytest

import vamcei_jax
from configs import two_hospitals
from experiments.label_free_choice import (
  CRITERIA,
  PIXELS,
  STEM,
  augmented_cine,
  cine_dice,
  density,
  judge,
  table,
  vote,
)
from experiments.tables import write_rows
from experiments.two_hospitals import COLUMNS, SMOOTH, TABLE
from tests.commands import error_of
from vamcei_jax.data.nifti import read_classes, read_volume
from vamcei_jax.errors import InputError
from vamcei_jax.phantom.anatomy import Grid
from vamcei_jax.phantom.scanner import write_nnunet


def test_the_density_of_equal_pixels_is_the_logarithm_of_the_number_of_neighbours():
  assert density(np.full((50, 4), 0.25)) == pytest.approx(math.log(49))


def test_the_density_of_two_clusters_is_that_within_them():
  probs = np.eye(4)[[0] * 30 + [1] * 30]
  assert density(probs) == pytest.approx(math.log(29), abs=1e-4)  # between the clusters: exp(-1/0.05)


def test_the_density_is_that_of_a_part_of_many_pixels():
  assert density(np.full((PIXELS + 500, 4), 0.25)) == pytest.approx(math.log(PIXELS - 1))


def test_each_pixel_has_the_class_of_most_masks():
  masks = np.array([[0, 1, 3, 2], [0, 1, 3, 1], [2, 1, 0, 0]])[:, None, None]
  assert vote(masks).tolist() == [[[0, 1, 3, 0]]]


@pytest.fixture
def comparison(tmp_path, monkeypatch):
  """The rows of three networks for two patients, the folder of their runs and images, and a cine volume with its mask.

  In patient a, all see the same four pixels of the LV, and the second sees one more, and an RV, which has no labels.
  There, it is not sure of two of the five. All networks see two pixels in patient b.
  """
  masks = {"a": np.zeros((4, 4, 1), np.uint8), "b": np.zeros((2, 2, 1), np.uint8)}
  masks["a"][0], masks["b"][0] = 2, 1
  more = masks["a"].copy()
  more[1, 0], more[3, 3] = 2, 3
  sure = {patient: np.eye(4)[mask] for patient, mask in masks.items()}
  unsure = np.eye(4)[more]
  unsure[:2, 0] = unsure[3] = 0.25
  networks = {("vamcei", 0): (masks, sure), ("vamcei", 1): (masks | {"a": more}, sure | {"a": unsure})}
  networks["framework", 0] = masks, sure
  predicted, rows = {}, []
  for (method, seed), (of_network, probs) in networks.items():
    run = tmp_path / f"seed{seed}" / method
    predicted[run] = {tmp_path / "images" / f"{patient}.nii.gz": of_patient for patient, of_patient in probs.items()}
    for patient, mask in of_network.items():
      for folder in (run / "masks", tmp_path / "images"):
        folder.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / f"{patient}.nii.gz")
      row = {"hospital": "EMIDEC", "method": method, "seed": seed, "patient": patient}
      rows.append(row | {"Myo": 0.5 + seed / 10, "LV": 0.7, "score": 0.6 if patient == "a" else 0.8})

  def load_segmenter(run, postprocess, smooth):
    assert (postprocess, smooth) == (True, SMOOTH)
    return lambda image: types.SimpleNamespace(probabilities=predicted[run].get(image), mask=masks["a"])

  monkeypatch.setattr(vamcei_jax, "load_segmenter", load_segmenter)
  return rows, tmp_path, [("cine", more)]


def test_networks_are_judged_where_one_of_them_sees_a_structure_with_labels(comparison):
  rows, folder, cine = comparison
  first, second, third = judge(rows, folder, folder, cine)
  assert first == third | {"method": "vamcei"}
  assert (first["entropy"], first["agreement"]) == (0, 1)
  assert (second["method"], second["seed"]) == ("vamcei", 1)
  # In a, Myo has no pixel in any mask, so its Dice is 1. In b, all is as in the first network.
  assert second["entropy"] == pytest.approx(-2 / 5 * math.log(4) / 2)
  assert second["agreement"] == pytest.approx(((1 + 2 * 4 / (4 + 5)) / 2 + 1) / 2)
  # In a, four sure pixels of one class and, for the first network, one of the background; in b, two pixels.
  assert first["density"] == pytest.approx((4 * math.log(3) + math.log(4)) / 5 / 2, abs=1e-4)
  assert first["cine"] == pytest.approx((1 + 2 * 4 / (4 + 5)) / 2)
  assert [network["Dice"] for network in (first, second)] == pytest.approx([0.6, 0.65])
  assert [network["score"] for network in (first, second)] == pytest.approx([0.7, 0.7])


@pytest.mark.parametrize(
  ("changed", "reason"),
  [
    ("images", "a.nii.gz: has another size than its masks; use the --data of the comparison"),
    ("seed1/vamcei/masks", "a.nii.gz: has another size than the masks of other runs"),
  ],
)
def test_a_file_of_another_size_is_named(comparison, changed, reason):
  rows, folder, cine = comparison
  nib.save(nib.Nifti1Image(np.zeros((4, 4, 2), np.uint8), np.eye(4)), folder / changed / "a.nii.gz")
  with pytest.raises(InputError, match=re.escape(f"{folder / changed / reason}")):
    judge(rows, folder, folder, cine)


def test_a_patient_in_whom_no_network_sees_a_heart_is_named(comparison):
  rows, folder, cine = comparison
  for masks in folder.glob("seed*/*/masks"):
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 1), np.uint8), np.eye(4)), masks / "b.nii.gz")
  with pytest.raises(InputError, match=r"b\.nii\.gz: no network predicts a heart there"):
    judge(rows, folder, folder, cine)


@pytest.fixture(scope="module")
def cine_folder(tmp_path_factory):
  """Three cine volumes of the phantom, whose first and last slices have no structure in the masks."""
  written, folder = tmp_path_factory.mktemp("nnunet"), tmp_path_factory.mktemp("cine")
  write_nnunet(written, sources=3, targets=1, grid=Grid(pixels=48, spacing=4.5, oversampling=1, sub_slices=1))
  for kind, ending in (("images", "_0000"), ("labels", "")):
    (folder / kind).mkdir()
    for file in (written / "bssfp" / f"{kind}Tr").glob("*.nii.gz"):
      shutil.copy(file, folder / kind / file.name.replace(f"{ending}.nii", ".nii"))
  for file in (folder / "labels").glob("*.nii.gz"):
    mask = nib.load(file)
    classes = np.asarray(mask.dataobj).astype(np.uint8)
    classes[..., [0, -1]] = 0
    nib.save(nib.Nifti1Image(classes, mask.affine), file)
  return folder


def test_cine_volumes_are_changed_alike_in_each_call(cine_folder):
  config = two_hospitals.get_config()
  cases = augmented_cine(cine_folder)
  assert len(cases) == 3
  for (scan, truth), (again, _) in zip(cases, augmented_cine(cine_folder), strict=True):
    assert (scan.volume.voxels == again.volume.voxels).all()
    assert not scan.lost
    image = cine_folder / "images" / f"{scan.name}.nii.gz"
    volume = read_volume(image, keep_lost=True)
    assert scan.volume.spacing == pytest.approx((volume.spacing[0], config.data.spacing, config.data.spacing))
    classes = read_classes(cine_folder / "labels" / image.name, volume, config.data.label_values)
    assert truth.shape == (classes.any((1, 2)).sum(), *config.data.size)
    assert len(truth) == len(classes) - 2
    assert truth.any((1, 2)).all()


def test_cine_masks_move_with_their_images_and_contrasts_change(cine_folder, monkeypatch):
  config = two_hospitals.get_config()
  monkeypatch.setattr(two_hospitals, "get_config", lambda: config)
  both = augmented_cine(cine_folder)
  config.augment.update(dict.fromkeys(("gamma", "contrast", "noise", "blur", "gin", "ipa"), 0.0))
  moved = augmented_cine(cine_folder)
  config.augment.update(dict.fromkeys(("rotation", "scale", "shift"), 0.0))
  still = augmented_cine(cine_folder)
  for (changed, truth), (image, same), (original, before) in zip(both, moved, still, strict=True):
    blood = lambda mask, image=image: float(image.volume.voxels[mask == 2].mean())
    assert (truth == same).all()
    assert np.abs(changed.volume.voxels - image.volume.voxels).mean() > 0.02
    assert blood(truth) == pytest.approx(float(original.volume.voxels[before == 2].mean()), abs=0.03)
    assert blood(before) < blood(truth) - 0.05


def test_the_cine_dice_is_the_mean_over_cases_and_structures(cine_folder):
  cases = augmented_cine(cine_folder)[:2]
  first, truths = cases[0][0].name, {scan.name: truth for scan, truth in cases}
  without_rv = np.where(truths[first] == 3, 0, truths[first])
  segmenter = lambda scan: types.SimpleNamespace(mask=without_rv if scan.name == first else truths[scan.name])
  assert cine_dice(segmenter, cases, ("Myo", "LV", "RV")) == pytest.approx(5 / 6)
  assert cine_dice(segmenter, cases, ("Myo", "LV")) == 1


def test_cine_without_masks_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"no image with labels/NAME\.nii\.gz; correct --cine"):
    augmented_cine(tmp_path)


def test_the_table_has_the_dice_of_the_network_that_a_criterion_chooses():
  dice = (0.5, 0.7, 0.6)
  networks = [
    {"hospital": "EMIDEC", "Dice": true, "score": true, "entropy": -true, "density": 1 - true, "agreement": guess}
    | {"cine": true}
    for true, guess in zip(dice, (0.1, 0.2, 0.3), strict=True)
  ]
  lines = table(networks).splitlines()
  assert lines[2:] == [
    "| EMIDEC | score | 1.00 | 0.700 | 0.600 | 0.700 | 3 |",
    "| EMIDEC | entropy | -1.00 | 0.500 | 0.600 | 0.700 | 3 |",
    "| EMIDEC | density | -1.00 | 0.500 | 0.600 | 0.700 | 3 |",
    "| EMIDEC | agreement | 0.50 | 0.600 | 0.600 | 0.700 | 3 |",
    "| EMIDEC | cine | 1.00 | 0.700 | 0.600 | 0.700 | 3 |",
  ]


def test_the_table_has_no_correlation_of_two_networks_or_of_equal_values():
  network = {"hospital": "EMIDEC", "Dice": 0.5} | dict.fromkeys(CRITERIA, 0.5)
  assert "| EMIDEC | score | – | 0.700 | 0.600 | 0.700 | 2 |" in table([network, network | {"Dice": 0.7, "score": 0.6}])


@pytest.mark.parametrize("rows", [0, 1])
def test_a_comparison_without_results_of_a_hospital_is_refused(run_command, tmp_path, rows):
  row = {"hospital": "MS-CMRSeg", "method": "vamcei", "seed": 0, "patient": "a", "Myo": 0.5, "LV": 0.5, "RV": 0.5}
  if rows:
    write_rows(tmp_path / TABLE, [dict.fromkeys(COLUMNS, "") | row | {"score": 0.5}])
  folders = [f"--{name}={tmp_path}" for name in ("data", "workdir", "cine")]
  finished = run_command("experiments.label_free_choice", *folders)
  missing = "EMIDEC" if rows else "MS-CMRSeg"
  assert f"{tmp_path / TABLE}: no results of {missing}; run python -m experiments.two_hospitals" in error_of(finished)
  assert not (tmp_path / f"{STEM}.csv").exists()
