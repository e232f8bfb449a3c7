"""Masks of the same patients: how they are fitted to a prediction, and what they change in it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vamcei_jax.data.nifti import Volume
from vamcei_jax.pipeline.same_patients import correct, fit

SPACING = (8.0, 1.5, 1.5)  # mm
CERTAIN = 0.99  # probability of the predicted class


def draw_heart(first: float = -4.0, slices: int = 9, size: float = 1.0, middle: tuple[float, float] = (0.0, 0.0)):
  """Class indices of a heart whose LV begins at a level of 0 mm, in slices from the level `first` on."""
  level = first + SPACING[0] * np.arange(slices)[:, None, None]
  y, x = (
    np.meshgrid(*2 * [SPACING[1] * np.arange(-35, 36)], indexing="ij")[axis] / size - middle[axis] for axis in (0, 1)
  )
  lv = np.minimum(22.0, 3.0 * np.sqrt(np.maximum(level, 0)))
  whole = np.where(level > -9, lv + 8, 0.0)
  radius = np.hypot(y, x)
  classes = np.where((np.hypot(y, x - 24) < 14) & (level > 10), 3, 0)
  classes = np.where(radius < whole, 1, classes)
  affine = np.diag([*SPACING, 1.0])
  affine[0, 3] = first
  return Volume(np.where(radius < lv, 2, classes).astype(np.uint8), affine)


def predicted(heart: Volume) -> Volume:
  """A prediction that is as certain everywhere."""
  probs = np.where(np.eye(4)[heart.voxels] > 0, CERTAIN, (1 - CERTAIN) / 3)
  return dataclasses.replace(heart, voxels=probs)


def with_spacing(volume: Volume, pixel: float) -> Volume:
  """The volume with another pixel size in its header."""
  return dataclasses.replace(volume, affine=volume.affine @ np.diag([1, pixel / SPACING[1], pixel / SPACING[2], 1]))


@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
  size=st.floats(0.85, 1.1),
  middle=st.tuples(st.floats(-6, 6), st.floats(-6, 6)),
  pixel=st.floats(0.8, 2.5),
)
def test_a_mask_is_fitted_whatever_its_place_and_pixel_size(size, middle, pixel):
  heart = draw_heart()
  mask = with_spacing(draw_heart(size=size, middle=middle), pixel)
  fitted = fit(predicted(heart), mask)
  assert fitted.scale == pytest.approx(SPACING[1] / pixel / size, rel=0.03)
  for distances, part in zip(fitted.distances > 0, (np.isin(heart.voxels, (1, 2)), heart.voxels == 2), strict=True):
    assert 2 * (distances & part).sum() / (distances.sum() + part.sum()) > 0.95


def test_myo_that_is_missed_near_the_apex_becomes_likelier():
  heart = draw_heart()
  missed = heart.voxels.copy()
  missed[0] = 0
  prediction = predicted(dataclasses.replace(heart, voxels=missed))
  corrected, _ = correct(prediction, heart)
  there = heart.voxels[0] == 1
  gain = corrected[0, ..., 1] / prediction.voxels[0, ..., 1]
  assert gain[there].min() > 1
  assert gain[there].max() > 3
  assert gain[~ndimage.binary_dilation(there, iterations=4)].mean() < 1


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
  assert not changed[7:].any()  # a shift moves the stack by 10 mm at most


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


HEART = draw_heart()
NOT_FITTED = {
  "no heart in the mask": (HEART, dataclasses.replace(HEART, voxels=np.zeros_like(HEART.voxels))),
  "RV alone": (HEART, dataclasses.replace(HEART, voxels=np.where(HEART.voxels == 3, 3, 0).astype(np.uint8))),
  "no heart in the prediction": (dataclasses.replace(HEART, voxels=np.zeros_like(HEART.voxels)), HEART),
  "no common slice": (HEART, dataclasses.replace(HEART, affine=draw_heart(first=200.0).affine)),
  "reversed": (HEART, dataclasses.replace(HEART, affine=HEART.affine @ np.diag([-1, 1, 1, 1.0]))),
}


@pytest.mark.parametrize("what", NOT_FITTED)
def test_what_cannot_be_fitted_is_none(what):
  heart, mask = NOT_FITTED[what]
  assert correct(predicted(heart), mask) is None
