"""The part of large slices in which a network sees the heart, with a network that sees whole hearts alone."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vamcei_jax.data.nifti import Volume
from vamcei_jax.inference.field import View, find_field, middle_region, whole_slices

EXTENT = (90.0, 100.0)  # mm; slices of the training
RADII = {3: 16, 1: 12, 2: 8}  # pixels of RV, Myo and LV, rings around one centre
HEART = np.pi * RADII[3] ** 2


def volume_of(voxels):
  return Volume(voxels.astype(np.float32), np.diag([8.0, 1.0, 1.0, 1.0]), "short_axis")


def slices_with_heart(pixels, row, column):
  """Two slices whose voxels are classes, on a ground of noise between 0 and 0.4."""
  voxels = np.random.default_rng(0).uniform(0.0, 0.4, (2, pixels, pixels))
  rows, columns = np.indices((pixels, pixels))
  for label, radius in RADII.items():
    voxels[:, (rows - row) ** 2 + (columns - column) ** 2 < radius**2] = label
  return volume_of(voxels)


def look(volume):
  """0.97 for the classes where the slices have nearly all of the heart, else for background."""
  classes = volume.voxels.round().astype(int)
  if (classes > 0).sum() < 0.9 * 2 * HEART:
    classes = np.zeros_like(classes)
  return View(np.eye(4)[classes] * 0.96 + 0.01)


def middle_of(region):
  return np.array([(part.start + part.stop - 1) / 2 for part in region])


def test_slices_that_are_not_much_larger_than_those_of_the_training_are_taken_whole():
  for pixels in (60, 90, 119):
    volume = volume_of(np.random.default_rng(0).uniform(size=(2, pixels, pixels)))
    assert middle_region(volume, EXTENT) == whole_slices(volume)
  large = volume_of(np.random.default_rng(0).uniform(size=(2, 200, 119)))
  rows, columns = middle_region(large, EXTENT)
  assert (rows.stop - rows.start, columns) == (95, slice(0, 119))
  assert middle_region(large, None) == whole_slices(large)


def test_blank_borders_do_not_move_the_middle():
  voxels = np.zeros((2, 300, 110))
  voxels[:, 10:150] = np.random.default_rng(0).uniform(0.1, 1.0, (2, 140, 110))
  rows, _ = middle_region(volume_of(voxels), EXTENT)
  assert (rows.start + rows.stop) / 2 == pytest.approx(80, abs=1)


@settings(max_examples=25)
@example(row=86, column=86)
@given(row=st.integers(20, 379), column=st.integers(20, 379))
def test_a_heart_anywhere_in_large_slices_is_seen_whole_and_in_the_middle(row, column):
  volume = slices_with_heart(400, row, column)
  number, region, view = find_field(look, [volume], EXTENT)
  assert number == 0
  seen = volume.cropped(*region)
  np.testing.assert_array_equal(view.probs, look(seen).probs)
  assert seen.voxels.shape == (2, 95, 95)
  assert (seen.voxels > 0.5).sum() == (volume.voxels > 0.5).sum()
  reachable = np.clip([row, column], 47, 352)  # regions stay in the slices
  assert np.hypot(*(middle_of(region) - reachable)) <= 5.0


def test_a_part_keeps_the_places_of_its_voxels():
  volume = slices_with_heart(200, 50, 120)
  part = volume.cropped(slice(30, 90), slice(100, 150))
  np.testing.assert_array_equal(part.affine @ [1, 20, 20, 1], volume.affine @ [1, 50, 120, 1])
  assert part.voxels[1, 20, 20] == volume.voxels[1, 50, 120] == 2.0


def test_the_orientation_with_the_surest_prediction_is_taken():
  first, second = slices_with_heart(100, 30, 50), slices_with_heart(100, 70, 50)
  unsure = lambda volume: View(0.5 * look(volume).probs + 0.125)
  sure = lambda volume: look(volume) if volume.voxels[0, 70, 50] == 2.0 else unsure(volume)
  assert find_field(sure, [first, second], None)[0] == 1
  assert find_field(sure, [second, first], None)[0] == 0


def test_a_heart_in_the_middle_with_hardly_any_rv_is_not_looked_for_elsewhere():
  looks = []

  def unsure_of_the_rv(volume):
    looks.append(volume)
    probs = 0.55 * look(volume).probs + 0.45 * np.eye(4)[0]
    rv = probs[..., 3].copy()
    probs[..., 0] += 0.5 * rv
    probs[..., 3] = 0.5 * rv
    return View(probs)

  volume = slices_with_heart(400, 200, 200)
  _, region, view = find_field(unsure_of_the_rv, [volume], EXTENT)
  assert (view.probs.argmax(-1) == 3).sum() == 0
  assert len(looks) <= 2
  np.testing.assert_allclose(middle_of(region), 200, atol=6)


def test_a_sure_lv_that_lacks_most_of_its_wall_does_not_keep_the_network_from_the_heart():
  """The network is as sure of an organ in the middle as of the heart."""
  volume = slices_with_heart(400, 90, 90)
  rows, columns = np.indices((400, 400)) - 200
  distance, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
  organ = np.where((distance < RADII[1]) & (abs(angle) < 0.8), 1, 0)
  organ[distance < RADII[2]] = 2
  volume.voxels[:, organ > 0] = -organ[organ > 0]

  def fooled(volume):
    probs, marked = look(volume).probs, volume.voxels < 0
    probs[marked] = (np.eye(4) * 0.96 + 0.01)[-volume.voxels[marked].astype(int)]
    return View(probs)

  _, region, view = find_field(fooled, [volume], EXTENT)
  assert {*np.unique(view.probs.argmax(-1))} == {0, 1, 2, 3}
  np.testing.assert_allclose(middle_of(region), 90, atol=6)


def test_the_middle_is_kept_where_no_other_place_is_surer():
  volume, looks = slices_with_heart(300, 150, 150), []

  def unsure_and_only_of_what_is_in_the_middle(volume):
    looks.append(volume)
    seen = volume if (volume.voxels[0, 43:51, 43:51].round() == 2).all() else volume_of(0 * volume.voxels)
    return View(0.45 * look(seen).probs + 0.55 * np.array([0.5, 0.2, 0.2, 0.1]))

  _, region, view = find_field(unsure_and_only_of_what_is_in_the_middle, [volume], EXTENT)
  assert len(looks) > 9
  assert (view.probs.argmax(-1) == 2).any()
  np.testing.assert_allclose(middle_of(region), 150, atol=6)
