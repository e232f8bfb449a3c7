import os
from pathlib import Path

import numpy as np
import pytest

from tests.datasets.trees import PREPROCESS, VALUES, build, labelled, patients, write
from vamcei_jax.data.nifti import read_classes, read_volume
from vamcei_jax.data.preprocess import Preprocess, preprocess_classes, preprocess_image
from vamcei_jax.datasets import cases
from vamcei_jax.datasets.cases import CasesConfig
from vamcei_jax.datasets.mscmrseg import Mscmrseg
from vamcei_jax.errors import InputError

NAMES = {"bssfp": "C0", "t2": "T2", "lge": "LGE"}


def add_patient(root, domain, number, mask=True):
  stem = root / NAMES[domain] / f"patient{number}_{NAMES[domain]}"
  write(f"{stem}.nii.gz", f"{stem}_manual.nii.gz" if mask else None, number, domain)


@pytest.fixture
def root(tmp_path):
  """Three patients in bSSFP and T2; in LGE five, two of them with masks."""
  folder = tmp_path / "raw"
  for number in (2, 1, 10):
    add_patient(folder, "bssfp", number)
    add_patient(folder, "t2", number + 20)
  for number in (10, 1, 45, 6, 3):
    add_patient(folder, "lge", number, mask=number in (1, 3))
  return folder


def test_a_source_is_all_patients_with_masks_by_number(root, tmp_path):
  builder = build("mscmrseg", root, "bssfp", "source", tmp_path / "data")
  assert patients(builder) == {"train": ["patient1", "patient2", "patient10"]}
  assert labelled(builder) == {"train": [True] * 3}
  assert patients(build("mscmrseg", root, "t2", "source", tmp_path / "data"))["train"][0] == "patient21"


def test_a_target_trains_on_all_validates_on_the_first_labelled_and_tests_on_the_others(root, tmp_path):
  everyone = ["patient1", "patient3", "patient6", "patient10", "patient45"]
  builder = build("mscmrseg", root, "lge", "target", tmp_path / "data")
  assert patients(builder) == {"train": everyone, "validation": ["patient1", "patient3"]}
  assert labelled(builder) == {"train": [False] * 5, "validation": [True] * 2}
  builder = build("mscmrseg", root, "lge", "target", tmp_path / "data", validation=1)
  assert patients(builder) == {"train": everyone, "validation": ["patient1"], "test": ["patient3"]}


def test_no_mask_of_a_target_is_opened_for_training(root, tmp_path, monkeypatch):
  opened = []

  def spy(mask, *rest):
    opened.append(mask.name)
    return read_classes(mask, *rest)

  monkeypatch.setattr("vamcei_jax.datasets.examine", lambda *_: cases.Examined({}, {}, []))  # which looks at all files
  monkeypatch.setattr(cases, "read_classes", spy)
  builder = build("mscmrseg", root, "lge", "target", tmp_path / "data")
  assert opened == [f"patient{number}_LGE_manual.nii.gz" for number in (1, 3)]  # for validation, once each
  for example in builder.as_data_source("train"):
    assert not example["mask"].any()
    assert not example["truth"].any()


@pytest.mark.parametrize(("domain", "role", "split"), [("bssfp", "source", "train"), ("lge", "target", "validation")])
def test_an_example_is_the_patients_prepared_and_original_data(root, tmp_path, domain, role, split):
  example = build("mscmrseg", root, domain, role, tmp_path / "data").as_data_source(split)[0]
  stem = root / NAMES[domain] / f"patient1_{NAMES[domain]}"
  volume = read_volume(f"{stem}.nii.gz")
  truth = read_classes(f"{stem}_manual.nii.gz", volume, VALUES)
  np.testing.assert_array_equal(example["image"], preprocess_image(volume.voxels, volume.spacing, PREPROCESS))
  np.testing.assert_array_equal(example["mask"], preprocess_classes(truth, volume.spacing, PREPROCESS))
  np.testing.assert_array_equal(example["truth"], truth)
  np.testing.assert_allclose(example["affine"], volume.affine, rtol=1e-6)  # TFDS stores float32
  np.testing.assert_array_equal(example["centre"], (15.5, 15.5))
  np.testing.assert_allclose(example["range"], (volume.voxels.min(), volume.voxels.max()), rtol=1e-6)


def test_the_challenge_s_archive_is_read_as_the_other_layout_is(root, tmp_path):
  archive = tmp_path / "C0LET2_nii45_for_challenge19"
  for name, masks in (("C0", "c0gt"), ("T2", "t2gt"), ("LGE", "lgegt")):
    for file in (root / name).iterdir():
      to = archive / (masks if "_manual" in file.name else "c0t2lge") / file.name
      to.parent.mkdir(parents=True, exist_ok=True)
      to.symlink_to(file)
  for domain, role in (("bssfp", "source"), ("t2", "source"), ("lge", "target")):
    flat, archived = (build("mscmrseg", folder, domain, role, tmp_path / "data") for folder in (root, archive))
    assert patients(archived) == patients(flat)
    for a, b in zip(archived.as_data_source("train"), flat.as_data_source("train"), strict=True):
      np.testing.assert_array_equal(a["image"], b["image"])
      np.testing.assert_array_equal(a["mask"], b["mask"])


def test_files_of_other_names_are_not_taken_for_patients(root, tmp_path):
  for other in ("9_T2.nii.gz", "9_C0.nii.gz", "X_LGE.nii.gz", "11_LGE_manual.nii.gz", "12_LGE.nii.gz.part"):
    (root / "LGE" / f"patient{other}").touch()
  assert len(patients(build("mscmrseg", root, "lge", "target", tmp_path / "data"))["train"]) == 5


def test_a_mask_that_a_source_needs_is_named(root, tmp_path):
  missing = root / "C0" / "patient10_C0_manual.nii.gz"
  missing.unlink()
  with pytest.raises(InputError, match=f"^{missing}: no such mask, and patient10_C0.nii.gz needs one"):
    build("mscmrseg", root, "bssfp", "source", tmp_path / "data")


@pytest.mark.parametrize("domain", ["bssfp", "lge"])
@pytest.mark.parametrize(
  ("folder", "problem"),
  [("none", "none: no such folder"), ("empty", "empty: no {0}/patientN_{0}.nii.gz in it")],
)
def test_a_folder_without_the_volumes_is_refused_with_the_tree_that_is_expected(tmp_path, domain, folder, problem):
  (tmp_path / "empty" / "LGE").mkdir(parents=True)
  with pytest.raises(InputError) as error:
    build("mscmrseg", tmp_path / folder, domain, "source", tmp_path / "data")
  message = str(error.value)
  assert problem.format(NAMES[domain]) in message
  assert "C0/patientN_C0_manual.nii.gz" in message
  assert "c0t2lge" in message
  assert "--config.data.root" in message
  assert "\n" not in message


@pytest.mark.parametrize("broken", ["patient45_LGE.nii.gz", "patient1_LGE_manual.nii.gz"])
def test_a_broken_file_stops_the_build_and_once_repaired_it_is_built(root, tmp_path, broken):
  file = root / "LGE" / broken
  whole = file.read_bytes()
  file.write_bytes(whole[:200])
  with pytest.raises(InputError) as error:
    build("mscmrseg", root, "lge", "target", tmp_path / "data")
  assert str(error.value).startswith(f"{file}: not a readable NIfTI file")
  assert "\n" not in str(error.value)
  assert not list((tmp_path / "data").rglob("*.array_record*"))

  file.write_bytes(whole)
  assert len(build("mscmrseg", root, "lge", "target", tmp_path / "data").as_data_source("train")) == 5


def test_prepared_data_is_reused_while_its_files_stay(root, tmp_path, monkeypatch):
  before = build("mscmrseg", root, "lge", "target", tmp_path / "data")

  def fail(*_):
    raise AssertionError("read again")

  with monkeypatch.context() as patched:
    patched.setattr(cases, "read_volume", fail)
    after = build("mscmrseg", root, "lge", "target", tmp_path / "data")
  assert after.info.full_name == before.info.full_name
  add_patient(root, "lge", 7, mask=False)
  assert build("mscmrseg", root, "lge", "target", tmp_path / "data").info.full_name != before.info.full_name


@pytest.mark.skipif("MSCMRSEG_DIR" not in os.environ, reason="MSCMRSEG_DIR names no MS-CMRSeg folder")
def test_the_released_folder_is_read_as_published(tmp_path):
  released, some = Path(os.environ["MSCMRSEG_DIR"]), tmp_path / "raw"
  for domain, role, sizes in (("bssfp", "source", {"train": 35}), ("lge", "target", {"train": 45, "validation": 5})):
    splits = Mscmrseg.splits(released, CasesConfig(name="test", domain=domain, role=role))
    assert {split: len(found) for split, found in splits.items()} == sizes
  (some / "LGE").mkdir(parents=True)
  for file in released.glob("LGE/patient[1-7]_*"):
    (some / "LGE" / file.name).symlink_to(file)
  builder = build("mscmrseg", some, "lge", "target", tmp_path / "data", preprocess=Preprocess(size=(96, 96), zoom=0.75))
  assert {split: len(names) for split, names in patients(builder).items()} == {"train": 7, "validation": 5}
  for example in builder.as_data_source("validation"):
    assert example["truth"].shape[1:] == (192, 192)
    assert example["image"].shape == example["mask"].shape == (len(example["truth"]), 96, 96)
    np.testing.assert_array_equal(np.unique(example["truth"]), range(4))
    np.testing.assert_array_equal(np.unique(example["mask"]), range(4))
