"""The comparison of methods at two hospitals: what it trains, on what it scores, and its tables."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import two_hospitals as recipe
from configs.ablation import TERMS
from experiments import two_hospitals
from experiments.tables import write_rows
from experiments.two_hospitals import (
  COLUMNS,
  HOSPITALS,
  METHODS,
  labelled,
  link_patients,
  make_config,
  read_rows,
  score_method,
  tables,
)
from tests.commands import error_of
from tests.configs import tiny_folder, tiny_multistage
from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.metrics import dice
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
      config = make_config(name, hospital, 2, tmp_path)
      resolved = resolve(config)
      assert tuple(resolved.stages) == method.stages
      last = resolved.stages[method.stages[-1]]
      assert (last.data.target, resolved.seed) == (hospital, 2)
      assert last.data.source == ("masks" if name == "supervised" else "cine")
      assert (last.augment.flip == (0, 1)) == (hospital == "emidec")
      assert (last.augment.gin == 0) == (name.endswith("_plain") or name in ("framework", "supervised"))
      assert last.model.logvar_range == ((-6.0, -4.0) if name == "less_noise" else (-3.0, -1.0))
      steps = resolved.stages[method.stages[0]].train.steps
      assert steps == (800 if name == "supervised" else 400)
      assert last.data.empty_slices == ("all" if name == "supervised" else "apical")


@pytest.mark.parametrize(
  ("name", "row"),
  [
    ("global_kl", "+ global KL"),
    ("prototypes", "+ prototypes"),
    ("discriminator", "+ discriminator"),
    ("vamcei", "all"),
  ],
)
def test_rows_of_one_term_have_it_and_the_bound(name, row, tmp_path):
  weights = resolve(make_config(name, "lge", 0, tmp_path)).stages["vamcei"].loss.weights
  assert {term for term in TERMS["all"] if np.any(weights[term])} == set(TERMS[row])


def test_cyclegan_alone_is_the_first_teacher_of_the_framework_without_the_unsupervised_losses(tmp_path):
  framework = resolve(make_config("framework", "lge", 0, tmp_path)).stages
  alone = resolve(make_config("cyclegan", "lge", 0, tmp_path)).stages
  assert alone["translate"] == framework["translate"]
  weights, used = (stages["target_vamcei"].loss.weights for stages in (alone, framework))
  assert weights["segmentation"] == used["segmentation"] > 0
  for term in ("reconstruction", "prior_kl", "global_alignment", "prototypes", "generator"):
    assert not np.any(weights[term])
    assert np.all(used[term])


def test_all_labelled_patients_are_scored_and_a_second_call_trains_nothing(data, tiny, tmp_path, capsys):
  first = score_method("no_adaptation", "lge", 0, data, tmp_path)
  assert sorted(first) == labelled(data / "lge")
  for patient, scores in first.items():
    read = lambda folder, name=patient: np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj)
    mask, truth = read(tmp_path / "lge" / "seed0" / "no_adaptation" / "masks"), read(data / "lge" / "labels")
    assert {name: scores[name] for name in STRUCTURES} == pytest.approx(dice(mask, truth))
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
  for name in ("framework", "cyclegan"):
    assert (tmp_path / "lge" / "seed0" / name / "translate" / "data").is_dir()


def test_a_new_call_links_the_files_of_its_own_data(data, tmp_path):
  patients = labelled(data / "lge")
  link_patients(data / "lge", patients, tmp_path / "fold")
  link_patients(data / "emidec", patients[:1], tmp_path / "fold")
  links = sorted((tmp_path / "fold").rglob("*.nii.gz"))
  assert [link.resolve().parents[1] for link in links] == [(data / "emidec").resolve()] * 2


@pytest.mark.parametrize(
  ("flags", "reason"),
  [
    (["--seeds=0,x"], "--seeds=0,x: expected whole numbers"),
    (["--seeds="], "expected whole numbers"),
    (["--methods=cyclegan,framework"], "cyclegan needs framework before it"),
    (["--methods=gan"], "--methods=gan: no such method; choose from no_adaptation_plain"),
    ([], "cine: fewer than 5 images with labels/NAME.nii.gz"),
  ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(run_command, data, tmp_path, flags, reason):
  finished = run_command("experiments.two_hospitals", f"--data={data}", f"--workdir={tmp_path / 'runs'}", *flags)
  assert reason in error_of(finished)
  assert not (tmp_path / "runs").exists()


def test_a_table_of_another_program_is_refused(tmp_path):
  (tmp_path / "two_hospitals.csv").write_text("row,seed\nvamcei,0\n")
  with pytest.raises(InputError, match="not a table of this version"):
    read_rows(tmp_path / "two_hospitals.csv")


def test_rows_of_an_unknown_method_are_refused(tmp_path):
  row = {"hospital": "EMIDEC", "method": "gan", "seed": 0, "patient": "a", "Myo": 0.5, "LV": 0.5, "score": 0.5}
  write_rows(tmp_path / "rows.csv", [dict.fromkeys(COLUMNS, "") | row])
  with pytest.raises(InputError, match="rows.csv: gan is no method of this version; remove its rows"):
    read_rows(tmp_path / "rows.csv")


def test_tables_have_means_over_seeds_and_patients_and_the_file_keeps_them(tmp_path):
  dice = {(0, "a"): 0.5, (0, "b"): 0.7, (1, "a"): 0.7, (1, "b"): 0.9}
  method = {"hospital": "EMIDEC", "method": "vamcei"}
  rows = [
    method | {"seed": seed, "patient": patient, "Myo": value, "LV": value, "score": 0.5}
    for (seed, patient), value in dice.items()
  ]
  # Means of the seeds: 0.6 and 0.8. Means of the patients: 0.6 and 0.8.
  assert "| vamcei | 0.700 ± 0.141 | 0.700 ± 0.141 | 0.700 ± 0.141 | – | ± 0.141 | 0.500 | 2 |" in tables(rows)
  write_rows(tmp_path / "rows.csv", [dict.fromkeys(COLUMNS, "") | row for row in rows])
  assert read_rows(tmp_path / "rows.csv") == rows


def test_the_gain_is_over_the_base_of_the_same_seed():
  dice = {("no_adaptation", 0): 0.5, ("no_adaptation", 1): 0.6, ("no_adaptation", 2): 0.9, ("bound", 1): 0.5}
  dice |= {("vamcei", 0): 0.6, ("vamcei", 1): 0.9, ("prototypes", 0): 0.7}
  rows = [
    {"hospital": "EMIDEC", "method": method, "seed": seed, "patient": patient, "Myo": value, "LV": value, "score": 0.5}
    for (method, seed), value in dice.items()
    for patient in ("a", "b")
  ]
  gain = {line.split(" | ")[0].strip("| "): line.split(" | ")[4] for line in tables(rows).splitlines()[2:] if line}
  expected = {"no_adaptation": "–", "bound": "-0.100", "prototypes": "–", "vamcei": "0.200 ± 0.141"}
  assert gain == expected
