"""The mean of exported weights."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.average_weights import average_weights
from tests.commands import ROOT
from vamcei_jax.errors import InputError
from vamcei_jax.inference.weights import read_weights, write_weights


@pytest.fixture(scope="module")
def shipped():
  return read_weights(ROOT / "weights" / "lge")


def write_scaled(folder, shipped, factor):
  """The weights, times a factor."""
  config, inference, networks = shipped
  write_weights(folder, config, inference, jax.tree.map(lambda array: factor * array, networks))
  return folder


def test_parameters_are_averaged_and_all_else_is_that_of_the_first(shipped, tmp_path):
  folders = [write_scaled(tmp_path / str(factor), shipped, factor) for factor in (1.0, 2.0, 3.0)]
  average_weights(folders, tmp_path / "mean")
  config, inference, networks = read_weights(tmp_path / "mean")
  assert (config, inference) == shipped[:2]
  # float16 has 11 binary digits.
  jax.tree.map(
    lambda mean, one: np.testing.assert_allclose(mean, 2.0 * one, rtol=2**-11, atol=1e-7), networks, shipped[2]
  )


def test_weights_with_another_field_are_averaged_and_that_of_the_first_is_kept(shipped, tmp_path):
  config, inference, networks = shipped
  wide = dataclasses.replace(config, data=dataclasses.replace(config.data, size=(192, 192)))
  write_weights(tmp_path / "wide", wide, dataclasses.replace(inference, extent_mm=(192.0, 192.0)), networks)
  average_weights([ROOT / "weights" / "lge", tmp_path / "wide"], tmp_path / "mean")
  assert read_weights(tmp_path / "mean")[:2] == (config, inference)


def test_weights_that_differ_in_more_than_parameters_are_refused(shipped, tmp_path):
  config, inference, networks = shipped
  write_weights(tmp_path / "unsmoothed", config, dataclasses.replace(inference, smooth=0.0), networks)
  coarse = dataclasses.replace(config, data=dataclasses.replace(config.data, spacing=1.5))
  write_weights(tmp_path / "coarse", coarse, inference, networks)
  swapped = dataclasses.replace(config, data=dataclasses.replace(config.data, label_values=(0, 3, 2, 1)))
  write_weights(tmp_path / "swapped", swapped, inference, networks)
  for name in ("unsmoothed", "coarse", "swapped"):
    with pytest.raises(InputError, match=f"{name}: another architecture, pixels, classes or defaults"):
      average_weights([ROOT / "weights" / "lge", tmp_path / name], tmp_path / "mean")
  assert not (tmp_path / "mean").exists()


def test_one_folder_the_same_one_twice_and_an_existing_output_are_refused(tmp_path):
  lge, emidec = ROOT / "weights" / "lge", ROOT / "weights" / "emidec_student"
  for folders in ([lge], [lge, lge / ".." / "lge"]):
    with pytest.raises(InputError, match="at least two"):
      average_weights(folders, tmp_path / "mean")
  with pytest.raises(InputError, match="exists"):
    average_weights([lge, emidec], tmp_path)
