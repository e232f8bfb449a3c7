import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from vamcei_jax.data.labels import LABEL_VALUES
from vamcei_jax.data.nifti import read_classes, read_volume, write_volume
from vamcei_jax.data.preprocess import Preprocess, preprocess_classes, preprocess_image
from vamcei_jax.datasets import mscmrseg
from vamcei_jax.datasets.mscmrseg import Mscmrseg
from vamcei_jax.errors import InputError

PREPROCESS = Preprocess(size=(12, 8), zoom=0.75)
# From (d, h, w) to RAS millimetres, the short-axis view.
AFFINE = np.array([[5.0, -0.3, -0.5, 1.0], [-5.0, 0.1, -0.5, 2.0], [3.5, 0.6, -0.1, 3.0], [0.0, 0.0, 0.0, 1.0]])


def add_patient(root, domain, number, mask=True):
  rng = np.random.default_rng(number)
  name = {"bssfp": "C0", "lge": "LGE"}[domain]
  shape = (2 + number % 3, 10, 14)
  (root / name).mkdir(exist_ok=True, parents=True)
  write_volume(root / name / f"patient{number}_{name}.nii.gz", rng.normal(size=shape), AFFINE)
  if mask:
    labels = np.take(LABEL_VALUES, rng.integers(0, 4, shape))
    write_volume(root / name / f"patient{number}_{name}_manual.nii.gz", labels, AFFINE)


@pytest.fixture
def root(tmp_path):
  """Three patients in bSSFP, five in LGE: 1 and 3 to validate on, 6, 10 and 45 to test on, a mask for the 10th."""
  folder = tmp_path / "raw"
  for number in (2, 1, 10):
    add_patient(folder, "bssfp", number)
  for number in (10, 1, 45, 6, 3):
    add_patient(folder, "lge", number, mask=number in (1, 3, 10))
  return folder


def build(root, domain, data_dir, preprocess=PREPROCESS):
  config = next(config for config in Mscmrseg.BUILDER_CONFIGS if config.name == domain)
  config = dataclasses.replace(config, name=f"{domain}-test", preprocess=preprocess)
  builder = Mscmrseg(config=config, data_dir=data_dir, file_format="array_record")
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(root)))
  return builder


def patients(builder, split):
  return [example["patient"].decode() for example in builder.as_data_source(split)]


def labelled(builder, split):
  return [bool(example["labelled"]) for example in builder.as_data_source(split)]


def test_bssfp_is_all_patients_with_masks_by_number(root, tmp_path):
  builder = build(root, "bssfp", tmp_path / "data")
  assert list(builder.info.splits) == ["train"]
  assert patients(builder, "train") == ["patient1", "patient2", "patient10"]
  assert labelled(builder, "train") == [True] * 3


def test_lge_trains_on_all_validates_on_1_to_5_and_tests_on_the_rest(root, tmp_path):
  builder = build(root, "lge", tmp_path / "data")
  assert patients(builder, "train") == ["patient1", "patient3", "patient6", "patient10", "patient45"]
  assert patients(builder, "validation") == ["patient1", "patient3"]
  assert patients(builder, "test") == ["patient6", "patient10", "patient45"]
  assert labelled(builder, "train") == [False] * 5
  assert labelled(builder, "validation") == [True] * 2
  assert labelled(builder, "test") == [False, True, False]


def test_no_mask_is_opened_for_training_on_lge(root, tmp_path, monkeypatch):
  opened = []

  def spy(mask, *rest):
    opened.append(mask.name)
    return read_classes(mask, *rest)

  monkeypatch.setattr(mscmrseg, "read_classes", spy)
  builder = build(root, "lge", tmp_path / "data")
  assert opened == [f"patient{number}_LGE_manual.nii.gz" for number in (1, 3, 10)]  # validation and test, once each
  for example in builder.as_data_source("train"):
    assert not example["mask"].any()
    assert not example["truth"].any()


@pytest.mark.parametrize(("domain", "split", "number"), [("bssfp", "train", 2), ("lge", "validation", 1)])
def test_an_example_is_the_patients_prepared_and_original_data(root, tmp_path, domain, split, number):
  example = build(root, domain, tmp_path / "data").as_data_source(split)[1 if number == 2 else 0]
  name = {"bssfp": "C0", "lge": "LGE"}[domain]
  volume = read_volume(root / name / f"patient{number}_{name}.nii.gz")
  truth = read_classes(root / name / f"patient{number}_{name}_manual.nii.gz", volume, LABEL_VALUES)
  np.testing.assert_array_equal(example["image"], preprocess_image(volume.voxels, volume.spacing, PREPROCESS))
  np.testing.assert_array_equal(example["mask"], preprocess_classes(truth, volume.spacing, PREPROCESS))
  np.testing.assert_array_equal(example["truth"], truth)
  np.testing.assert_array_equal(example["affine"], volume.affine)


@pytest.mark.parametrize(
  ("numbers", "splits"),
  [((2, 4), {"train", "validation"}), ((7,), {"train", "test"}), ((5, 6), {"train", "validation", "test"})],
)
def test_splits_without_patients_are_left_out(tmp_path, numbers, splits):
  for number in numbers:
    add_patient(tmp_path / "raw", "lge", number)
  assert set(build(tmp_path / "raw", "lge", tmp_path / "data").info.splits) == splits


def test_files_are_all_that_the_domain_reads_by_patient(root):
  names = lambda domain: [str(file.relative_to(root)) for file in Mscmrseg.files(str(root), domain)]
  bssfp = [f"C0/patient{number}_C0{end}.nii.gz" for number in (1, 2, 10) for end in ("", "_manual")]
  assert names("bssfp") == bssfp
  for other in ("9_T2.nii.gz", "9_C0.nii.gz", "X_LGE.nii.gz", "11_LGE_manual.nii.gz", "12_LGE.nii.gz.part"):
    (root / "LGE" / f"patient{other}").touch()
  ends = {1: ("", "_manual"), 3: ("", "_manual"), 6: ("",), 10: ("", "_manual"), 45: ("",)}
  assert names("lge") == [f"LGE/patient{number}_LGE{end}.nii.gz" for number in ends for end in ends[number]]


@pytest.mark.parametrize("missing", ["C0/patient10_C0_manual.nii.gz", "LGE/patient3_LGE_manual.nii.gz"])
def test_a_mask_that_is_needed_and_missing_is_named(root, missing):
  (root / missing).unlink()
  with pytest.raises(InputError, match=f"^{root / missing}: no such mask, and .* needs one"):
    Mscmrseg.files(str(root), "bssfp" if missing.startswith("C0") else "lge")


@pytest.mark.parametrize("domain", ["bssfp", "lge"])
@pytest.mark.parametrize(
  ("folder", "problem"),
  [
    (None, "config.data.root: not set"),
    ("none", "none: no such folder"),
    ("empty", "empty: no {0}/patientN_{0}.nii.gz in it"),
  ],
)
def test_a_folder_without_the_volumes_is_refused_with_the_tree_that_is_expected(tmp_path, domain, folder, problem):
  (tmp_path / "empty" / "LGE").mkdir(parents=True)
  with pytest.raises(InputError) as error:
    Mscmrseg.files(folder and str(tmp_path / folder), domain)
  message = str(error.value)
  assert problem.format({"bssfp": "C0", "lge": "LGE"}[domain]) in message
  assert "C0/patientN_C0_manual.nii.gz" in message
  assert "LGE/patientN_LGE.nii.gz" in message
  assert "--config.data.root" in message
  assert "\n" not in message


@pytest.mark.parametrize("broken", ["patient45_LGE.nii.gz", "patient10_LGE_manual.nii.gz"])
def test_a_broken_file_stops_the_build_and_once_repaired_it_is_built(root, tmp_path, broken):
  file = root / "LGE" / broken
  whole = file.read_bytes()
  file.write_bytes(whole[:200])
  with pytest.raises(InputError) as error:
    build(root, "lge", tmp_path / "data")
  assert str(error.value).startswith(f"{file}: not a readable NIfTI file")
  assert "\n" not in str(error.value)
  assert not list((tmp_path / "data").rglob("*.array_record*"))

  file.write_bytes(whole)
  assert len(build(root, "lge", tmp_path / "data").as_data_source("test")) == 3


def test_prepared_data_is_reused(root, tmp_path):
  before = build(root, "lge", tmp_path / "data").as_data_source("test")[1]
  for file in (root / "LGE").iterdir():
    file.write_bytes(b"")
  after = build(root, "lge", tmp_path / "data").as_data_source("test")[1]
  np.testing.assert_array_equal(after["image"], before["image"])


@pytest.mark.skipif("MSCMRSEG_DIR" not in os.environ, reason="MSCMRSEG_DIR names no MS-CMRSeg folder")
def test_the_released_folder_is_read_as_published(tmp_path):
  released, some = Path(os.environ["MSCMRSEG_DIR"]), tmp_path / "raw"
  assert len(Mscmrseg.files(released, "bssfp")) == 35 * 2
  assert len(Mscmrseg.files(released, "lge")) == 45 + 5
  (some / "LGE").mkdir(parents=True)
  for file in released.glob("LGE/patient[1-7]_*"):
    (some / "LGE" / file.name).symlink_to(file)
  builder = build(some, "lge", tmp_path / "data", Preprocess(size=(96, 96), zoom=0.75))
  assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
    "train": 7,
    "validation": 5,
    "test": 2,
  }
  assert not any(labelled(builder, "test"))
  for example in builder.as_data_source("validation"):
    assert example["truth"].shape[1:] == (192, 192)
    assert example["image"].shape == example["mask"].shape == (len(example["truth"]), 96, 96)
    np.testing.assert_array_equal(np.unique(example["truth"]), range(4))
    np.testing.assert_array_equal(np.unique(example["mask"]), range(4))
