"""Statistics over patients, against values by hand and by enumeration."""

import csv
import itertools
import json

import numpy as np
import pytest

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.evaluation.metrics import measure
from vamcei_jax.evaluation.statistics import (
  agreement,
  compare,
  format_mean,
  format_seeds,
  format_table,
  results_table,
  sample_std,
  summarise,
  write_csv,
  write_results,
)


def scores_of(dice):
  """Scores of patients, from their Dice of Myo, LV and RV."""
  patients = {f"patient{number}": values for number, values in enumerate(dice)}
  return {
    patient: {name: {"dice": value} for name, value in zip(STRUCTURES, values, strict=True)}
    for patient, values in patients.items()
  }


@pytest.fixture(scope="module")
def measured():
  """All metrics of six patients with random masks."""
  rng = np.random.default_rng(0)
  return {f"patient{n}": measure(*rng.integers(0, 4, (2, 3, 8, 8)), (8.0, 1.25, 1.25)) for n in range(6)}


def test_the_summary_is_over_patients():
  summary = summarise(scores_of([(0.5, 1.0, 0.0), (0.7, 1.0, 0.4), (0.9, 1.0, 0.2)]))
  assert summary["Myo"]["dice"] == pytest.approx({"mean": 0.7, "std": np.sqrt(0.08 / 2), "median": 0.7, "worst": 0.5})
  # Of 0.5, 0.7 and 0.7: squares of -2/15, 1/15 and 1/15.
  over_structures = {"mean": 1.9 / 3, "std": np.sqrt(6 / 225 / 2), "median": 0.7, "worst": 0.5}
  assert summary["mean"]["dice"] == pytest.approx(over_structures)


def test_one_patient_has_no_standard_deviation(measured):
  summary = summarise(scores_of([(0.5, 1.0, 0.0)]))
  assert summary["Myo"]["dice"] == {"mean": 0.5, "std": None, "median": 0.5, "worst": 0.5}
  assert summary["mean"]["dice"]["std"] is None
  row = format_table({"vamcei": summary}).splitlines()[1]
  assert row.split() == ["vamcei", "0.500", "±", "–", "1.000", "±", "–", "0.000", "±", "–", "0.500"]
  assert '"std": null' in json.dumps(summary)


def test_a_standard_deviation_is_that_of_the_sample():
  assert sample_std([1.0, 2.0, 4.0]) == pytest.approx(np.sqrt(7 / 3))  # squares of -4/3, -1/3 and 5/3, over 2
  assert sample_std([3.0]) is None
  assert (format_mean(0.8125, 0.03), format_mean(0.8125, None, 1)) == ("0.812 ± 0.030", "0.8 ± –")
  assert (format_seeds(0.8125, 0.03), format_seeds(0.8125, None)) == ("0.812 ± 0.030", "0.812")


def test_the_worst_is_farthest_from_perfect(measured):
  summary = summarise(measured)
  values = lambda metric: [structures["LV"][metric] for structures in measured.values()]
  assert summary["LV"]["dice"]["worst"] == min(values("dice"))
  assert summary["LV"]["hd95_mm"]["worst"] == max(values("hd95_mm"))
  assert abs(summary["LV"]["volume_difference_ml"]["worst"]) == max(map(abs, values("volume_difference_ml")))
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
  assert got["p_value"] == pytest.approx(np.mean([abs(rank_sum - middle) >= extreme for rank_sum in sums]))
  assert got["median_difference"] == pytest.approx(np.median(differences))
  assert got["n"] == 6


def test_a_volume_too_small_is_no_better_than_one_too_large(measured):
  mirror = lambda values: values | {"volume_difference_ml": -values["volume_difference_ml"]}
  mirrored = {
    patient: {name: mirror(values) for name, values in structures.items()} for patient, structures in measured.items()
  }
  assert compare(measured, mirrored)["LV"]["volume_difference_ml"] == {"n": 6, "median_difference": 0.0, "p_value": 1.0}


def test_only_patients_of_both_are_compared(measured):
  some = {name: measured[name] for name in list(measured)[2:]}
  assert compare(measured, some)["Myo"]["dice"] == {"n": 4, "median_difference": 0.0, "p_value": 1.0}
  assert compare(measured, {"another": measured["patient0"]}) == {}


def test_results_of_one_and_of_several_methods_have_one_shape(measured, tmp_path):
  scores = {"patient 1, left": measured["patient0"]}
  one = write_results(tmp_path / "metrics.json", {"vamcei": scores}, split="test")
  assert json.loads((tmp_path / "metrics.json").read_text()) == one
  method = {"summary": summarise(scores), "agreement": agreement(scores), "patients": scores}
  assert one == {"split": "test", "methods": {"vamcei": method}}
  other = {"patient 1, left": measured["patient1"]}
  several = results_table({"first": other, "second": other, "vamcei": scores}, split="test")
  assert list(several["methods"]) == ["first", "second", "vamcei"]
  assert several["methods"]["vamcei"] == method
  tests = compare(scores, other)
  assert tests["LV"]["dice"]["median_difference"] != 0
  assert several["comparison"] == {"method": "vamcei", "against": "first", "tests": tests}
  assert write_results(tmp_path / "results.json", {}, split="train") == {"split": "train", "methods": {}}


def test_the_csv_file_holds_what_was_measured(measured, tmp_path):
  scores = {"patient 1, left": measured["patient0"]}
  write_csv(tmp_path / "metrics.csv", scores)
  with (tmp_path / "metrics.csv").open(newline="") as table:
    rows = {(row.pop("patient"), row.pop("structure")): row for row in csv.DictReader(table)}
  assert list(rows) == [("patient 1, left", name) for name in STRUCTURES]
  for (patient, structure), row in rows.items():
    values = {name: float(value) for name, value in row.items() if value}
    assert values == pytest.approx(scores[patient][structure], rel=1e-5)


def test_the_table_ends_with_what_the_last_stage_gains():
  stage = lambda value: summarise(scores_of([(value,) * 3] * 2))
  table = format_table({"no_adaptation": stage(0.25), "vamcei": stage(0.75)}).splitlines()
  assert table[1].split() == ["no_adaptation"] + ["0.250", "±", "0.000"] * 3 + ["0.250"]
  assert table[-1].split() == ["difference"] + ["+0.500"] * 4
