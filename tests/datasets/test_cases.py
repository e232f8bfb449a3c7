"""Files that cannot be used: which are found, and which are left out."""

import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from tests.datasets.trees import VALUES, build, patients, write
from vamcei_jax.data.nifti import write_volume
from vamcei_jax.datasets import digests, left_out, refuse_shared
from vamcei_jax.datasets.cases import Case, CasesConfig, examine, split_by_role
from vamcei_jax.errors import InputError


@pytest.fixture
def root(tmp_path):
  """Seven patients with masks, flat, in MS-CMRSeg's values."""
  for number in range(7):
    write(tmp_path / "raw" / "bssfp" / "images" / f"p{number}.nii.gz", mask_of(tmp_path / "raw", number), number)
  return tmp_path / "raw"


def image_of(root, number):
  return root / "bssfp" / "images" / f"p{number}.nii.gz"


def mask_of(root, number):
  return root / "bssfp" / "labels" / f"p{number}.nii.gz"


def rewrite(file, change):
  image = nib.load(file)
  nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine).to_filename(file)


def damage(root):
  """One file broken, one 4-D, one empty mask, one duplicate; returns (file, part of the reason) of each."""
  image_of(root, 1).write_bytes(image_of(root, 1).read_bytes()[:-50])
  rewrite(image_of(root, 2), lambda voxels: np.stack([voxels, voxels], -1))
  rewrite(mask_of(root, 3), np.zeros_like)
  shutil.copy(image_of(root, 0), image_of(root, 4))
  return {
    str(image_of(root, 1)): "not a readable NIfTI file",
    str(image_of(root, 2)): "4-D image",
    str(mask_of(root, 3)): "the mask is empty",
    str(image_of(root, 4)): f"the same image as {image_of(root, 0)}",
  }


def test_files_that_cannot_be_used_are_left_out_on_request_and_recorded(root, tmp_path):
  expected = damage(root)
  builder = build("folder", root, "bssfp", "source", tmp_path / "data", leave_out=True)
  assert patients(builder) == {"train": ["p0", "p5", "p6"]}
  for _ in range(2):  # as prepared, and as found on disk
    found = left_out(builder)
    assert list(found) == list(expected)
    assert all(found[file].startswith(reason) for file, reason in expected.items())
    builder = build("folder", root, "bssfp", "source", tmp_path / "data")  # a build would be refused


def test_without_the_request_the_first_is_an_error_that_counts_the_others(root, tmp_path):
  file, reason = next(iter(damage(root).items()))
  with pytest.raises(InputError) as error:
    build("folder", root, "bssfp", "source", tmp_path / "data")
  assert str(error.value).startswith(f"{file}: {reason}")
  assert "3 more cannot be used. (python -m vamcei_jax.prepare" in str(error.value)


def test_a_bad_mask_takes_a_target_s_patient_out_of_evaluation_alone(root, tmp_path):
  rewrite(mask_of(root, 3), np.zeros_like)
  rewrite(mask_of(root, 5), lambda voxels: voxels + 7)
  found = patients(build("folder", root, "bssfp", "target", tmp_path / "data", leave_out=True, validation=4))
  assert found["train"] == [f"p{n}" for n in range(7)]
  assert found["validation"] == ["p0", "p1", "p2"]
  assert found["test"] == ["p4", "p6"]


def test_images_of_one_value_and_masks_elsewhere_are_problems(root):
  rewrite(image_of(root, 0), lambda voxels: np.full_like(voxels, 3.0))
  write_volume(mask_of(root, 1), np.ones((9, 32, 32), np.int16), np.diag([8.0, 4.5, 4.5, 1.0]))
  config = CasesConfig(name="t", label_values=VALUES)
  problems, digests, lost = examine(
    split_by_role([Case(f"p{n}", image_of(root, n), mask_of(root, n)) for n in range(3)], config), config
  )
  assert list(digests.values()) == [str(image_of(root, 2))]
  assert lost == []
  assert set(problems) == {str(image_of(root, 0)), str(mask_of(root, 1))}
  assert problems[str(image_of(root, 0))].startswith("all voxels have one value")


def test_a_domain_without_a_usable_patient_is_refused(root, tmp_path):
  for number in range(7):
    rewrite(mask_of(root, number), np.zeros_like)
  with pytest.raises(InputError, match="no patient of bssfp can be used as source. .*p0.nii.gz: the mask is empty"):
    build("folder", root, "bssfp", "source", tmp_path / "data", leave_out=True)
  assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_of_two_copies_the_usable_one_is_used(root, tmp_path):
  shutil.copy(image_of(root, 0), image_of(root, 4))
  mask_of(root, 0).unlink()
  shutil.copy(image_of(root, 5), image_of(root, 6))
  builder = build("folder", root, "bssfp", "source", tmp_path / "data", leave_out=True)
  # p4 has another patient's mask, of another depth; p6 is a copy of p5.
  assert patients(builder)["train"] == ["p1", "p2", "p3", "p5"]
  assert list(left_out(builder)) == [str(mask_of(root, 0)), str(mask_of(root, 4)), str(image_of(root, 6))]


def test_a_copy_of_a_target_image_is_found_whose_mask_is_bad(root, tmp_path):
  rewrite(mask_of(root, 0), np.zeros_like)
  shutil.copy(image_of(root, 0), image_of(root, 4))
  builder = build("folder", root, "bssfp", "target", tmp_path / "data", leave_out=True)
  assert patients(builder)["train"] == ["p0", "p1", "p2", "p3", "p5", "p6"]
  assert list(left_out(builder)) == [str(mask_of(root, 0)), str(image_of(root, 4))]


def test_two_images_of_one_name_are_named(root, tmp_path):
  image = nib.load(image_of(root, 2))
  nib.Nifti1Image(image.get_fdata() + 1, image.affine).to_filename(image_of(root, 2).with_suffix(""))
  with pytest.raises(InputError, match="p2.nii.gz: a second image of p2, beside .*p2.nii. Rename one of them."):
    build("folder", root, "bssfp", "source", tmp_path / "data")


def test_an_image_of_both_domains_is_refused(root, tmp_path):
  write(root / "lge" / "images" / "x.nii.gz", None, 20)
  source, target = (build("folder", root, d, r, tmp_path / "data") for d, r in (("bssfp", "source"), ("lge", "target")))
  refuse_shared(source, target)
  shutil.copy(image_of(root, 3), root / "lge" / "images" / "y.nii.gz")
  target = build("folder", root, "lge", "target", tmp_path / "data")
  with pytest.raises(InputError, match=f"{image_of(root, 3)}: the same image as .*y.nii.gz, in source and target"):
    refuse_shared(source, target)
  refuse_shared(source, build("folder", root, "bssfp", "target", tmp_path / "data"))  # an upper bound, by intention


@pytest.mark.parametrize("value", [-1, 1.5, "two"])
def test_numbers_of_patients_are_checked(root, tmp_path, value):
  with pytest.raises(InputError, match=f"config.data.options.validation={value}: must be a number, at least 0"):
    build("folder", root, "bssfp", "target", tmp_path / "data", validation=value)


@pytest.mark.parametrize("role", ["source", "target"])
def test_held_out_patients_are_in_no_training(role, tmp_path):
  for name in ("a_mask.nii", "c_mask.nii"):
    (tmp_path / name).touch()
  case = lambda name, mask=True: Case(name, f"{name}.nii", tmp_path / f"{name}_mask.nii" if mask else None)
  cases, held_out = [case("a"), case("b", role == "target")], [case("c"), case("d")]
  splits = split_by_role(cases, CasesConfig(name="t", role=role), held_out)
  names = {split: [case.name for case in found] for split, found in splits.items()}
  expected = {"train": ["a"]} if role == "source" else {"train": ["a", "b"], "validation": ["a"], "test": ["c"]}
  assert names == expected


# Data are told apart by their content.


def name_of(root, data_dir, domain="bssfp", role="source", **options):
  return build("folder", root, domain, role, data_dir, **options).info.full_name


def test_moved_copied_and_touched_data_are_the_same(root, tmp_path):
  before = name_of(root, tmp_path / "data")
  os.utime(image_of(root, 1))
  assert name_of(root, tmp_path / "data") == before
  moved = root.rename(tmp_path / "moved")
  assert name_of(moved, tmp_path / "data") == before
  assert name_of(moved, tmp_path / "other") == before
  link = tmp_path / "link"
  link.symlink_to(moved)
  assert name_of(link, tmp_path / "data") == before
  copy = shutil.copytree(moved, tmp_path / "copy", copy_function=shutil.copyfile)
  assert name_of(copy, tmp_path / "data") == before


@pytest.mark.parametrize("change", ["content", "name", "mask", "removed"])
def test_changed_data_are_others_even_with_the_size_and_time_restored(root, tmp_path, change):
  before = name_of(root, tmp_path / "data")
  file = mask_of(root, 2) if change == "mask" else image_of(root, 2)
  stat, content = file.stat(), bytearray(file.read_bytes())
  if change == "name":
    for each in (file, mask_of(root, 2)):
      each.rename(each.with_name("q2.nii.gz"))
  elif change == "removed":
    file.unlink()
    mask_of(root, 2).unlink()
  else:
    content[4] ^= 1  # a time in the header of gzip
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
  assert name_of(root, tmp_path / "data") != before


def test_an_unchanged_file_is_read_once(root, tmp_path, monkeypatch):
  before, read = name_of(root, tmp_path / "data"), []
  monkeypatch.setattr(digests, "_digest", lambda file: read.append(file.name) or "another")
  assert name_of(root, tmp_path / "data") == before
  assert read == []
  os.utime(image_of(root, 1))
  digests.file_digests([image_of(root, 1), mask_of(root, 1)], tmp_path / "data")
  assert read == ["p1.nii.gz"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff"])
def test_damaged_remembered_digests_are_made_again(root, tmp_path, content):
  before = name_of(root, tmp_path / "data")
  file = tmp_path / "data" / digests.DIGESTS_FILE
  file.write_bytes(content)
  assert name_of(root, tmp_path / "data") == before
  assert len(file.read_text().splitlines()) > 14  # 7 images, 7 masks


def test_digests_are_remembered_where_that_is_possible(root, tmp_path):
  (tmp_path / "file").touch()
  files = [image_of(root, 1), root / "missing.nii.gz", root]
  found = digests.file_digests(files, tmp_path / "file")
  assert len(found[files[0]]) == 64
  assert [found[file] for file in files[1:]] == [None, None]


def test_files_that_are_left_out_or_shared_are_named_where_they_are_now(root, tmp_path):
  damage(root)
  names = [name.replace(str(root), str(tmp_path / "moved")) for name in damage_names(root)]
  build("folder", root, "bssfp", "source", tmp_path / "data", leave_out=True)
  moved = root.rename(tmp_path / "moved")
  source = build("folder", moved, "bssfp", "source", tmp_path / "data")
  assert list(left_out(source)) == names
  (moved / "lge" / "images").mkdir(parents=True)
  shutil.copy(image_of(moved, 5), moved / "lge" / "images" / "y.nii.gz")
  target = build("folder", moved, "lge", "target", tmp_path / "data")
  with pytest.raises(InputError, match=f"{image_of(moved, 5)}: the same image as {moved}/lge/images/y.nii.gz"):
    refuse_shared(source, target)
  refuse_shared(source, build("folder", moved, "bssfp", "target", tmp_path / "data", leave_out=True))


def damage_names(root):
  return [str(file) for file in (image_of(root, 1), image_of(root, 2), mask_of(root, 3), image_of(root, 4))]
