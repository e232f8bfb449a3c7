"""What is said of all patients, against hand and against enumeration."""

import csv
import itertools
import json

import numpy as np
import pytest

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.evaluation.metrics import measure
from vamcei_jax.evaluation.statistics import agreement, compare, format_table, summarise, write_metrics


def scores_of(dice):
  """Scores of patients, from their Dice of Myo, LV and RV."""
  named = {f"patient{number}": dict(zip(STRUCTURES, values, strict=True)) for number, values in enumerate(dice)}
  return {patient: {name: {"dice": value} for name, value in own.items()} for patient, own in named.items()}


@pytest.fixture(scope="module")
def measured():
  """All metrics of six patients with random masks."""
  rng = np.random.default_rng(0)
  return {f"patient{n}": measure(*rng.integers(0, 4, (2, 3, 8, 8)), (8.0, 1.25, 1.25)) for n in range(6)}


def test_the_summary_is_over_patients():
  summary = summarise(scores_of([(0.5, 1.0, 0.0), (0.7, 1.0, 0.4), (0.9, 1.0, 0.2)]))
  std = np.sqrt(0.08 / 3)
  assert summary["Myo"]["dice"] == pytest.approx({"mean": 0.7, "std": std, "median": 0.7, "worst": 0.5})
  over_structures = {"mean": 1.9 / 3, "std": 0.2 * np.sqrt(2 / 9), "median": 0.7, "worst": 0.5}
  assert summary["mean"]["dice"] == pytest.approx(over_structures)


def test_the_worst_is_farthest_from_perfect(measured):
  summary, values = summarise(measured), [own["LV"] for own in measured.values()]
  assert summary["LV"]["dice"]["worst"] == min(own["dice"] for own in values)
  assert summary["LV"]["hd95_mm"]["worst"] == max(own["hd95_mm"] for own in values)
  assert abs(summary["LV"]["volume_difference_ml"]["worst"]) == max(abs(own["volume_difference_ml"]) for own in values)
  assert "worst" not in summary["LV"]["volume_ml"]
  assert "mass_g" in summary["Myo"]
  assert not {"mass_g", "volume_ml"} & set(summary["mean"])


def test_limits_of_agreement_by_hand():
  names = ("volume_ml", "true_volume_ml", "mass_g", "true_mass_g")
  amount = lambda predicted, true: dict(zip(names, (predicted, true, predicted, 1.0), strict=True))
  pairs = [(100.0, 90.0), (120.0, 124.0), (80.0, 74.0)]  # 10, -4, 6: mean 4, std √52
  limits = agreement({f"{n}": dict.fromkeys(STRUCTURES, amount(*pair)) for n, pair in enumerate(pairs)})
  expected = {"bias": 4.0, "lower": 4 - 1.96 * np.sqrt(52), "upper": 4 + 1.96 * np.sqrt(52)}
  assert limits["LV volume, ml"] == pytest.approx(expected)
  assert limits["Myocardial mass, g"]["bias"] == pytest.approx(99.0)
  assert agreement({"one": dict.fromkeys(STRUCTURES, amount(3.0, 1.0))})["RV volume, ml"] == {"bias": 2.0}


def test_the_p_value_is_that_of_all_signs(measured):
  """With n untied differences, each of the 2ⁿ signs is as likely: how many rank sums are as extreme?"""
  rng = np.random.default_rng(1)
  other = {name: measure(*rng.integers(0, 4, (2, 3, 8, 8)), (8.0, 1.25, 1.25)) for name in measured}
  got = compare(measured, other)["RV"]["dice"]
  differences = np.array([measured[name]["RV"]["dice"] - other[name]["RV"]["dice"] for name in measured])
  ranks = np.abs(differences).argsort().argsort() + 1
  middle = ranks.sum() / 2
  extreme = abs(ranks[differences > 0].sum() - middle)
  sums = [np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=len(ranks))]
  assert got["p_value"] == pytest.approx(np.mean([abs(own - middle) >= extreme for own in sums]))
  assert got["median_difference"] == pytest.approx(np.median(differences))
  assert got["n"] == 6


def test_a_volume_too_small_is_no_better_than_one_too_large(measured):
  mirrored = {
    patient: {name: own | {"volume_difference_ml": -own["volume_difference_ml"]} for name, own in structures.items()}
    for patient, structures in measured.items()
  }
  assert compare(measured, mirrored)["LV"]["volume_difference_ml"] == {"n": 6, "median_difference": 0.0, "p_value": 1.0}


def test_only_patients_of_both_are_compared(measured):
  some = {name: measured[name] for name in list(measured)[2:]}
  assert compare(measured, some)["Myo"]["dice"] == {"n": 4, "median_difference": 0.0, "p_value": 1.0}
  assert compare(measured, {"another": measured["patient0"]}) == {}


def test_metrics_files_hold_what_was_measured(measured, tmp_path):
  scores = {"patient 1, left": measured["patient0"]}
  write_metrics(tmp_path, scores, split="test")
  content = json.loads((tmp_path / "metrics.json").read_text())
  assert content["patients"] == scores
  assert content["split"] == "test"
  assert content["Myo"] == summarise(scores)["Myo"]
  with (tmp_path / "metrics.csv").open(newline="") as table:
    rows = {(row.pop("patient"), row.pop("structure")): row for row in csv.DictReader(table)}
  assert list(rows) == [("patient 1, left", name) for name in STRUCTURES]
  for (patient, structure), row in rows.items():
    values = {name: float(value) for name, value in row.items() if value}
    assert values == pytest.approx(scores[patient][structure], rel=1e-5)


def test_the_table_ends_with_what_the_last_stage_gains():
  stage = lambda value: summarise(scores_of([(value,) * 3]))
  table = format_table({"no_adaptation": stage(0.25), "vamcei": stage(0.75)}).splitlines()
  assert table[1].split() == ["no_adaptation"] + ["0.250", "±", "0.000"] * 3 + ["0.250"]
  assert table[-1].split() == ["difference"] + ["+0.500"] * 4
