"""What a run gives to its stages."""

from vamcei_jax.data.loader import load_patients
from vamcei_jax.pipeline import run as runs
from vamcei_jax.pipeline.domains import prepare_datasets
from vamcei_jax.pipeline.resolve import resolve


def test_a_stage_is_validated_by_the_validation_patients_alone(tiny_config, tmp_path, monkeypatch):
  config = resolve(tiny_config).stages["vamcei"]
  datasets = prepare_datasets(config.data, tmp_path)
  monkeypatch.setattr(runs, "segmentation_evaluator", lambda predict, patients, *_: patients)
  names = [patient.name for patient in runs.make_evaluator(config, print, datasets, tmp_path)]
  assert names == [patient.name for patient in load_patients(datasets["target"], "validation")]
  assert names
  assert not set(names) & {patient.name for patient in load_patients(datasets["target"], "test")}
