"""The comparison of methods at two hospitals: what it trains, on what it scores, and its tables."""

import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import two_hospitals as recipe
from experiments import two_hospitals
from experiments.hospital_files import write_rows
from experiments.two_hospitals import (
  COLUMNS,
  FRAMEWORK,
  HOSPITALS,
  METHODS,
  labelled,
  make_config,
  read_rows,
  score_method,
  tables,
)
from tests.configs import tiny_folder, tiny_multistage
from vamcei_jax.phantom.anatomy import Grid
from vamcei_jax.phantom.scanner import write_nnunet
from vamcei_jax.pipeline.resolve import resolve

GRID = Grid(pixels=48, spacing=4.5, oversampling=1, sub_slices=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """cine, lge and emidec in the flat layout: 4 target volumes, 2 of them with masks."""
  written, flat = tmp_path_factory.mktemp("nnunet"), tmp_path_factory.mktemp("flat")
  write_nnunet(written, sources=2, targets=4, masks=2, grid=GRID)
  for domain, origin in (("cine", "bssfp"), ("lge", "lge"), ("emidec", "lge")):
    for kind, ending in (("images", "_0000"), ("labels", "")):
      (flat / domain / kind).mkdir(parents=True)
      for file in (written / origin / f"{kind}Tr").glob("*.nii.gz"):
        shutil.copy(file, flat / domain / kind / file.name.replace(f"{ending}.nii", ".nii"))
  return flat


@pytest.fixture
def tiny(monkeypatch, prepared):
  """Makes the recipe tiny, and trains two folds."""

  def get_config():
    config = tiny_folder.get_config()
    config.data.source, config.data.prepared_dir = "cine", str(prepared)
    config.data.options = ConfigDict({"validation": 15})
    config.augment.update(rotation=0.3, scale=0.2)
    config.stage = tiny_multistage.get_config().stage
    config.stage.distill.distillation.teachers = (0.75, 0.25)
    return config

  monkeypatch.setattr(recipe, "get_config", get_config)
  monkeypatch.setattr(two_hospitals, "FOLDS", 2)


def test_each_method_differs_from_the_recipe_in_what_it_names(tmp_path):
  for hospital in HOSPITALS:
    for name, method in METHODS.items():
      config = make_config(name, hospital, 2, tmp_path, tmp_path / "runs")
      resolved = resolve(config)
      assert tuple(resolved.stages) == method.stages
      last = resolved.stages[method.stages[-1]]
      assert (last.data.target, resolved.seed) == (hospital, 2)
      assert last.data.source == {"adapt": None, "supervised": "masks"}.get(name, "cine")
      assert (last.augment.flip == (0, 1)) == (hospital == "emidec")
      assert (last.augment.gin == 0) == (name.endswith("_plain") or name in ("framework", "adapt"))
      if name == "adapt":
        assert last.init == str(tmp_path / "runs" / "no_adaptation")


def test_cyclegan_alone_is_the_first_teacher_of_the_framework_without_the_unsupervised_losses(tmp_path):
  framework = resolve(make_config("framework", "lge", 0, tmp_path, tmp_path)).stages
  alone = resolve(make_config("cyclegan", "lge", 0, tmp_path, tmp_path)).stages
  assert alone["translate"] == framework["translate"]
  weights, used = (stages["target_vamcei"].loss.weights for stages in (alone, framework))
  assert weights["segmentation"] == used["segmentation"] > 0
  for term in ("reconstruction", "prior_kl", "global_alignment", "prototypes", "generator"):
    assert not np.any(weights[term])
    assert np.all(used[term])


def test_all_labelled_patients_are_scored_and_a_second_call_trains_nothing(data, tiny, tmp_path, capsys):
  first = score_method("no_adaptation", "lge", 0, data, tmp_path)
  assert sorted(first) == labelled(data / "lge")
  assert all(0 <= dice <= 1 for by_structure in first.values() for dice in by_structure.values())
  capsys.readouterr()
  assert score_method("no_adaptation", "lge", 0, data, tmp_path) == first
  assert "no_adaptation (skip)" in capsys.readouterr().out


def test_supervised_predicts_each_patient_by_a_network_that_has_not_learned_its_mask(data, tiny, tmp_path):
  patients = labelled(data / "lge")
  assert sorted(score_method("supervised", "lge", 0, data, tmp_path)) == patients
  for fold in range(2):
    learned = {file.name for file in (tmp_path / "folds" / f"lge{fold}" / "masks" / "labels").iterdir()}
    predicted = {file.name for file in (tmp_path / "lge" / "seed0" / f"supervised{fold}" / "masks").iterdir()}
    assert learned | predicted == {f"{patient}.nii.gz" for patient in patients}
    assert not learned & predicted


@pytest.mark.slow
def test_cyclegan_alone_takes_the_translators_of_the_framework(data, tiny, tmp_path, capsys):
  score_method("framework", "lge", 0, data, tmp_path)
  capsys.readouterr()
  score_method("cyclegan", "lge", 0, data, tmp_path)
  assert "translate (skip), target_vamcei (train)" in capsys.readouterr().out
  assert sorted(path.name for path in (tmp_path / "lge" / "seed0" / "framework").iterdir() if path.name in FRAMEWORK)


def test_tables_have_means_over_seeds_and_patients_and_the_file_keeps_them(tmp_path):
  dice = {(0, "a"): 0.5, (0, "b"): 0.7, (1, "a"): 0.7, (1, "b"): 0.9}
  rows = [
    {"hospital": "EMIDEC", "method": "vamcei", "seed": seed, "patient": patient, "Myo": value, "LV": value}
    for (seed, patient), value in dice.items()
  ]
  # Means of the seeds: 0.6 and 0.8. Means of the patients: 0.6 and 0.8.
  assert "| vamcei | 0.700 ± 0.141 | 0.700 ± 0.141 | 0.700 ± 0.141 | ± 0.141 | 2 |" in tables(rows)
  write_rows(tmp_path / "rows.csv", [dict.fromkeys(COLUMNS, "") | row for row in rows])
  assert read_rows(tmp_path / "rows.csv") == rows
