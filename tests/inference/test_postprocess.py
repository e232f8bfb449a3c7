"""Postprocessing: smoothing along the stack, largest components and holes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vamcei_jax.inference.postprocess import postprocess, smooth_slices

BACKGROUND, MYO, LV, RV = range(4)


def certain(classes):
  """Probabilities whose most probable classes these are; the second most probable is LV, then Myo."""
  probs = np.eye(4, dtype=np.float32)[classes] + np.array([0.0, 0.1, 0.2, 0.05], np.float32)
  return probs / probs.sum(-1, keepdims=True)


def ring(shape=(3, 16, 16)):
  """A myocardium of 8×8 with a cavity of 4×4, and a right ventricle beside it."""
  classes = np.zeros(shape, int)
  classes[:, 4:12, 4:12] = MYO
  classes[:, 6:10, 6:10] = LV
  classes[:, 5:11, 0:3] = RV
  return classes


def test_slices_are_weighted_by_their_distance_in_mm():
  probs = np.zeros((5, 1, 1, 2), np.float32)
  probs[..., 0], probs[2, ..., 0], probs[2, ..., 1] = 1.0, 0.0, 1.0
  got = smooth_slices(probs, 8.0, 5.0)
  near, far = np.exp(-0.5 * (8.0 / 5.0) ** 2), np.exp(-0.5 * (16.0 / 5.0) ** 2)
  np.testing.assert_allclose(got[2, 0, 0, 1], 1.0 / (1.0 + 2 * near + 2 * far), rtol=1e-5)
  np.testing.assert_allclose(got[3, 0, 0, 1], near / (1.0 + 2 * near + far), rtol=1e-3)
  np.testing.assert_allclose(got.sum(-1), 1.0, rtol=1e-6)
  np.testing.assert_array_equal(smooth_slices(probs, 8.0, 0.0), probs)


def test_smoothing_corrects_a_single_wrong_slice_and_does_not_change_a_heart():
  heart = ring((5, 16, 16))
  damaged = certain(heart)
  damaged[2] = certain(np.full((16, 16), RV))
  np.testing.assert_array_equal(smooth_slices(damaged, 5.0, 5.0).argmax(-1), heart)
  np.testing.assert_allclose(smooth_slices(certain(heart), 5.0, 5.0), certain(heart), rtol=1e-5)


def test_small_components_are_removed_and_a_complete_heart_does_not_change():
  heart = ring()
  np.testing.assert_array_equal(postprocess(certain(heart)), heart)
  scattered = heart.copy()
  scattered[0, 14, 14], scattered[1, 14, 1:3], scattered[2, 0, 0] = MYO, RV, LV
  np.testing.assert_array_equal(postprocess(certain(scattered)), heart)


def test_a_thin_diagonal_wall_is_one_component():
  diamond = np.zeros((1, 9, 9), int)
  y, x = np.indices((9, 9))
  diamond[0, abs(y - 4) + abs(x - 4) == 3] = MYO
  diamond[0, abs(y - 4) + abs(x - 4) < 3] = LV
  np.testing.assert_array_equal(postprocess(certain(diamond)), diamond)


def test_a_hole_becomes_the_most_probable_structure_of_its_ventricle():
  pierced = ring()
  pierced[1, 7, 7] = BACKGROUND  # in the cavity
  pierced[1, 5, 7] = BACKGROUND  # in the wall
  pierced[1, 7, 1] = BACKGROUND  # in the right ventricle
  probs = certain(pierced)
  probs[1, 5, 7] = [0.5, 0.3, 0.1, 0.1]
  np.testing.assert_array_equal(postprocess(probs), ring())


def test_a_hole_in_the_first_or_the_last_slice_is_filled():
  """Its slice encloses it, though it is open towards the end of the stack."""
  pierced = ring()
  pierced[0, 7, 7] = pierced[2, 7, 1] = BACKGROUND
  np.testing.assert_array_equal(postprocess(certain(pierced)), ring())


def test_a_small_component_within_another_structure_becomes_that_structure():
  spotted = ring()
  spotted[1, 5, 8] = RV
  probs = certain(spotted)
  probs[1, 5, 8] = [0.1, 0.3, 0.2, 0.4]
  np.testing.assert_array_equal(postprocess(probs), ring())


def test_background_that_is_open_to_the_outside_is_not_filled():
  opened = ring()
  opened[:, 4:8, 7] = BACKGROUND  # a gap in the wall, down to the cavity
  np.testing.assert_array_equal(postprocess(certain(opened)), opened)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_largest_components_of_random_masks_stay_and_only_holes_are_filled(seed):
  rng = np.random.default_rng(seed)
  probs = rng.dirichlet(np.full(4, 0.3), (3, 9, 9)).astype(np.float32)
  classes, result = probs.argmax(-1), postprocess(probs)
  assert result.dtype == np.uint8
  ventricles = {}
  for index in (MYO, LV, RV):
    components, count = ndimage.label(classes == index, np.ones((3, 3, 3)))
    if not count:
      continue
    largest = components == 1 + np.bincount(components.ravel())[1:].argmax()
    np.testing.assert_array_equal(result[largest], index)
    ventricles.setdefault(index == RV, []).append(largest)
  for right, parts in ventricles.items():
    filled = np.stack([ndimage.binary_fill_holes(part) for part in np.any(parts, axis=0)])
    assert not (np.isin(result, (RV,) if right else (MYO, LV)) & ~filled).any()
