import gzip
import json
import shutil
import unicodedata

import numpy as np
import pytest

from tests.datasets.trees import GRID, build, draw, labelled, patients, write
from vamcei_jax.data.loader import load_patients
from vamcei_jax.data.nifti import write_volume
from vamcei_jax.datasets import left_out
from vamcei_jax.errors import InputError
from vamcei_jax.phantom.scanner import write_nnunet

LABELS = (0, 1, 2, 3)


@pytest.fixture
def root(tmp_path):
  folder = tmp_path / "raw"
  write_nnunet(folder, sources=3, targets=4, masks=3, grid=GRID)
  return folder


def build_folder(root, domain, role, tmp_path, **options):
  return build("folder", root, domain, role, tmp_path / "data", **{"label_values": LABELS, **options})


def test_nnunet_folders_are_a_source_and_a_target(root, tmp_path):
  source = build_folder(root, "bssfp", "source", tmp_path)
  assert patients(source) == {"train": [f"bssfp_00{n}" for n in (1, 2, 3)]}
  for number, example in enumerate(source.as_data_source("train")):
    np.testing.assert_array_equal(example["truth"], draw(number, "bssfp").classes)
  target = build_folder(root, "lge", "target", tmp_path, validation=2)
  everyone = [f"lge_00{n}" for n in (1, 2, 3, 4)]
  assert patients(target) == {"train": everyone, "validation": everyone[:2], "test": everyone[2:3]}
  assert not any(labelled(target)["train"])


def test_a_target_needs_no_mask_at_all(root, tmp_path):
  shutil.rmtree(root / "lge" / "labelsTr")
  target = build_folder(root, "lge", "target", tmp_path)
  assert patients(target) == {"train": [f"lge_00{n}" for n in (1, 2, 3, 4)]}
  assert all(patient.truth is None for patient in load_patients(target, "train", labelled=False))


def test_masks_of_other_names_are_not_passed_over(root, tmp_path):
  for file in (root / "lge" / "labelsTr").iterdir():
    file.rename(file.with_name(f"mask_{file.name}"))
  with pytest.raises(InputError, match="labelsTr: no mask bears the name of an image, as lge_001; found mask_lge_001"):
    build_folder(root, "lge", "target", tmp_path)


def test_a_source_without_a_mask_is_named(root, tmp_path):
  mask = root / "bssfp" / "labelsTr" / "bssfp_002.nii.gz"
  mask.unlink()
  with pytest.raises(InputError, match=f"{mask}: no such mask, and bssfp_002_0000.nii.gz needs one"):
    build_folder(root, "bssfp", "source", tmp_path)


def test_what_nnunet_keeps_apart_is_the_test_and_not_trained_on(root, tmp_path):
  place = root / "lge"
  write(place / "imagesTs" / "lge_005_0000.nii.gz", place / "labelsTs" / "lge_005.nii.gz", 50, values=LABELS)
  write(place / "imagesTs" / "lge_006_0000.nii.gz", None, 60)
  found = patients(build_folder(root, "lge", "target", tmp_path, validation=2))
  assert found["test"] == ["lge_005"]
  assert found["train"] == [f"lge_00{n}" for n in (1, 2, 3, 4)]


def test_another_channel_is_another_image_with_the_same_mask(root, tmp_path):
  place = root / "bssfp" / "imagesTr"
  for number in (1, 2, 3):
    patient = draw(number - 1, "bssfp")
    write_volume(place / f"bssfp_00{number}_0001.nii.gz", -patient.voxels, patient.affine)
  (root / "bssfp" / "dataset.json").unlink()
  first, second = (build_folder(root, "bssfp", "source", tmp_path, channel=c).as_data_source("train") for c in (0, 1))
  assert len(first) == len(second) == 3
  np.testing.assert_allclose(second[0]["range"], -first[0]["range"][::-1])
  np.testing.assert_array_equal(second[0]["truth"], first[0]["truth"])


@pytest.mark.parametrize("names", [("images", "labels"), ("cine", "cine masks")])
def test_flat_folders(tmp_path, names):
  root = tmp_path / "raw" / "my cine"
  for number, ending in ((1, ".nii.gz"), (2, ".nii")):
    write(root / names[0] / f"patient_{number:04d}{ending}", root / names[1] / f"patient_{number:04d}.nii.gz", number)
  options = dict(zip(("images", "labels"), names, strict=True))
  found = build("folder", root.parent, "my cine", "source", tmp_path / "data", **options)
  assert patients(found) == {"train": ["patient_0001", "patient_0002"]}
  assert "my_cine-" in found.info.full_name


def rewrite(file, **fields):
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))


DESCRIPTIONS = {
  "v2": ({}, None),
  "regions": ({"labels": {"background": 0, "heart": [1, 2, 3], "LV": 2}}, None),
  "v1": ({"labels": {"0": "background", "1": "Myo", "2": "LV", "3": "RV"}, "modality": {"0": "MR"}}, None),
  "lists": ({"labels": ["background", "Myo", "LV", "RV"], "channel_names": ["MR"]}, None),
  "too short a list": ({"labels": ["background", "Myo", "LV"]}, "without 3. Correct config.data.label_values"),
  "values": ({"labels": {"background": 0, "Myo": 1, "LV": 2}}, "without 3. Correct config.data.label_values"),
  "channel": ({"channel_names": {"1": "T2"}}, "no channel 0, but {'1': 'T2'}"),
  "nonsense": ({"labels": {"1": "Myo", "x": "LV"}}, "not nnU-Net's dataset.json"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_dataset_json_must_fit_the_configuration(root, tmp_path, name):
  fields, problem = DESCRIPTIONS[name]
  file = root / "bssfp" / "dataset.json"
  rewrite(file, **fields)
  if problem is None:
    assert len(patients(build_folder(root, "bssfp", "source", tmp_path))["train"]) == 3
    return
  with pytest.raises(InputError) as error:
    build_folder(root, "bssfp", "source", tmp_path)
  assert str(error.value).startswith(f"{file}: ")
  assert problem in str(error.value)


def test_of_several_values_of_a_class_dataset_json_needs_one(root, tmp_path):
  folded = (0, (200, 1), (500, 2), (600, 3))
  assert len(patients(build_folder(root, "bssfp", "source", tmp_path, label_values=folded))["train"]) == 3
  with pytest.raises(InputError, match="without 500 or 7. Correct config.data.label_values"):
    build_folder(root, "bssfp", "source", tmp_path, label_values=(0, (200, 1), (500, 7), (600, 3)))


def test_folders_without_volumes_are_refused_with_the_tree(tmp_path):
  (tmp_path / "there").mkdir()
  for domain, problem in (("none", "no such folder"), ("there", "no volumes in it")):
    with pytest.raises(InputError, match=f"{domain}: {problem}; expected DOMAIN/imagesTr/NAME_0000.nii.gz"):
      build_folder(tmp_path, domain, "target", tmp_path)
  with pytest.raises(InputError, match="config.data.options.masks: folder has no such option"):
    build_folder(tmp_path, "there", "target", tmp_path, masks="x")


def test_files_that_belong_to_no_patient_are_named(root, tmp_path, capsys):
  place = root / "bssfp"
  files = {
    "imagesTr/bssfp_004.nii.gz": "its name ends in no channel. Rename it to bssfp_004_0000.nii.gz.",
    "imagesTr/bssfp_005_0000.NII.GZ": "its suffix is .NII.GZ. Rename it to bssfp_005_0000.nii.gz.",
    "imagesTr/bssfp_006_0000.hdr": "not a .nii or .nii.gz file; convert it first",
    "labelsTr/bssfp_007.nii.gz": f"no image bssfp_007_0000 in {place / 'imagesTr'}. Add it, or remove the mask.",
    "labelsTr/bssfp_008.mha": "not a .nii or .nii.gz file; convert it first",
    "labelsTr/bssfp_003.nii.gz": "a second mask of bssfp_003, beside bssfp_003.nii. Remove one of them.",
  }
  whole = (place / "labelsTr" / "bssfp_003.nii.gz").read_bytes()
  (place / "labelsTr" / "bssfp_003.nii").write_bytes(gzip.decompress(whole))
  for name in files:
    (place / name).write_bytes(whole)
  write_volume(place / "imagesTr" / "bssfp_001_0001.nii.gz", draw(9, "bssfp").voxels, draw(9).affine)  # a channel
  (place / "imagesTr" / "notes.txt").touch()
  with pytest.raises(InputError, match=r"bssfp_004.nii.gz: its name ends in no channel.* 5 more cannot be used"):
    build_folder(root, "bssfp", "source", tmp_path)
  builder = build_folder(root, "bssfp", "source", tmp_path, leave_out=True)
  assert left_out(builder) == {str(place / name): reason for name, reason in files.items()}
  assert patients(builder) == {"train": ["bssfp_001", "bssfp_002", "bssfp_003"]}
  # A repaired name is another data set.
  (place / "imagesTr" / "bssfp_006_0000.hdr").unlink()
  again = build_folder(root, "bssfp", "source", tmp_path, leave_out=True)
  assert len(left_out(again)) == len(files) - 1


def test_names_with_accents_match_however_they_are_encoded(root, tmp_path):
  name, place = "Jérôme", root / "bssfp"
  image, mask = (unicodedata.normalize(form, name) for form in ("NFD", "NFC"))
  assert image != mask
  write(place / "imagesTr" / f"{image}_0000.nii.gz", place / "labelsTr" / f"{mask}.nii.gz", 9, "bssfp", LABELS)
  builder = build_folder(root, "bssfp", "source", tmp_path)
  assert patients(builder)["train"] == [mask, "bssfp_001", "bssfp_002", "bssfp_003"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_dataset_json_may_begin_with_a_byte_order_mark(root, tmp_path, encoding):
  file = root / "bssfp" / "dataset.json"
  file.write_text(file.read_text(), encoding=encoding)
  assert len(patients(build_folder(root, "bssfp", "source", tmp_path))["train"]) == 3
