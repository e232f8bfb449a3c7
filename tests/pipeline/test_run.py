"""What a run gives to its stages, and how it scores them during training."""

import numpy as np
import pytest

from tests.configs import tiny_multistage
from vamcei_jax.data.loader import Patient, load_patients, load_slices
from vamcei_jax.data.preprocess import Preprocess
from vamcei_jax.datasets.translated import prepare_translated
from vamcei_jax.evaluation.metrics import dice
from vamcei_jax.pipeline import run as runs
from vamcei_jax.pipeline.domains import prepare_datasets
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.validation import VALIDATION_SLICES, segmentation_evaluator, translation_evaluator


def test_a_stage_is_validated_by_the_validation_patients_alone(tiny_config, tmp_path, monkeypatch):
  config = resolve(tiny_config).stages["vamcei"]
  datasets = prepare_datasets(config.data, tmp_path)
  monkeypatch.setattr(runs, "segmentation_evaluator", lambda predict, patients, *_: patients)
  names = [patient.name for patient in runs.make_evaluator(config, print, datasets, tmp_path)]
  assert names == [patient.name for patient in load_patients(datasets["target"], "validation")]
  assert names
  assert not set(names) & {patient.name for patient in load_patients(datasets["target"], "test")}


def test_a_stage_is_validated_on_images_like_those_of_its_target(tiny_config, tmp_path, monkeypatch):
  config = resolve(tiny_multistage.get_config()).stages["source_vamcei"]
  datasets = prepare_datasets(resolve(tiny_config).stages["vamcei"].data, tmp_path)
  datasets["target_as_source"] = prepare_translated(datasets["target"], lambda image: 1.0 - image, tmp_path)
  monkeypatch.setattr(runs, "segmentation_evaluator", lambda predict, patients, *_: patients)
  patients = runs.make_evaluator(config, print, datasets, tmp_path)
  for patient, original in zip(patients, load_patients(datasets["target"], "validation"), strict=True):
    np.testing.assert_array_equal(patient.image, 1.0 - original.image)


def test_the_score_of_a_step_is_the_mean_over_the_labelled_patients(tmp_path, without_pictures):
  rng = np.random.default_rng(0)
  shape, spacing = (3, 16, 16), (8.0, 1.5, 1.5)
  predicted = rng.integers(0, 4, (3, *shape))
  truths = [np.where(rng.uniform(size=shape) < share, 0, predicted[n]) for n, share in enumerate((0.2, 0.6))]
  patients = [
    Patient(f"patient{number}", (predicted[number] / 3).astype(np.float32), truth, shape, spacing, (7.5, 7.5))
    for number, truth in enumerate((*truths, None))
  ]
  predict = lambda networks, images: np.eye(4, dtype=np.float32)[np.rint(3 * images[..., 0]).astype(int)]
  evaluate = segmentation_evaluator(predict, patients, Preprocess(size=shape[1:]), tmp_path, "vamcei")
  scores = evaluate({}, 1)
  first, second = (dice(*pair) for pair in zip(predicted, truths, strict=False))
  for structure in ("Myo", "LV", "RV"):
    assert scores[f"dice_{structure}"] == pytest.approx((first[structure] + second[structure]) / 2)
  assert scores["expected_dice"] == 1.0  # of a prediction that is certain
  assert scores["dice"] == pytest.approx(np.mean([scores[f"dice_{structure}"] for structure in ("Myo", "LV", "RV")]))


def test_cycle_errors_are_between_images_and_their_translations_there_and_back(tiny_config, tmp_path, without_pictures):
  datasets = prepare_datasets(resolve(tiny_config).stages["vamcei"].data, tmp_path)
  translators = {"to_target": lambda image: image / 2, "to_source": lambda image: image + 1}
  translate = lambda networks, direction, image: networks[direction](image)
  errors = translation_evaluator(translate, datasets, tmp_path)(translators, 1)
  for domain, error in (("source", lambda image: 1 - image / 2), ("target", lambda image: (1 - image) / 2)):
    images = load_slices(datasets[domain], "train", labels=False)["image"]
    chosen = images[np.linspace(0, len(images) - 1, VALIDATION_SLICES).round().astype(int)]
    assert errors[f"cycle_error_{domain}"] == pytest.approx(error(chosen).mean(), rel=1e-5)
