"""Which files belong together."""

import numpy as np
import pytest

from tests.datasets.trees import draw
from vamcei_jax.data.labels import are_label_values
from vamcei_jax.data.nifti import read_mask, write_volume
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.matching import list_labels, match, read_image
from vamcei_jax.phantom.scanner import write_patient


def touch(folder, *names):
  folder.mkdir(exist_ok=True)
  for name in names:
    (folder / name).touch()
  return folder


def test_labels_are_manual_masks_where_there_are_some(tmp_path):
  both = touch(tmp_path / "both", "a.nii.gz", "a_manual.nii.gz", "b.nii.gz", "notes.txt", ".hidden.nii")
  assert {name: path.name for name, path in list_labels(both).items()} == {"a": "a_manual.nii.gz"}
  plain = touch(tmp_path / "plain", "a.nii", "b.nii.gz", "b_entropy.nii.gz", "b_probabilities.nii.gz")
  assert {name: path.name for name, path in list_labels(plain).items()} == {"a": "a.nii", "b": "b.nii.gz"}


def test_a_channel_in_a_name_makes_no_difference(tmp_path):
  folder = touch(tmp_path / "masks", "a_0000.nii", "b.nii", "c_0001.nii", "d_12.nii")
  matched = match(sorted(folder.iterdir()), ["a", "b", "c_0001", "d"])
  expected = {"a": "a_0000.nii", "b": "b.nii", "c_0001": "c_0001.nii"}
  assert {name: path.name for name, path in matched.items()} == expected


@pytest.mark.parametrize(
  ("names", "expected"),
  [
    (("a.nii", "a.nii.gz"), "a.nii.gz: a second file of this name, beside a.nii"),
    (("a\nb.nii",), "a file is called 'a\\\\nb.nii'; rename it"),
    ((b"a\xff.nii".decode(errors="surrogateescape"),), "rename it"),
    ((), "no .nii or .nii.gz file in it"),
  ],
)
def test_names_that_mislead_are_refused(tmp_path, names, expected):
  with pytest.raises(InputError, match=expected):
    list_labels(touch(tmp_path / "labels", *names))


def test_a_name_has_one_prediction(tmp_path):
  with pytest.raises(InputError, match="a_0000.nii: a second file of a, beside a.nii"):
    match(sorted(touch(tmp_path / "masks", "a.nii", "a_0000.nii").iterdir()), ["a"])


def test_an_image_must_lie_where_its_mask_does(tmp_path):
  """One that is stored mirrored, with the same header, would be shown mirrored under the right outlines."""
  patient = draw(1)
  write_patient(patient, tmp_path / "image.nii", tmp_path / "mask.nii")
  truth = read_mask(tmp_path / "mask.nii", (0, 200, 500, 600))
  image = read_image(tmp_path / "image.nii", truth)
  assert (image.min(), image.max(), image.shape) == (0.0, 1.0, truth.voxels.shape)
  assert np.corrcoef(image.ravel(), patient.voxels.ravel())[0, 1] > 0.95
  moved = patient.affine + np.pad(np.full((3, 1), 30.0), ((0, 1), (3, 0)))
  write_volume(tmp_path / "moved.nii", patient.voxels, moved)
  with pytest.raises(InputError, match="moved.nii: lies 52 mm from its place"):
    read_image(tmp_path / "moved.nii", truth)
  write_volume(tmp_path / "small.nii", patient.voxels[1:], patient.affine)
  with pytest.raises(InputError, match="Resample it to the image's grid"):
    read_image(tmp_path / "small.nii", truth)


def test_label_values_are_whole_numbers_one_or_some_a_class():
  assert all(map(are_label_values, [(0, 200, 500, 600), [0, [1, 4], 2, 3], (0, -1, 2, 3)]))
  bad = [{0, 200, 500, 600}, "abcd", ("0", "1", "2", "3"), None, 5]
  bad += [(0, 1, 2), (0, 1, 1, 2), (0, 1, 2, float("inf")), (0, 1, 2, None), (False, 1, 2, 3)]
  bad += [(0, 200, 500, (600, (7,))), (0, 1, 2, ()), (0, (1, 2), 2, 3)]
  assert not any(map(are_label_values, bad))
