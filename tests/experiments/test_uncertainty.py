"""Entropy of latent samples against errors."""

import json

import numpy as np
import pytest

from experiments.uncertainty import LEFT_OUT, SAMPLED, Case, auroc, measure_uncertainty, summarise_cases


def test_auroc_counts_pairs_and_ties_half():
  scores, positive = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
  assert auroc(scores, positive) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
  assert auroc(-scores, positive) == pytest.approx(0.5 / 4)


def test_the_most_uncertain_patients_are_left_out_first():
  rng = np.random.default_rng(0)
  maps = lambda: rng.uniform(size=(2, 4, 4))
  case = lambda dice: Case("", None, None, maps(), maps() > 0.5, maps() > 0.3, 0.0, {SAMPLED: dice})
  results = summarise_cases([case(1.0 - 0.1 * number) for number in range(10)])
  assert list(results["error_when_left_out"]) == [f"{share:.0%}" for share in LEFT_OUT]
  assert list(results["error_when_left_out"].values()) == pytest.approx([0.45, 0.40, 0.35, 0.30, 0.25, 0.20])
  assert results["dice"] == pytest.approx({SAMPLED: 0.55})


def test_a_run_gets_numbers_and_a_picture(tiny_run):
  results = measure_uncertainty(tiny_run, patients=6, samples=2)
  assert json.loads((tiny_run / "uncertainty.json").read_text()) == results
  assert (results["patients"], results["samples"], len(results["dice"])) == (6, 2, 6)
  assert all(0.0 <= results[name] <= 1.0 for name in ("auroc", "auroc_near_the_heart"))
  assert 0.0 < results["mean_entropy"]["right"] <= np.log(4)
  assert (tiny_run / "uncertainty.png").read_bytes().startswith(b"\x89PNG")
