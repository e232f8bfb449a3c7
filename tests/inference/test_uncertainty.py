"""Entropy by voxel, and statistics of latent samples by structure."""

import numpy as np
import pytest

from vamcei_jax.inference.uncertainty import entropy, structure_uncertainty, summarise_draws


def test_entropies_are_those_worked_out_by_hand():
  probs = np.array([[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]], np.float32)
  np.testing.assert_allclose(entropy(probs), [0, np.log(4), np.log(2)], atol=1e-6)


def test_samples_are_averaged_and_each_one_is_classified():
  draws = np.random.default_rng(0).dirichlet(np.ones(4), (5, 2, 3, 3)).astype(np.float32)
  mean, classes = summarise_draws(iter(draws))
  np.testing.assert_allclose(mean, draws.mean(0), rtol=1e-6)
  np.testing.assert_array_equal(classes, draws.argmax(-1))


def test_statistics_of_structures_are_those_worked_out_by_hand():
  classes = np.zeros((1, 4, 4), int)
  classes[0, 0, :4] = 1
  classes[0, 1, :2] = 2
  smaller = classes.copy()
  smaller[0, 0, 2:] = 0  # Myo 2 of 4 voxels
  entropies = np.arange(16.0).reshape(1, 4, 4)
  rows = structure_uncertainty(classes, [classes, smaller], entropies, (10.0, 2.0, 5.0))  # 0.1 ml a voxel
  assert rows["Myo"] == pytest.approx(
    {
      "volume_ml": 0.4,
      "volume_std_ml": 0.2 / np.sqrt(2),  # of 0.4 and 0.2
      "entropy": 1.5,
      "agreement": (1 + 2 * 2 / 6) / 2,
    }
  )
  assert rows["LV"] == pytest.approx({"volume_ml": 0.2, "volume_std_ml": 0.0, "entropy": 4.5, "agreement": 1.0})
  assert rows["RV"]["volume_ml"] == 0.0
  assert np.isnan(rows["RV"]["entropy"])
  assert structure_uncertainty(classes, [smaller], entropies, (10.0, 2.0, 5.0))["Myo"]["volume_std_ml"] is None
