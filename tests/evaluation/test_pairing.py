"""Which files belong together."""

import unicodedata

import pytest

from vamcei_jax.data.labels import are_label_values
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.pairing import list_files, list_labels, match, name_methods, pair_files


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
  matched = match(list_files(folder, "predictions"), ["a", "b", "c_0001", "d"])
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


def test_other_channels_and_other_visits_are_other_names(tmp_path):
  folder = touch(tmp_path / "images", "a_0000.nii", "a_0001.nii", "b_2021.nii")
  matched = match(list_files(folder, "images"), ["a", "b"])
  assert {name: path.name for name, path in matched.items()} == {"a": "a_0000.nii"}


def test_a_name_has_one_prediction(tmp_path):
  with pytest.raises(InputError, match="a_0000.nii: a second file of a, beside a.nii"):
    match(list_files(touch(tmp_path / "masks", "a.nii", "a_0000.nii"), "predictions"), ["a"])


def test_files_are_given_as_folders_single_files_or_mappings(tmp_path):
  masks = touch(tmp_path / "masks", "a.nii", "b.nii")
  labels = touch(tmp_path / "labels", "a_manual.nii", "c_manual.nii")
  pairs = pair_files(str(masks), labels)
  assert pairs.labels == {"a": labels / "a_manual.nii", "c": labels / "c_manual.nii"}
  assert pairs.predictions == {"masks": {"a": masks / "a.nii"}}
  assert pairs.images is None
  assert pairs.origins == {"predictions": str(masks), "labels": str(labels)}
  assert pairs.notes == (f"{masks}: 1 of 2 predictions have no label and are not scored",)
  assert pairs.missing == (f"{labels / 'c_manual.nii'}: no prediction of it in {masks}; predict it, or remove it",)

  given = {"a": str(masks / "b.nii"), "z": masks / "a.nii"}
  pairs = pair_files(given, {"a": labels / "c_manual.nii"}, against=masks, images=given)
  assert pairs.predictions == {"masks": {"a": masks / "a.nii"}, "predictions": {"a": masks / "b.nii"}}
  assert list(pairs.predictions) == ["masks", "predictions"]
  assert pairs.images == {"a": masks / "b.nii"}
  assert pairs.origins["labels"] == "labels"

  # A single file belongs to a single label, whatever their names are; of a folder, the name decides.
  pairs = pair_files(masks / "b.nii", labels / "a_manual.nii", against=str(masks / "a.nii"))
  assert pairs.labels == {"a": labels / "a_manual.nii"}
  assert pairs.predictions == {"a.nii": {"a": masks / "a.nii"}, "b.nii": {"a": masks / "b.nii"}}
  assert pair_files(masks, labels / "a_manual.nii").predictions == {"masks": {"a": masks / "a.nii"}}
  with pytest.raises(InputError, match="b.nii: no prediction bears the name of a label in .*, as a; found b.nii"):
    pair_files(masks / "b.nii", labels)


def test_folders_are_searched_and_a_name_begins_with_its_folder(tmp_path):
  masks, labels = tmp_path / "masks", tmp_path / "labels"
  for folder in (masks, labels):
    folder.mkdir()
    for patient in ("sub-01", "sub-02"):
      touch(folder / patient, "lge.nii.gz")
  touch(masks, "sub-01.HDR")
  touch(labels / "sub-03", "lge.nii.gz")
  pairs = pair_files(masks, labels)
  assert list(pairs.labels) == ["sub-01/lge", "sub-02/lge", "sub-03/lge"]
  assert pairs.predictions["masks"] == {name: masks / f"{name}.nii.gz" for name in ("sub-01/lge", "sub-02/lge")}
  assert pairs.missing == (
    f"{labels / 'sub-03/lge.nii.gz'}: no prediction of it in {masks}; predict it, or remove it",
    f"{masks / 'sub-01.HDR'}: not a .nii or .nii.gz file; convert it first",
  )


def test_a_prediction_and_its_label_may_encode_accents_differently(tmp_path):
  composed, decomposed = (unicodedata.normalize(form, "Zoé") for form in ("NFC", "NFD"))
  masks, labels = touch(tmp_path / "masks", f"{decomposed}.nii"), touch(tmp_path / "labels", f"{composed}_manual.nii")
  assert pair_files(masks, labels).predictions["masks"] == {composed: masks / f"{decomposed}.nii"}
  assert list(pair_files(masks, {decomposed: labels}).labels) == [composed]


def test_methods_have_different_names(tmp_path):
  first, second = touch(tmp_path / "first", "a.nii"), touch(tmp_path / "second", "a.nii")
  same = [touch(folder / "masks", "a.nii") for folder in (first, second)]
  methods = lambda *sources: list(pair_files(*sources[:1], first, against=sources[1]).predictions)
  assert methods(first, second) == ["second", "first"]
  assert methods(*same) == [str(same[1]), str(same[0])]
  files = {"a": first / "a.nii"}
  assert methods(files, {"a": second / "a.nii"}) == ["against", "predictions"]
  assert methods(files, touch(tmp_path / "predictions", "a.nii")) == [str(tmp_path / "predictions"), "predictions"]
  with pytest.raises(InputError, match="the folder of --predictions itself"):
    methods(files, dict(files))


def test_a_mapping_without_files_is_refused(tmp_path):
  labels = {"a": tmp_path / "a.nii"}
  for role, arguments in {"predictions": ({}, labels), "labels": (labels, {})}.items():
    with pytest.raises(InputError, match=f"^{role}: no file in it"):
      pair_files(*arguments)


def test_label_values_are_whole_numbers_one_or_some_a_class():
  assert all(map(are_label_values, [(0, 200, 500, 600), [0, [1, 4], 2, 3], (0, -1, 2, 3)]))
  bad = [{0, 200, 500, 600}, "abcd", ("0", "1", "2", "3"), None, 5]
  bad += [(0, 1, 2), (0, 1, 1, 2), (0, 1, 2, float("inf")), (0, 1, 2, None), (False, 1, 2, 3)]
  bad += [(0, 200, 500, (600, (7,))), (0, 1, 2, ()), (0, (1, 2), 2, 3)]
  assert not any(map(are_label_values, bad))


def test_a_method_has_a_name_that_can_be_drawn(tmp_path):
  """Also where Python reads the name of the folder as bytes."""
  names = {
    place: list(name_methods({"predictions": str(tmp_path / place)}, {"predictions": "--predictions"}))
    for place in ("a", "mä", "m\udcc3\udca4", "m\udce4")
  }
  assert names == {"a": ["a"], "mä": ["mä"], "m\udcc3\udca4": ["mä"], "m\udce4": ["m\ufffd"]}
