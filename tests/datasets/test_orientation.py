"""Files that have lost the directions of their rows and columns: named, kept as stored, or turned as is estimated."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
from ml_collections import ConfigDict
from nibabel.orientations import apply_orientation

from tests.configs import tiny_folder
from tests.datasets.trees import VALUES, build, draw
from vamcei_jax.config.schema import DataConfig
from vamcei_jax.data.geometry import TURNS
from vamcei_jax.data.nifti import read_classes, read_mask, read_volume, write_volume
from vamcei_jax.data.preprocess import Preprocess, preprocess_image
from vamcei_jax.datasets import lost_directions
from vamcei_jax.errors import InputError
from vamcei_jax.pipeline.domains import locate_hearts, lost_note, prepare_datasets, prepare_domain
from vamcei_jax.pipeline.preparation import prepare_run
from vamcei_jax.pipeline.resolve import resolve

SHAPE = (5, 20, 32)  # slices that are not square show which of their axes is which
FIELD = Preprocess(size=(16, 16), spacing=4.5)
WIDE = Preprocess(size=(16, 24), spacing=4.5)  # of the locator


def cut(number):
  """Image and label values (D, H, W) of a patient, and its affine."""
  patient = draw(number)
  window = tuple(map(slice, SHAPE))
  return patient.voxels[window], np.array(VALUES)[patient.classes[window]], patient.affine


@pytest.fixture
def root(tmp_path):
  """Two targets: the slices of `turned` lie in another way, which its header does not tell; `plain` has directions."""
  for name, number in (("plain", 0), ("turned", 1)):
    for folder, voxels in zip(("images", "labels"), cut(number)[:2], strict=True):
      path = tmp_path / "raw" / "lge" / folder / f"{name}.nii.gz"
      path.parent.mkdir(parents=True, exist_ok=True)
      if name == "plain":
        write_volume(path, voxels, cut(number)[2])
      else:
        write_volume(path, apply_orientation(voxels, TURNS[6]), np.diag([-4.5, 4.5, 8.0, 1.0])[:, [2, 1, 0, 3]])
  return tmp_path / "raw"


def examples(root, data_dir, preprocess=FIELD, **arguments):
  """Patient -> example of the target, and its builder."""
  builder = build("folder", root, "lge", "target", data_dir, preprocess=preprocess, validation=2, **arguments)
  return {example["patient"].decode(): example for example in builder.as_data_source("validation")}, builder


def test_rows_and_columns_stay_as_stored_where_directions_are_lost(root):
  image, mask = (root / "lge" / folder / "turned.nii.gz" for folder in ("images", "labels"))
  volume = read_volume(image, keep_lost=True)
  voxels, labels, _ = cut(1)
  np.testing.assert_array_equal(volume.voxels, apply_orientation(voxels, TURNS[6]))
  classes = read_classes(mask, volume, VALUES)
  np.testing.assert_array_equal(np.array(VALUES)[classes], apply_orientation(labels, TURNS[6]))
  assert read_volume(image).voxels.shape == (5, 20, 32)  # by the header, rows are the second axis of the file
  plain = root / "lge" / "images" / "plain.nii.gz"
  np.testing.assert_array_equal(read_volume(plain, keep_lost=True).voxels, read_volume(plain).voxels)


def test_a_domain_with_lost_directions_is_named(root, tmp_path):
  _, builder = examples(root, tmp_path / "data")
  assert lost_directions(builder) == ["turned"]
  notes = {way: lost_note(DataConfig(orientation=way), "target", builder) for way in ("header", "file", "estimate")}
  for note in notes.values():
    assert note.startswith("target: headers without the directions of rows and columns: 1, among them that of turned; ")
    assert note.endswith("Other ways: config.data.orientation (docs/headers.md)")
  assert "the stage locate finds them" in notes["estimate"]
  assert "read as stored" in notes["file"]


def test_estimated_turns_put_the_slices_and_the_mask_right(root, tmp_path):
  by_header, _ = examples(root, tmp_path / "data")
  shown = read_volume(root / "lge" / "images" / "turned.nii.gz").voxels
  voxels, labels, _ = cut(1)
  right = next(n for n, turn in enumerate(TURNS) if np.array_equal(apply_orientation(shown, turn), voxels))
  assert right
  turned, _ = examples(root, tmp_path / "data", turns={"turned": right})
  assert turned["turned"]["truth"].shape == SHAPE
  np.testing.assert_array_equal(np.array(VALUES)[turned["turned"]["truth"]], labels)
  np.testing.assert_array_equal(turned["plain"]["image"], by_header["plain"]["image"])
  expected = apply_orientation(by_header["turned"]["image"], TURNS[right])
  np.testing.assert_allclose(turned["turned"]["image"], expected, atol=1e-5)


@pytest.mark.parametrize("right", range(8))
def test_the_locator_writes_the_turn_that_it_is_surest_of_and_the_centre_in_it(root, tmp_path, right):
  """A network that knows one patient's slices when they lie right, and else is unsure; its field is not square."""
  prepared, builder = examples(root, tmp_path / "data", preprocess=WIDE)
  known = apply_orientation(prepared["turned"]["image"], TURNS[right])[0]

  def predict(networks, images):
    sure = images.shape[1:3] == known.shape and np.abs(images[0, ..., 0] - known).max() < 1e-6
    classes = np.zeros(images.shape[:3], int)
    classes[:, 4:8, 8:12] = 2
    return (0.7 if sure else 0.1) * np.eye(4)[classes] + (0.3 if sure else 0.9) / 4

  data = DataConfig(orientation="estimate", size=WIDE.size, spacing=WIDE.spacing)
  (tmp_path / "locate").mkdir()
  locate_hearts(data, predict, {}, builder, tmp_path / "locate")
  assert json.loads((tmp_path / "locate" / "turns.json").read_text()) == {"turned": right}
  centres = json.loads((tmp_path / "locate" / "centres.json").read_text())
  turns, located = {"turned": right}, {name: tuple(centre) for name, centre in centres.items()}
  found, _ = examples(root, tmp_path / "data", turns=turns, centres=located)
  # The middle of the field is now where the heart was.
  seen = {"plain": prepared["plain"]["image"], "turned": apply_orientation(prepared["turned"]["image"], TURNS[right])}
  for name, image in seen.items():
    np.testing.assert_allclose(found[name]["image"][:, 6:10, 6:10], image[:, 4:8, 8:12], atol=1e-5)


def test_without_an_estimate_no_turn_is_looked_for(root, tmp_path):
  _, builder = examples(root, tmp_path / "data")
  (tmp_path / "locate").mkdir()
  predict = lambda networks, images: np.full((*images.shape[:3], 4), 0.25)
  locate_hearts(DataConfig(size=FIELD.size, spacing=FIELD.spacing), predict, {}, builder, tmp_path / "locate")
  assert [path.name for path in (tmp_path / "locate").iterdir()] == ["centres.json"]


def test_the_configuration_decides_how_the_data_of_a_run_are_read(root, tmp_path):
  image = read_volume(root / "lge" / "images" / "turned.nii.gz").voxels
  stored = read_volume(root / "lge" / "images" / "turned.nii.gz", keep_lost=True).voxels
  assert not np.array_equal(stored, image)
  places = {"root": str(root), "prepared_dir": str(tmp_path / "data"), "options": {"validation": 2}}
  data = DataConfig(name="folder", source="lge", label_values=VALUES, size=FIELD.size, spacing=FIELD.spacing, **places)

  def image_of(way, **arguments):
    builder = prepare_domain(dataclasses.replace(data, orientation=way), "target", **arguments)
    return next(e["image"] for e in builder.as_data_source("validation") if e["patient"] == b"turned")

  shown = lambda voxels: preprocess_image(voxels, (8.0, 4.5, 4.5), FIELD)
  for way, expected in (("header", image), ("file", stored), ("estimate", image)):
    np.testing.assert_allclose(image_of(way), shown(expected), atol=1e-5)
  np.testing.assert_allclose(
    image_of("estimate", turns={"turned": 3}), shown(apply_orientation(image, TURNS[3])), atol=1e-5
  )


def test_the_data_after_the_locator_are_turned_as_it_has_written(root, tmp_path, capsys):
  for folder, voxels in zip(("images", "labels"), cut(2)[:2], strict=True):
    path = root / "bssfp" / folder / "a.nii.gz"
    path.parent.mkdir(parents=True)
    write_volume(path, voxels, cut(2)[2])
  config = tiny_folder.get_config()
  config.data.update(root=str(root), prepared_dir=str(tmp_path / "data"), label_values=VALUES, orientation="estimate")
  config.data.options = ConfigDict({"validation": 2})
  config.stages = ("locate", "no_adaptation", "vamcei")
  assert prepare_run(config)
  (line,) = [line for line in capsys.readouterr().out.splitlines() if "directions" in line]
  assert line.startswith("warning: target: headers without the directions")
  (tmp_path / "run" / "locate").mkdir(parents=True)
  for file, content in (("centres", {"plain": [9.5, 15.5], "turned": [15.5, 9.5]}), ("turns", {"turned": 6})):
    (tmp_path / "run" / "locate" / f"{file}.json").write_text(json.dumps(content))
  by_header = read_mask(root / "lge" / "labels" / "turned.nii.gz", VALUES).voxels
  data = resolve(config).stages["vamcei"].data
  for way, expected in (("estimate", apply_orientation(by_header, TURNS[6])), ("header", by_header)):
    target = prepare_datasets(dataclasses.replace(data, orientation=way), tmp_path / "run")["target"]
    truths = {example["patient"]: example["truth"] for example in target.as_data_source("validation")}
    np.testing.assert_array_equal(truths[b"turned"], expected)
    assert truths[b"plain"].shape == SHAPE


def test_planes_of_the_body_have_directions(root):
  volume = read_volume(root / "lge" / "images" / "turned.nii.gz", "axial", keep_lost=True)
  assert (volume.lost, volume.stored) == (False, False)


def test_a_mask_that_lost_other_directions_is_read_as_stored(root):
  image, mask = (root / "lge" / folder / "turned.nii.gz" for folder in ("images", "labels"))
  labels = np.asarray(nib.load(mask).dataobj)
  nib.Nifti1Image(labels, np.diag([4.5, -4.5, 8.0, 1.0])).to_filename(mask)
  with pytest.raises(InputError, match="from its place by its affine"):
    read_classes(mask, read_volume(image), VALUES)
  classes = read_classes(mask, read_volume(image, keep_lost=True), VALUES)
  np.testing.assert_array_equal(np.array(VALUES)[classes], labels.transpose(2, 1, 0))
  nib.Nifti1Image(labels, np.diag([3.0, -3.0, 8.0, 1.0])).to_filename(mask)
  with pytest.raises(InputError, match="from its place by its affine"):
    read_classes(mask, read_volume(image, keep_lost=True), VALUES)
