import nibabel as nib
import numpy as np
import pytest

from tests.datasets.trees import build, draw, labelled, patients, write, write_slices
from vamcei_jax.data.nifti import read_volume
from vamcei_jax.data.preprocess import Preprocess
from vamcei_jax.errors import InputError

HEART = ((0, 420, 550, 820, 850), 205, 500, 600)
VALUES = (420, 205, 500, 600)  # of the files: the background is not empty


@pytest.fixture
def volumes(tmp_path):
  """Three patients with masks and one without in each modality, as the challenge gave them out."""
  folder = tmp_path / "MM-WHS 2017 Dataset"
  for domain in ("ct", "mr"):
    for number in (1002, 1001, 1010):
      stem = folder / f"{domain}_train" / f"{domain}_train_{number}"
      write(f"{stem}_image.nii.gz", f"{stem}_label.nii.gz", number, domain, VALUES)
    write(folder / f"{domain}_test" / f"{domain}_test_2001_image.nii.gz", None, 2001, domain)
  return folder


@pytest.fixture
def slices(tmp_path):
  """Two patients with masks and one whose labels a program made, in each modality, as slices."""
  folder = tmp_path / "CT_MR_2D_Dataset_DA-master"
  for domain, numbers, other in (("CT", (33, 34), 2), ("MR", (1, 10), 21)):
    for number in numbers:
      write_slices(folder / f"{domain}_withGT", number, domain.lower(), values=VALUES)
    write_slices(folder / f"{domain}_woGT", other, domain.lower(), values=(0, 1, 2, 3))  # read, these would be refused
  return folder


def test_volumes_of_a_source_and_of_a_target(volumes, tmp_path):
  settings = dict(data_dir=tmp_path / "data", label_values=HEART)
  source, target = (build("mmwhs", volumes, d, r, validation=2, **settings) for d, r in SOURCE_AND_TARGET)
  assert patients(source) == {"train": ["ct_train_1001", "ct_train_1002", "ct_train_1010"]}
  assert patients(target) == {
    "train": ["mr_train_1001", "mr_train_1002", "mr_train_1010", "mr_test_2001"],
    "validation": ["mr_train_1001", "mr_train_1002"],
    "test": ["mr_train_1010"],
  }
  assert not any(labelled(target)["train"])
  np.testing.assert_array_equal(source.as_data_source("train")[1]["truth"], draw(1002, "ct").classes)


SOURCE_AND_TARGET = (("ct", "source"), ("mr", "target"))


def test_slices_are_stacked_in_the_order_of_their_numbers(slices, tmp_path):
  settings = dict(data_dir=tmp_path / "data", label_values=HEART)
  source, target = (build("mmwhs", slices, d, r, validation=1, **settings) for d, r in SOURCE_AND_TARGET)
  assert patients(source) == {"train": ["ct33", "ct34"]}
  assert patients(target) == {"train": ["mr1", "mr10", "mr21_woGT"], "validation": ["mr1"], "test": ["mr10"]}
  for number, example in zip((33, 34), source.as_data_source("train"), strict=True):
    np.testing.assert_array_equal(example["truth"], draw(number, "ct").classes)


def test_a_target_needs_no_masks(volumes, slices, tmp_path):
  for folder in (volumes / "mr_train", slices / "MR_withGT"):
    for file in [*folder.glob("*_label*"), *folder.glob("lab*")]:
      file.unlink()
  for root, count in ((volumes, 4), (slices, 3)):
    found = patients(build("mmwhs", root, "mr", "target", tmp_path / "data", label_values=HEART))
    assert {split: len(names) for split, names in found.items()} == {"train": count}


def test_volumes_are_sliced_along_one_axis_of_the_body(tmp_path):
  """CT with the thickest spacing head to foot and MR with it front to back, of one heart: one plane, one volume."""
  heart = np.random.default_rng(0).normal(size=(6, 8, 10))  # right to left, back to front, foot to head
  ct = nib.Nifti1Image(heart, np.diag([1.0, 1.0, 2.0, 1.0]))
  mr = nib.Nifti1Image(heart, np.diag([1.0, 2.0, 1.0, 1.0]))
  for domain, image in (("ct", ct), ("mr", mr)):
    stem = tmp_path / f"{domain}_train" / f"{domain}_train_1001"
    stem.parent.mkdir()
    image.to_filename(f"{stem}_image.nii.gz")
  settings = dict(data_dir=tmp_path / "data", preprocess=Preprocess(size=(16, 16)))
  build_one = lambda domain, plane: build("mmwhs", tmp_path, domain, "target", plane=plane, **settings)
  first = lambda domain, plane: build_one(domain, plane).as_data_source("train")[0]
  examples = {plane: [first(domain, plane) for domain in ("ct", "mr")] for plane in ("coronal", "short_axis")}
  np.testing.assert_array_equal(*(example["image"] for example in examples["coronal"]))
  assert examples["coronal"][0]["truth"].shape == (8, 10, 6)  # front to back; head to foot; left to right
  assert [example["truth"].shape[0] for example in examples["short_axis"]] == [10, 8]


def test_a_whole_and_a_sliced_patient_have_the_same_pixels(slices):
  files = [slices / "CT_withGT" / f"img33_slice{n + 6}.nii.gz" for n in range(len(draw(33, "ct").voxels))]
  np.testing.assert_array_equal(read_volume(files).voxels, draw(33, "ct").voxels)


def test_a_missing_slice_of_a_mask_and_other_folders_are_named(slices, tmp_path):
  missing = slices / "CT_withGT" / "lab34_slice8.nii.gz"
  missing.unlink()
  with pytest.raises(InputError, match=f"{missing}: no such mask"):
    build("mmwhs", slices, "ct", "source", tmp_path / "data", label_values=HEART)
  (tmp_path / "empty").mkdir()
  for folder, problem in (("none", "no such folder"), ("empty", "no mr_train/mr_train_N_image.nii.gz in it")):
    with pytest.raises(InputError, match=f"{problem}; expected ct_train/ct_train_1001_image.nii.gz .*CT_withGT"):
      build("mmwhs", tmp_path / folder, "mr", "target", tmp_path / "data", label_values=HEART)
