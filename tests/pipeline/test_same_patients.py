"""Masks of the same patients: how they are fitted to a prediction, and what they change in it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from vamcei_jax.data.nifti import Volume
from vamcei_jax.pipeline.same_patients import correct, fit

SPACING = (8.0, 1.5, 1.5)  # mm
CERTAIN = 0.99  # probability of the predicted class


def draw_heart(
  first: float = -4.0,
  slices: int = 9,
  size: float = 1.0,
  middle: tuple[float, float] = (0.0, 0.0),
  dilated: float = 0.0,
) -> Volume:
  """Class indices of a heart whose LV begins at a level of 0 mm, in slices from the level `first` on.

  `dilated` is the distance in mm by which the outline of LV lies farther outside than in the usual heart.
  """
  level = first + SPACING[0] * np.arange(slices)[:, None, None]
  grid = SPACING[1] * np.arange(-35, 36) / size
  y, x = np.meshgrid(grid - middle[0], grid - middle[1], indexing="ij")
  lv = np.minimum(22.0, 3.0 * np.sqrt(np.maximum(level, 0)))
  whole = np.where(level > -9, lv + 8, 0.0)
  radius = np.hypot(y, x)
  classes = np.where((np.hypot(y, x - 24) < 14) & (level > 10), 3, 0)
  classes = np.where(radius < whole, 1, classes)
  lv = np.where(lv > 0, np.maximum(lv + dilated, 0), 0)
  affine = np.diag([*SPACING, 1.0])
  affine[0, 3] = first
  return Volume(np.where(radius < lv, 2, classes).astype(np.uint8), affine)


def predicted(heart: Volume, certain: float = CERTAIN) -> Volume:
  """A prediction with one probability of the predicted class, and one of each other class."""
  probs = np.where(np.eye(4)[heart.voxels] > 0, certain, (1 - certain) / 3)
  return dataclasses.replace(heart, voxels=probs)


def with_spacing(volume: Volume, pixel: float) -> Volume:
  """The volume with another pixel size in its header."""
  return dataclasses.replace(volume, affine=volume.affine @ np.diag([1, pixel / SPACING[1], pixel / SPACING[2], 1]))


def overlaps(fitted, heart: Volume) -> np.ndarray:
  """(2, D) Dice of a fitted mask and a heart by slice, of Myo and LV together and of LV; NaN where both have none."""
  found, true = fitted.distances > 0, np.stack([np.isin(heart.voxels, (1, 2)), heart.voxels == 2])
  with np.errstate(invalid="ignore"):
    return 2 * (found & true).sum((2, 3)) / (found.sum((2, 3)) + true.sum((2, 3)))


@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
  size=st.floats(0.85, 1.1),
  middle=st.tuples(st.floats(-6, 6), st.floats(-6, 6)),
  pixel=st.floats(0.8, 2.5),
)
def test_a_mask_is_fitted_whatever_its_place_and_pixel_size(size, middle, pixel):
  heart = draw_heart()
  fitted = fit(predicted(heart), with_spacing(draw_heart(size=size, middle=middle), pixel))
  assert fitted.scale == pytest.approx(SPACING[1] / pixel / size, rel=0.03)
  assert np.nanmin(overlaps(fitted, heart)[0]) > 0.9


@pytest.mark.parametrize("wrong", [7.5, -5.0])
def test_a_stack_whose_header_is_wrong_by_some_millimetres_is_shifted(wrong):
  heart = draw_heart()
  mask = dataclasses.replace(heart, affine=draw_heart(first=-4 + wrong).affine)
  assert np.nanmean(overlaps(fit(predicted(heart), mask), heart)[:, 1:-1]) > 0.95


@pytest.mark.parametrize("dilated", [4.0, -4.0])
def test_a_mask_of_another_moment_of_the_heartbeat_gets_the_areas_of_the_prediction(dilated):
  heart, mask = draw_heart(), draw_heart(dilated=dilated)
  fitted = fit(predicted(heart), mask)
  area = lambda lv: lv[fitted.inside].sum()
  assert area(fitted.distances[1] > 0) == pytest.approx(area(heart.voxels == 2), rel=0.04)
  assert abs(area(mask.voxels == 2) / area(heart.voxels == 2) - 1) > 0.3
  assert np.nanmin(overlaps(fitted, heart)[1, 2:]) > 0.93


def test_a_mask_keeps_its_lv_if_none_is_predicted():
  heart = draw_heart()
  without = predicted(dataclasses.replace(heart, voxels=np.where(heart.voxels == 2, 1, heart.voxels)))
  corrected, _ = correct(without, heart)
  lv = ndimage.binary_erosion(heart.voxels == 2, np.ones((1, 5, 5)))
  assert (corrected[lv, 2] > 2 * without.voxels[lv, 2]).all()


def test_an_identical_mask_keeps_its_size():
  heart = draw_heart()
  fitted = fit(predicted(heart), heart)
  soft = 1 / (1 + np.exp(-fitted.distances[1]))
  assert soft.sum() == pytest.approx((heart.voxels == 2).sum(), rel=0.03)


def test_outlines_are_interpolated_between_two_slices_of_the_mask():
  heart = draw_heart(slices=9)
  mask = Volume(heart.voxels[::2], heart.affine @ np.diag([2, 1, 1, 1.0]))
  assert np.nanmin(overlaps(fit(predicted(heart), mask), heart)[:, 2:]) > 0.93


@pytest.mark.parametrize("missed", [[4], [3, 4], [0, 1], [7, 8]])
@pytest.mark.parametrize("where", ["prediction", "mask"])
def test_slices_that_are_missed_do_not_change_the_fit_of_the_others(missed, where):
  heart = draw_heart()
  voxels = heart.voxels.copy()
  voxels[missed] = 0
  cut = dataclasses.replace(heart, voxels=voxels)
  fitted = fit(predicted(cut), heart) if where == "prediction" else fit(predicted(heart), cut)
  assert fitted.inside.all()
  assert fitted.scale == pytest.approx(1, rel=0.02)
  others = np.setdiff1d(np.arange(9), missed)
  assert np.nanmin(overlaps(fitted, heart)[0, others]) > 0.9
  found, true = fitted.distances[1, others] > 0, heart.voxels[others] == 2
  assert found.sum() == pytest.approx(true.sum(), rel=0.04)


def test_a_mask_is_not_shifted_to_fit_a_prediction_that_misses_the_apex():
  heart = draw_heart()
  voxels = heart.voxels.copy()
  voxels[:4] = 0
  fitted = fit(predicted(dataclasses.replace(heart, voxels=voxels), certain=0.8), heart)
  assert np.nanmin(overlaps(fitted, heart)[0]) > 0.95


def test_a_corrected_probability_is_that_of_the_prediction_times_the_fourth_root_of_the_masks():
  prediction, mask = predicted(draw_heart(), certain=0.7), draw_heart(size=0.9, middle=(2, 2))
  corrected, _ = correct(prediction, mask)
  whole, lv = 1 / (1 + np.exp(-fit(prediction, mask).distances / 1.0))
  q = np.stack([1 - whole, whole * (1 - lv), whole * lv, 1 - whole], axis=-1)
  expected = (prediction.voxels + 1e-3) * (q + 1e-3) ** 0.25
  difference = corrected - expected / expected.sum(-1, keepdims=True)
  # The fit of the uncut image may lie one pixel beside that of the image that `correct` has cut around the heart.
  assert np.median(np.abs(difference[prediction.voxels[..., 0] < 0.5])) < 0.005


def test_myo_that_is_missed_near_the_apex_becomes_likelier():
  heart = draw_heart()
  missed = heart.voxels.copy()
  missed[0] = 0
  prediction = predicted(dataclasses.replace(heart, voxels=missed))
  corrected, _ = correct(prediction, heart)
  apex = heart.voxels[0] == 1
  gain = corrected[0, ..., 1] / prediction.voxels[0, ..., 1]
  assert gain[apex].min() > 1
  assert gain[apex].max() > 3
  assert gain[~ndimage.binary_dilation(apex, iterations=4)].mean() < 1


def test_probabilities_sum_to_1_and_rv_keeps_its_share_of_what_is_not_lv_or_myo():
  prediction = predicted(draw_heart())
  corrected, _ = correct(prediction, draw_heart(first=-2.0, size=0.9, middle=(3, -4)))
  np.testing.assert_allclose(corrected.sum(-1), 1, atol=1e-6)
  share = lambda probs: (probs[..., 3] + 1e-3) / (probs[..., 0] + probs[..., 3] + 2e-3)
  np.testing.assert_allclose(share(corrected), share(prediction.voxels), atol=5e-3)
  assert np.abs(corrected - prediction.voxels).max() > 0.005


def test_slices_outside_the_masks_stack_stay_as_they_are():
  prediction = predicted(draw_heart(first=-4.0, slices=12))
  corrected, _ = correct(prediction, draw_heart(first=-4.0, slices=5))
  changed = np.abs(corrected - prediction.voxels).max((1, 2, 3)) > 0
  assert changed[:5].all()
  assert not changed[5:].any()


def test_the_prediction_itself_is_not_written_to():
  prediction = predicted(draw_heart())
  before = prediction.voxels.copy()
  correct(prediction, draw_heart(size=0.9))
  np.testing.assert_array_equal(prediction.voxels, before)


def test_a_mask_in_one_slice_is_fitted():
  heart = draw_heart()
  one = dataclasses.replace(heart, voxels=heart.voxels[4:5], affine=draw_heart(first=28.0).affine)
  corrected, scale = correct(predicted(heart), one)
  assert scale == pytest.approx(1, rel=0.05)
  assert np.isfinite(corrected).all()


def turned(volume: Volume, degrees: float, axis: int) -> Volume:
  """The volume with its directions turned about one of its axes."""
  turn = np.eye(4)
  turn[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * np.eye(3)[axis]).as_matrix()
  return dataclasses.replace(volume, affine=turn @ volume.affine)


HEART = draw_heart()
WITHOUT_LV = dataclasses.replace(HEART, voxels=np.where(HEART.voxels == 2, 1, HEART.voxels))
NOT_FITTED = {
  "no heart in the mask": (HEART, dataclasses.replace(HEART, voxels=np.zeros_like(HEART.voxels))),
  "RV alone": (HEART, dataclasses.replace(HEART, voxels=np.where(HEART.voxels == 3, 3, 0).astype(np.uint8))),
  "no LV in the mask": (HEART, WITHOUT_LV),
  "no heart in the prediction": (dataclasses.replace(HEART, voxels=np.zeros_like(HEART.voxels)), HEART),
  "no common slice": (HEART, dataclasses.replace(HEART, affine=draw_heart(first=200.0).affine)),
  "tilted by 20 degrees": (HEART, turned(HEART, 20, axis=1)),
  "rows turned by 90 degrees": (HEART, turned(HEART, 90, axis=0)),
  "a prediction of few pixels": (
    dataclasses.replace(HEART, voxels=np.where(np.arange(71) == 35, HEART.voxels, 0)),
    HEART,
  ),
  "reversed": (HEART, dataclasses.replace(HEART, affine=HEART.affine @ np.diag([-1, 1, 1, 1.0]))),
}


@pytest.mark.parametrize("what", NOT_FITTED)
def test_what_cannot_be_fitted_is_none(what):
  heart, mask = NOT_FITTED[what]
  assert correct(predicted(heart), mask) is None
