"""The Python API of prediction: what it accepts, what it returns, what it saves and what it refuses."""

import dataclasses
import io
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

import vamcei_jax
from tests.commands import ROOT
from tests.configs import tiny
from vamcei_jax.config.schema import InferenceConfig
from vamcei_jax.data.geometry import orientation_of
from vamcei_jax.data.nifti import read_volume, write_volume
from vamcei_jax.errors import InputError
from vamcei_jax.inference.quality import assess, expected_dice, open_wall, slice_step
from vamcei_jax.inference.segmenter import Segmenter
from vamcei_jax.phantom.anatomy import Grid
from vamcei_jax.phantom.scanner import draw_patient
from vamcei_jax.pipeline.resolve import resolve

VALUES = np.array([0, 200, 500, 600])
SPACING = (8.0, 1.5, 1.5)
BACKGROUND, MYO, LV, RV = range(4)


def make_segmenter(segment, **options):
  """A Segmenter with a function in place of its network: prepared volume (D, 32, 32) -> probabilities (D, 32, 32, 4).

  The prepared volume has one pixel for three of the volume.
  """
  config = resolve(tiny.get_config()).stages["vamcei"]
  return Segmenter(config, InferenceConfig(**options), segment, segment, lambda volume: None)


def by_intensity_and_place(image, key=None):
  """Probabilities that depend on the intensity and on all three coordinates: no flip or exchange of axes keeps them."""
  depth, row, column = np.meshgrid(*(np.linspace(0.0, 1.0, n, dtype=np.float32) for n in image.shape), indexing="ij")
  logits = (np.ones_like(image), 4.0 * image * depth + row, 3.0 * image * row + column, 2.0 * image * column + depth)
  exponentials = np.exp(2.0 * np.stack(logits, axis=-1))
  return exponentials / exponentials.sum(-1, keepdims=True)


def always(classes):
  """A network that is certain of these classes (D, 32, 32)."""
  return lambda image, key=None: np.eye(4, dtype=np.float32)[classes]


def heart():
  """Classes (3, 32, 32): a myocardium with a cavity, and a right ventricle beside it, far from all borders."""
  classes = np.zeros((3, 32, 32), int)
  classes[:, 11:21, 11:21] = MYO
  classes[:, 13:19, 13:19] = LV
  classes[:, 12:19, 22:26] = RV
  return classes


def noise(shape, seed=0):
  return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def findings(prediction):
  """Names of the findings but for that on the orientation, which every array has."""
  names = [finding.name for finding in prediction.quality.findings]
  return [name for name in names if name != "orientation assumed"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  """An oblique volume with its slices last, as scanners write them."""
  patient = draw_patient(3, 0, "lge", Grid(96, 1.5, 8.0, 1, 1))
  path = tmp_path_factory.mktemp("volumes") / "volume.nii.gz"
  write_volume(path, patient.voxels, patient.affine)
  return path


@pytest.fixture
def segmenter():
  return make_segmenter(by_intensity_and_place)


def by_intensity(image, key=None):
  """Probabilities that depend on the intensity alone: every orientation of the slices is as good."""
  exponentials = np.exp(4.0 * np.stack([image - 0.1 * k * np.ones_like(image) * k for k in range(4)], axis=-1))
  exponentials[..., 1:] *= image[..., None] ** np.arange(1, 4)
  return exponentials / exponentials.sum(-1, keepdims=True)


def test_a_file_and_an_array_have_the_same_prediction(segmenter, path):
  image, volume = nib.load(path), read_volume(path)
  of_path, of_text = segmenter(path), segmenter(str(path))
  np.testing.assert_array_equal(of_path.mask, of_text.mask)
  assert set(np.unique(of_path.mask)) == set(VALUES)
  segmenter = make_segmenter(by_intensity)
  of_path, of_array = segmenter(path), segmenter(volume.voxels, volume.spacing)
  assert of_array.mask.shape == volume.voxels.shape != image.shape
  orientation = orientation_of("volume", image.affine, image.shape, "short_axis")
  np.testing.assert_array_equal(of_array.mask, apply_orientation(of_path.mask, orientation))
  np.testing.assert_array_equal(of_array.probabilities, apply_orientation(of_path.probabilities, orientation))
  assert of_array.volumes_ml == pytest.approx(of_path.volumes_ml, rel=1e-6)


def test_slices_that_are_nearer_than_the_smoothing_are_smoothed_over_one_slice_alone():
  """Headers with too small a distance would mix the whole stack."""
  volume = noise((6, 96, 96))
  predict = lambda mm: make_segmenter(by_intensity, smooth=5.0)(volume, (mm, 1.5, 1.5)).probabilities
  np.testing.assert_array_equal(predict(0.5), predict(5.0))
  assert np.abs(predict(5.0) - predict(8.0)).max() > 0.01


@pytest.mark.parametrize("codes", [None, "LPS", "SRA", "AIL"])
def test_an_image_in_memory_has_the_mask_of_its_file_in_its_own_axes(segmenter, path, codes, tmp_path):
  stored = nib.load(path)
  image = nib.Nifti1Image(np.asarray(stored.dataobj), stored.affine)
  mask = nib.Nifti1Image(segmenter(path).mask, stored.affine)
  if codes:
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    image, mask = image.as_reoriented(turn), mask.as_reoriented(turn)
  prediction = segmenter(image)
  np.testing.assert_array_equal(prediction.mask, np.asarray(mask.dataobj))
  assert prediction.probabilities.shape == (*image.shape, 4)
  image.to_filename(tmp_path / "turned.nii")
  np.testing.assert_array_equal(segmenter(tmp_path / "turned.nii").mask, prediction.mask)


def test_the_mask_is_the_most_probable_class_in_label_values(segmenter, path):
  prediction = segmenter(path)
  assert prediction.mask.dtype == np.int16
  assert prediction.probabilities.dtype == np.float32
  np.testing.assert_allclose(prediction.probabilities.sum(-1), 1.0, atol=1e-5)
  np.testing.assert_array_equal(prediction.mask, VALUES[prediction.probabilities.argmax(-1)])
  assert prediction.entropy is None
  assert prediction.uncertainty == {}


def test_a_class_of_several_label_values_is_written_with_the_first(segmenter, path):
  data = dataclasses.replace(segmenter.config.data, label_values=(0, (7, 8), 2, (40000, 1)))
  other = dataclasses.replace(segmenter, config=dataclasses.replace(segmenter.config, data=data))
  expected = np.array([0, 7, 2, 40000])[segmenter(path).probabilities.argmax(-1)]
  np.testing.assert_array_equal(other(path).mask, expected)


def test_postprocessing_and_smoothing_change_the_prediction_only_where_they_are_on():
  classes = heart()
  classes[1, 2, 2] = LV
  predict = lambda **options: make_segmenter(always(classes), **options)(noise((3, 96, 96)), SPACING)
  plain, cleaned, smoothed = predict(), predict(postprocess=True), predict(smooth=9.0)
  assert plain.mask[1, 7, 7] == VALUES[LV]
  expected = plain.mask.copy()
  expected[1, 6:9, 6:9] = 0
  np.testing.assert_array_equal(cleaned.mask, expected)
  np.testing.assert_array_equal(cleaned.probabilities, plain.probabilities)
  assert smoothed.probabilities[0, 7, 7, LV] > 0.1


def test_volumes_are_voxel_counts_times_the_voxel_volume(segmenter, path):
  prediction = segmenter(path)
  voxel_ml = np.prod(nib.affines.voxel_sizes(nib.load(path).affine)) / 1000.0
  for value, name in zip(VALUES[1:], ("Myo", "LV", "RV"), strict=True):
    assert prediction.volumes_ml[name] == pytest.approx((prediction.mask == value).sum() * voxel_ml)
  assert prediction.myocardial_mass_g == pytest.approx(1.05 * (prediction.mask == 200).sum() * voxel_ml)
  assert prediction.myocardial_mass_g > 0


def test_volumes_of_slices_that_are_shifted_against_each_other_are_those_of_straight_ones(path):
  image = nib.load(path)
  leaning = image.affine.copy()
  leaning[:3, 2] += 2.0 * leaning[:3, 0]
  segmenter = make_segmenter(by_intensity_and_place)
  straight, shifted = segmenter(image), segmenter(nib.Nifti1Image(image.get_fdata(), leaning))
  np.testing.assert_array_equal(shifted.mask, straight.mask)
  assert shifted.volumes_ml == pytest.approx(straight.volumes_ml, rel=1e-5)
  assert shifted.scan.volume.spacing == pytest.approx(straight.scan.volume.spacing, rel=1e-5)


def test_a_saved_mask_has_the_header_of_its_volume(segmenter, path, tmp_path):
  stored = nib.load(path)
  image = nib.Nifti1Image(np.asarray(stored.dataobj), stored.affine)
  image.set_data_dtype(np.int16)  # stored through a scale factor
  image.header["cal_max"], image.header["descrip"] = 0.5, b"an LGE volume"
  image.set_sform(stored.affine, 1)
  image.set_qform(stored.affine, 3)
  image.to_filename(tmp_path / "volume.nii.gz")
  assert nib.load(tmp_path / "volume.nii.gz").dataobj.slope != 1
  for origin in (tmp_path / "volume.nii.gz", nib.load(tmp_path / "volume.nii.gz")):
    prediction = segmenter(origin)
    for name, path_of in (("mask", str), ("probabilities", Path)):
      prediction.save(path_of(tmp_path / f"{name}.nii"), name)
      saved = nib.load(tmp_path / f"{name}.nii")
      np.testing.assert_array_equal(np.asarray(saved.dataobj), getattr(prediction, name))
      np.testing.assert_array_equal(saved.affine, nib.load(tmp_path / "volume.nii.gz").affine)
      assert saved.get_data_dtype() == getattr(prediction, name).dtype
      assert (saved.header["sform_code"], saved.header["qform_code"]) == (1, 3)
      assert (saved.dataobj.slope, saved.dataobj.inter) == (1, 0)
      assert saved.header["cal_max"] == 0
      assert saved.header["descrip"] == b"an LGE volume"
  assert not list(tmp_path.glob(".*"))


def test_the_mask_of_an_array_is_saved_with_its_spacing(segmenter, tmp_path):
  prediction = segmenter(noise((3, 60, 66)), (8.0, 1.5, 1.25))
  prediction.save(tmp_path / "mask.nii.gz")
  saved = nib.load(tmp_path / "mask.nii.gz")
  np.testing.assert_array_equal(np.asarray(saved.dataobj), prediction.mask)
  np.testing.assert_allclose(saved.header.get_zooms(), (8.0, 1.5, 1.25))


def test_the_volume_itself_is_not_overwritten(segmenter, path, tmp_path):
  volume = tmp_path / "volume.nii.gz"
  volume.write_bytes(path.read_bytes())
  (tmp_path / "symbolic.nii.gz").symlink_to(volume)
  (tmp_path / "folder").symlink_to(tmp_path)
  os.link(volume, tmp_path / "hard.nii.gz")
  for prediction in (segmenter(volume), segmenter(nib.load(volume))):
    for name in ("volume.nii.gz", "symbolic.nii.gz", "hard.nii.gz", "folder/volume.nii.gz"):
      for what in ("mask", "probabilities"):
        with pytest.raises(InputError, match=f"{name}: the volume itself; choose another file for the {what}"):
          prediction.save(tmp_path / name, what)
  assert volume.read_bytes() == path.read_bytes()


def test_a_prediction_can_replace_an_earlier_one_and_be_saved_after_its_volume_is_removed(segmenter, path, tmp_path):
  volume, mask = tmp_path / "volume.nii.gz", tmp_path / "mask.nii.gz"
  volume.write_bytes(path.read_bytes())
  mask.write_bytes(path.read_bytes())
  prediction = segmenter(volume)
  volume.unlink()
  prediction.save(mask)
  np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj), prediction.mask)


@pytest.mark.parametrize("name", ["mask.png", "mask", "mask.nii.zip"])
def test_names_that_are_not_of_nifti_are_refused(segmenter, path, tmp_path, name):
  with pytest.raises(InputError, match=f"{name}: not a NIfTI name"):
    segmenter(path).save(tmp_path / name)
  assert not list(tmp_path.iterdir())


MISSING_MAPS = {
  "entropy": "entropy: computed with samples=N in load_segmenter only",
  "nonsense": "nonsense: not a map of a prediction; choose from mask, probabilities, entropy",
}


@pytest.mark.parametrize("what", MISSING_MAPS)
def test_a_map_that_a_prediction_does_not_have_is_refused(segmenter, path, tmp_path, what):
  with pytest.raises(InputError, match=MISSING_MAPS[what]):
    segmenter(path).save(tmp_path / "map.nii.gz", what)


def test_a_given_spacing_replaces_that_of_the_header(segmenter, path):
  """The same file with half of every voxel size has an eighth of the volumes."""
  spacing = [float(mm) / 2 for mm in nib.load(path).header.get_zooms()]
  expected = {name: ml / 8 for name, ml in segmenter(path).volumes_ml.items()}
  for volume in (path, nib.load(path)):
    assert segmenter(volume, spacing=spacing).volumes_ml == pytest.approx(expected, rel=1e-5)
  with pytest.raises(InputError, match="list: expected a NIfTI file, a nibabel image or an array"):
    segmenter([1, 2])


WRONG_OPTIONS = {
  "unknown": ("nonsense: no such option of prediction; choose from tta, postprocess, smooth", {"nonsense": 1}),
  "negative": ("smooth=-1.0: must be a number from 0", {"smooth": -1.0}),
  "a fraction": ("samples=2.5: must be a whole number", {"samples": 2.5}),
  "a text": ("tta='yes': must be True or False", {"tta": "yes"}),
}


@pytest.mark.parametrize("what", WRONG_OPTIONS)
def test_an_option_that_cannot_be_used_is_named(tmp_path, what):
  expected, options = WRONG_OPTIONS[what]
  with pytest.raises(InputError, match=f"^{expected}"):
    vamcei_jax.load_segmenter(tmp_path, **options)


def set_first(array, value):
  array = array.copy()
  array.flat[0] = value
  return array


def cut_short(voxels):
  """An image whose file ends before its voxels do."""
  content = io.BytesIO(nib.Nifti1Image(voxels, np.eye(4)).to_bytes()[:-100])
  return nib.Nifti1Image.from_file_map({"image": nib.FileHolder(fileobj=content)})


GOOD = noise((3, 60, 60))
COMPLEX = GOOD.astype(np.complex64)
WRONG_VOLUMES = {
  "an array without spacing": ("spacing: not given", GOOD),
  "two numbers for the spacing": (r"spacing=\(8.0, 1.5\): must be three positive numbers", GOOD, (8.0, 1.5)),
  "a spacing of zero": (r"spacing=\(8.0, 0.0, 1.5\): must be three positive", GOOD, (8.0, 0.0, 1.5)),
  "a spacing of NaN": (r"spacing=\(8.0, nan, 1.5\): must be three positive", GOOD, (8.0, np.nan, 1.5)),
  "one number for the spacing": ("spacing=1.5: must be three positive", GOOD, 1.5),
  "a text for the spacing": ("spacing=xyz: must be three positive", GOOD, "xyz"),
  "an array without slices": (r"array of shape \(0, 60, 60\)", GOOD[:0], SPACING),
  "a slice": (r"array of shape \(60, 60\) and type float32: expected real numbers \(D, H, W\)", GOOD[0], SPACING),
  "a complex array": (r"array of shape \(3, 60, 60\) and type complex64: expected real", COMPLEX, SPACING),
  "NaN in an array": ("the array: 1 of 10800 voxels are NaN or infinite", set_first(GOOD, np.nan), SPACING),
  "infinity in an image": (
    "the image: 1 of 10800 voxels are NaN or infinite",
    nib.Nifti1Image(set_first(GOOD, np.inf), np.diag([8, 1, 1, 1])),
  ),
  "a complex image": ("the image: complex64 voxels; expected real", nib.Nifti1Image(COMPLEX, np.eye(4))),
  "a series": (
    r"the image: 4-D image \(3, 60, 60, 2\)",
    nib.Nifti1Image(np.stack([GOOD, GOOD], -1), np.eye(4)),
  ),
  "a missing file": ("nowhere.nii: no such file", "nowhere.nii"),
  "an image of a damaged file": ("the image: not a readable NIfTI file .*Export or copy it again", cut_short(GOOD)),
}


@pytest.mark.parametrize("what", WRONG_VOLUMES)
def test_a_volume_that_cannot_be_segmented_is_named(segmenter, what):
  expected, *volume = WRONG_VOLUMES[what]
  with pytest.raises(InputError, match=f"^{expected}"):
    segmenter(*volume)


def test_a_good_prediction_has_no_finding():
  prediction = make_segmenter(always(heart()))(noise((3, 96, 96)), SPACING)
  assert findings(prediction) == []
  assert 0.8 < prediction.quality.score < 1


def test_certain_probabilities_have_a_score_of_one():
  segmenter = make_segmenter(always(heart()))
  data = dataclasses.replace(segmenter.config.data, zoom=1.0)  # nothing is interpolated
  segmenter = dataclasses.replace(segmenter, config=dataclasses.replace(segmenter.config, data=data))
  assert segmenter(noise((3, 32, 32)), SPACING).quality.score == 1.0


@pytest.mark.parametrize("missing", [(RV,), (MYO, LV), (MYO, LV, RV)])
def test_a_missing_structure_is_found(missing):
  classes = heart()
  classes[np.isin(classes, missing)] = BACKGROUND
  prediction = make_segmenter(always(classes))(noise((3, 96, 96)), SPACING)
  assert findings(prediction) == ["structure missing"] * len(missing)
  names = ("background", "Myo", "LV", "RV")
  texts = [finding.text for finding in prediction.quality.findings]
  assert texts[: len(missing)] == [f"no voxel of the {names[index]}" for index in missing]
  assert all(prediction.volumes_ml[names[index]] == 0 for index in missing)


@pytest.mark.parametrize(
  "edge", [np.s_[:, 0, 9:13], np.s_[:, -1, 9:13], np.s_[:, 9:13, 0], np.s_[:, 9:13, -1], np.s_[1, 0, 0]]
)
def test_a_heart_at_the_border_of_the_field_is_found(edge):
  classes = heart()
  classes[edge] = RV
  prediction = make_segmenter(always(classes))(noise((3, 128, 128)), SPACING)
  border = prediction.mask.copy()
  border[:, 1:-1, 1:-1] = 0
  assert not border.any()  # of the image
  assert findings(prediction) == ["heart cut"]


@pytest.mark.parametrize("edge", [np.s_[:, :6, 9:13], np.s_[:, -6:, 9:13], np.s_[:, 9:13, :6], np.s_[:, 9:13, -6:]])
def test_a_heart_at_the_border_of_the_image_is_found(edge):
  classes = heart()
  classes[edge] = RV
  classes[:, 0] = classes[:, -1] = classes[:, :, 0] = classes[:, :, -1] = BACKGROUND
  prediction = make_segmenter(always(classes))(noise((3, 72, 72)), SPACING)  # 24 pixels in the middle of 32
  assert findings(prediction) == ["heart cut"]


def test_a_heart_that_a_single_sample_cuts_is_found():
  keys, whole, cut = [], heart(), heart()
  cut[:, 0] = RV

  def draw(image, key):
    if key is None:  # in search of the orientation
      return always(whole)(image)
    keys.append(key)
    return always(cut if len(keys) == 1 else whole)(image)

  prediction = make_segmenter(draw, samples=3)(noise((3, 128, 128)), SPACING)
  assert len(keys) == 3
  np.testing.assert_array_equal(prediction.mask, make_segmenter(always(whole))(noise((3, 128, 128)), SPACING).mask)
  assert findings(prediction) == ["heart cut"]


def test_a_ventricle_without_a_wall_is_found():
  classes = heart()
  classes[classes == MYO] = 0
  assert findings(make_segmenter(always(classes))(noise((3, 96, 96)), SPACING)) == [
    "structure missing",
    "implausible shape",
    "low confidence",
  ]
  assert open_wall(classes) > 0.9
  assert open_wall(heart()) == 0.0


def test_a_ventricle_that_jumps_from_slice_to_slice_is_found():
  classes = heart()
  classes[1] = np.roll(classes[1], 3, axis=0)
  prediction = make_segmenter(always(classes))(noise((3, 96, 96)), SPACING)
  assert findings(prediction) == ["implausible shape", "low confidence"]
  assert slice_step(classes) == pytest.approx(3 / np.sqrt(36 / np.pi))
  small = heart()
  small[1, :, 17:] = 0  # of 36 pixels, the middle one has 24
  assert slice_step(small) == pytest.approx(1 / np.sqrt(36 / np.pi))
  assert slice_step(heart()) == 0.0


def test_a_shape_that_is_no_heart_s_lowers_the_score():
  """By what the LV's open border and its median step from slice to slice exceed a tenth."""
  certain = np.eye(4, dtype=np.float32)
  score = lambda classes: assess(certain[classes], classes, {}, uniform=False, cut=False, assumed=()).score
  assert score(heart()) == 1.0
  jumping = heart()
  jumping[1] = np.roll(jumping[1], 1, axis=0)
  assert score(jumping) == pytest.approx(1.0 - (slice_step(jumping) - 0.1))
  opened = jumping.copy()
  opened[:, :, 11:13] = BACKGROUND
  assert 0.1 < open_wall(opened) < 0.9
  assert score(opened) == pytest.approx(score(jumping) * (1.1 - open_wall(opened)))
  alone = np.where(heart() == LV, LV, BACKGROUND)
  assert score(alone) == pytest.approx(0.1)


def test_a_volume_that_no_heart_has_is_found():
  prediction = make_segmenter(always(heart()))(noise((3, 96, 96)), (1.0, 0.5, 0.5))
  assert findings(prediction) == ["implausible volume"] * 3


def test_a_low_score_is_a_finding():
  unsure = lambda image, key=None: 0.4 * np.eye(4, dtype=np.float32)[heart()] + 0.15
  prediction = make_segmenter(unsure)(noise((3, 96, 96)), SPACING)
  assert prediction.quality.score < 0.5
  assert "low confidence" in findings(prediction)


def test_a_uniform_image_is_found():
  assert findings(make_segmenter(always(heart()))(np.full((3, 96, 96), 7, np.uint8), SPACING)) == ["uniform image"]


def test_resampled_pixels_are_found():
  segment = lambda image, key=None: np.eye(4, dtype=np.float32)[heart()]
  pixels = {"pixel_mm": (1.0, 1.2)}
  prediction = make_segmenter(segment, **pixels)(noise((3, 80, 80)), SPACING)
  assert "pixels resampled" in findings(prediction)
  (finding,) = (finding for finding in prediction.quality.findings if finding.name == "pixels resampled")
  assert finding.text == "pixels of 1.5×1.5 mm, resampled to the 1.2 mm of the training"
  alike = make_segmenter(segment, **pixels)(noise((3, 96, 96)), (8.0, 1.1, 1.1))
  as_it_is = make_segmenter(segment, **pixels, resample=False)(noise((3, 96, 96)), SPACING)
  assert "pixels resampled" not in findings(alike) + findings(as_it_is)
  with pytest.raises(InputError, match="the array: pixels of 9.8×9.8 mm"):
    make_segmenter(segment, **pixels)(noise((3, 80, 80)), (8.0, 9.8, 9.8))


@pytest.mark.parametrize("seed", range(5))
def test_the_expected_dice_lies_between_0_and_1_and_is_1_for_certain_probabilities(seed):
  probs = np.random.default_rng(seed).dirichlet(np.full(4, 0.2 + seed), (3, 8, 8)).astype(np.float32)
  classes = probs.argmax(-1)
  scores = expected_dice(probs, classes)
  assert len(scores) == 3
  assert all(0 < score < 1 for score in scores)
  assert expected_dice(np.eye(4, dtype=np.float32)[classes], classes) == [1.0, 1.0, 1.0]


def test_the_expected_dice_is_that_worked_out_by_hand():
  probs = np.zeros((1, 2, 2, 4), np.float32)
  probs[..., MYO] = [[0.8, 0.6], [0.4, 0.2]]
  probs[..., LV] = [[0.0, 0.0], [0.1, 0.0]]
  classes = np.array([[[MYO, MYO], [BACKGROUND, BACKGROUND]]])
  # 2 (0.8 + 0.6) / (2.0 + 2); a structure that is expected and missing; one that is neither.
  assert expected_dice(probs, classes) == pytest.approx([0.7, 0.0, 1.0])


def test_the_api_has_the_masks_of_the_command_line(run_process, tiny_run, path, tmp_path):
  flags = f"--workdir={tiny_run}", f"--input={path}", f"--output={tmp_path}", "--postprocess", "--smooth=3"
  finished = run_process("vamcei_jax.predict", *flags, "--probabilities")
  assert finished.returncode == 0, finished.stderr
  options = {"postprocess": True, "smooth": 3.0}
  plain = vamcei_jax.load_segmenter(tiny_run)(path)
  for folder in (tiny_run, str(tiny_run), tiny_run / "vamcei"):
    prediction = vamcei_jax.load_segmenter(folder, **options)(path)
    np.testing.assert_array_equal(prediction.mask, np.asarray(nib.load(tmp_path / path.name).dataobj))
    probs = np.asarray(nib.load(tmp_path / "volume_probabilities.nii.gz").dataobj)
    np.testing.assert_array_equal(prediction.probabilities, probs)
    assert (prediction.mask != plain.mask).any()


@pytest.mark.skipif("MSCMRSEG_DIR" not in os.environ, reason="MSCMRSEG_DIR names no MS-CMRSeg folder")
def test_the_shipped_weights_segment_the_validation_patients(tmp_path):
  folder = Path(os.environ["MSCMRSEG_DIR"]) / "LGE"
  segmenter = vamcei_jax.load_segmenter(ROOT / "weights" / "mscmrseg_student")
  labels = {}
  for number in range(1, 6):
    prediction = segmenter(folder / f"patient{number}_LGE.nii.gz")
    # Part of patient 2's RV lies outside of the network's field.
    assert findings(prediction) == (["heart cut"] if number == 2 else [])
    assert prediction.quality.score > 0.75
    prediction.save(tmp_path / f"patient{number}.nii.gz")
    labels[f"patient{number}"] = folder / f"patient{number}_LGE_manual.nii.gz"
  table = vamcei_jax.evaluate({name: tmp_path / f"{name}.nii.gz" for name in labels}, labels)
  assert len(table.scores) == 5
  assert table.summary["mean"]["dice"]["mean"] == pytest.approx(0.877, abs=0.01)


def test_a_network_that_was_trained_in_every_orientation_looks_once_and_assumes_nothing():
  """Both flips and any rotation in training; an array has no known directions."""
  segmenter = make_segmenter(always(heart()))
  searching, calls = segmenter(noise((3, 96, 96)), spacing=SPACING), []

  def count(image, key=None):
    calls.append(image.shape)
    return always(heart())(image)

  augment = dataclasses.replace(segmenter.config.augment, flip=(0, 1), rotation=np.pi)
  config = dataclasses.replace(segmenter.config, augment=augment)
  prediction = dataclasses.replace(segmenter, config=config, segment=count, glance=count)(
    noise((3, 96, 96)), spacing=SPACING
  )
  names = [[finding.name for finding in each.quality.findings] for each in (searching, prediction)]
  assert "orientation assumed" in names[0]
  assert "orientation assumed" not in names[1]
  assert len(calls) == 1


def test_the_heart_is_looked_for_without_test_time_augmentation():
  glances = []

  def glance(image, key=None):
    glances.append(image.shape)
    return by_intensity_and_place(image)

  calls = []

  def segment(image, key=None):
    calls.append(image.shape)
    return by_intensity_and_place(image)

  segmenter = make_segmenter(segment)
  dataclasses.replace(segmenter, glance=glance)(noise((3, 96, 96)), spacing=SPACING)
  assert len(glances) == 8  # the ways in which the slices can lie
  assert len(calls) == 1


def test_the_last_look_is_the_prediction_where_nothing_is_averaged():
  calls = []

  def segment(image, key=None):
    calls.append(image.shape)
    return by_intensity_and_place(image)

  segmenter = make_segmenter(segment)
  prediction = dataclasses.replace(segmenter, glance=segment)(noise((3, 96, 96)), spacing=SPACING)
  assert len(calls) == 8  # the ways in which the slices can lie
  again = dataclasses.replace(segmenter, glance=lambda *args: segment(*args))(noise((3, 96, 96)), spacing=SPACING)
  assert len(calls) == 8 + 9
  np.testing.assert_array_equal(prediction.probabilities, again.probabilities)
