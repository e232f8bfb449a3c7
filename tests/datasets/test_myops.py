import dataclasses

import numpy as np
import pytest

from tests.datasets.trees import build, draw, labelled, patients
from vamcei_jax.data.nifti import write_volume
from vamcei_jax.errors import InputError
from vamcei_jax.phantom.scanner import write_patient

FOLDED = (0, (200, 1220, 2221), 500, 600)
SEQUENCES = {"C0": lambda voxels: voxels.max() - voxels, "T2": np.sqrt, "DE": lambda voxels: voxels}


@pytest.fixture
def root(tmp_path):
  """Training patients 101 to 104, with scar and oedema in every mask, and test patients 201 and 202."""
  folder = tmp_path / "MyoPS 2020 Dataset"
  for number in (101, 102, 103, 104, 201, 202):
    patient = draw(number)
    stem = f"train25/myops_training_{number}" if number < 200 else f"test20/myops_test_{number}"
    for name, contrast in SEQUENCES.items():
      sequence = dataclasses.replace(patient, voxels=contrast(patient.voxels))
      write_patient(sequence, folder / f"{stem}_{name}.nii.gz", None)
    if number < 200:
      values = np.take((0, 200, 500, 600), patient.classes)
      myo = np.flatnonzero(patient.classes == 1)
      values.flat[myo[::3]], values.flat[myo[1::3]] = 1220, 2221
      write_volume(folder / "train25_myops_gd" / f"myops_training_{number}_gd.nii.gz", values, patient.affine)
  return folder


def test_no_patient_is_in_both_domains(root, tmp_path):
  settings = dict(data_dir=tmp_path / "data", label_values=FOLDED, sources=2)
  source = patients(build("myops", root, "bssfp", "source", **settings))
  target = patients(build("myops", root, "lge", "target", validation=1, **settings))
  assert source == {"train": ["training_101", "training_102"]}
  unlabelled = ["training_103", "training_104", "test_201", "test_202"]
  assert target == {"train": unlabelled, "validation": ["training_103"], "test": ["training_104"]}
  assert not any(labelled(build("myops", root, "lge", "target", validation=1, **settings))["train"])


def test_a_missing_sequence_moves_no_patient_to_the_other_domain(root, tmp_path):
  (root / "train25" / "myops_training_101_C0.nii.gz").unlink()
  settings = dict(data_dir=tmp_path / "data", label_values=FOLDED, sources=2)
  assert patients(build("myops", root, "bssfp", "source", **settings)) == {"train": ["training_102"]}
  target = patients(build("myops", root, "lge", "target", **settings))
  assert target["train"] == ["training_103", "training_104", "test_201", "test_202"]


def test_a_target_needs_no_masks(root, tmp_path):
  for file in (root / "train25_myops_gd").iterdir():
    file.unlink()
  found = patients(build("myops", root, "lge", "target", tmp_path / "data", sources=3))
  assert found == {"train": ["training_104", "test_201", "test_202"]}


@pytest.mark.parametrize("domain", ["bssfp", "t2", "lge"])
def test_scar_and_oedema_are_myocardium_in_every_sequence(root, tmp_path, domain):
  builder = build("myops", root, domain, "source", tmp_path / "data", label_values=FOLDED, sources=4)
  for example, number in zip(builder.as_data_source("train"), (101, 102, 103, 104), strict=True):
    np.testing.assert_array_equal(example["truth"], draw(number).classes)
  contrast = dict(zip(("bssfp", "t2", "lge"), SEQUENCES.values(), strict=True))[domain]
  np.testing.assert_allclose(example["range"][1], contrast(draw(104).voxels).max(), rtol=1e-6)


def test_without_folding_scar_is_named(root, tmp_path):
  with pytest.raises(InputError, match=r"myops_training_101_gd.nii.gz: unknown label values 1220, 2221"):
    build("myops", root, "bssfp", "source", tmp_path / "data")


def test_other_folders_are_refused_with_the_tree(tmp_path):
  for folder, problem in (("none", "no such folder"), (".", "no train25/myops_training_N_DE.nii.gz in it")):
    with pytest.raises(InputError, match=f"{problem}; expected train25/myops_training_101_C0.nii.gz"):
      build("myops", tmp_path / folder, "lge", "target", tmp_path / "data", label_values=FOLDED)
