import json

import numpy as np
import pytest

from vamcei_jax.evaluation.inference import BATCH, predict_volume
from vamcei_jax.evaluation.metrics import dice, format_table, summarise, write_metrics


def test_dice_of_boxes_by_hand():
  prediction, truth = np.zeros((2, 10, 10), int), np.zeros((2, 10, 10), int)
  truth[:, 0:4, 0:5] = 1  # 40 voxels
  prediction[:, 2:6, 0:5] = 1  # 40, of which 20 overlap
  truth[0, 8, 0] = 2  # missed
  scores = dice(prediction, truth)
  assert scores == {"Myo": 0.5, "LV": 0.0, "RV": 1.0}  # RV: in neither


def test_dice_is_of_the_volume_not_the_mean_of_slices():
  prediction, truth = np.zeros((2, 4, 4), int), np.zeros((2, 4, 4), int)
  truth[0, :, :] = prediction[0, :, :] = 3
  truth[1, 0, 0] = 3
  assert dice(prediction, truth)["RV"] == pytest.approx(2 * 16 / 33)


def test_summary_is_over_patients():
  patients = {"a": {"Myo": 0.5, "LV": 1.0, "RV": 0.0}, "b": {"Myo": 0.7, "LV": 1.0, "RV": 0.4}}
  summary = summarise(patients)
  assert summary["Myo"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0.1)}
  assert summary["mean"] == pytest.approx((0.6 + 1.0 + 0.2) / 3)


def test_metrics_files_agree(tmp_path):
  patients = {"patient 1, left": {"Myo": 0.5, "LV": 1.0, "RV": 0.25}}
  write_metrics(tmp_path, patients, "test")
  assert json.loads((tmp_path / "metrics.json").read_text())["patients"] == patients
  lines = (tmp_path / "metrics.csv").read_text().splitlines()
  assert lines == ["patient,Myo,LV,RV", '"patient 1, left",0.500000,1.000000,0.250000']


def test_the_table_ends_with_what_the_last_stage_gains():
  stage = lambda value: summarise({"a": {"Myo": value, "LV": value, "RV": value}})
  table = format_table({"no_adaptation": stage(0.25), "vamcei": stage(0.75)}).splitlines()
  assert table[1].split() == ["no_adaptation"] + ["0.250", "±", "0.000"] * 3 + ["0.250"]
  assert table[-1].split() == ["difference"] + ["+0.500"] * 4


@pytest.mark.parametrize("depth", [1, BATCH - 1, BATCH, BATCH + 1])
def test_a_volume_of_any_depth_goes_through_in_batches_of_one_shape(depth):
  shapes = []

  def predict(params, images):
    shapes.append(images.shape)
    return np.concatenate([1.0 - params * images, params * images], -1)

  image = np.random.default_rng(0).random((depth, 4, 6)).astype(np.float32)
  probs = predict_volume(predict, 0.5, image)
  np.testing.assert_allclose(probs[..., 1], 0.5 * image)
  assert set(shapes) == {(BATCH, 4, 6, 1)}
