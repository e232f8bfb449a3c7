"""Criteria that choose a network without labels: their values in closed form, and what a choice costs."""

import math
import types

import nibabel as nib
import numpy as np
import pytest

import vamcei_jax
from experiments import label_free_choice
from experiments.label_free_choice import density, judge, table, vote
from tests.commands import error_of


def test_the_density_of_equal_pixels_is_the_logarithm_of_the_number_of_neighbours():
  assert density(np.full((50, 4), 0.25)) == pytest.approx(math.log(49))


def test_the_density_of_two_clusters_is_that_within_them():
  probs = np.eye(4)[[0] * 30 + [1] * 30]
  assert density(probs) == pytest.approx(math.log(29), abs=1e-4)  # between the clusters: exp(-1/0.05)
  assert density(probs[::-1]) == pytest.approx(density(probs))


def test_each_pixel_has_the_class_of_most_masks():
  masks = np.array([[0, 1, 3, 2], [0, 1, 3, 1], [2, 1, 0, 0]])[:, None, None]
  assert vote(masks).tolist() == [[[0, 1, 3, 0]]]


def test_networks_are_judged_where_one_of_them_sees_the_heart(tmp_path, monkeypatch):
  """Three networks; the second sees one more pixel of the LV, and is not sure of two of its five pixels."""
  mask = np.zeros((4, 4, 1), np.uint8)
  mask[0] = 2
  more = mask.copy()
  more[1, 0] = 2
  sure = np.zeros((4, 4, 1, 4))
  sure[..., 0], sure[0, ..., 0], sure[0, ..., 2] = 1, 0, 1
  unsure = sure.copy()
  unsure[0, :1] = unsure[1, :1] = 0.25
  unsure[3] = 0.25  # no network sees the heart there
  predicted = {"vamcei": (mask, sure), "bound": (more, unsure), "framework": (mask, sure)}
  rows = []
  for method, (of_method, _) in predicted.items():
    folder = tmp_path / "seed0" / method / "masks"
    folder.mkdir(parents=True)
    nib.save(nib.Nifti1Image(of_method, np.eye(4)), folder / "a.nii.gz")
    rows += [{"hospital": "EMIDEC", "method": method, "seed": 0, "patient": "a", "Myo": 0.5, "LV": 0.7, "score": 0.6}]
  prediction = lambda run: lambda image: types.SimpleNamespace(probabilities=predicted[run.name][1])
  monkeypatch.setattr(vamcei_jax, "load_segmenter", lambda run, **_: prediction(run))
  first, second, third = judge(rows, tmp_path, tmp_path)
  assert first == third | {"method": "vamcei"}
  assert (first["entropy"], first["agreement"]) == (0, 1)
  assert second["entropy"] == pytest.approx(-2 / 5 * math.log(4))
  assert second["agreement"] == pytest.approx((1 + 2 * 4 / (4 + 5)) / 2)  # Myo: both masks are empty
  assert (second["Dice"], second["score"]) == pytest.approx((0.6, 0.6))
  assert first["density"] != second["density"]


def test_the_table_has_the_dice_of_the_network_that_a_criterion_chooses():
  dice = (0.5, 0.7, 0.6)
  networks = [
    {"hospital": "EMIDEC", "Dice": true, "score": true, "entropy": -true, "density": 1 - true, "agreement": guess}
    for true, guess in zip(dice, (0.1, 0.2, 0.3), strict=True)
  ]
  lines = table(networks).splitlines()
  assert lines[2:] == [
    "| EMIDEC | score | 1.00 | 0.700 | 0.600 | 0.700 | 3 |",
    "| EMIDEC | entropy | -1.00 | 0.500 | 0.600 | 0.700 | 3 |",
    "| EMIDEC | density | -1.00 | 0.500 | 0.600 | 0.700 | 3 |",
    "| EMIDEC | agreement | 0.50 | 0.600 | 0.600 | 0.700 | 3 |",
  ]


def test_a_folder_without_a_comparison_is_refused(run_command, tmp_path):
  finished = run_command("experiments.label_free_choice", f"--data={tmp_path}", f"--workdir={tmp_path}")
  assert f"{tmp_path / 'two_hospitals.csv'}: no results; run python -m experiments.two_hospitals" in error_of(finished)
  assert not (tmp_path / f"{label_free_choice.CHOICE}.csv").exists()
