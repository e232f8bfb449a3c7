import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vamcei_jax.data.preprocess import (
  Preprocess,
  foreground_centre,
  match_pixels,
  preprocess_classes,
  preprocess_image,
  restore_classes,
  restore_position,
  restore_probabilities,
)
from vamcei_jax.errors import InputError

SPACING = (8.0, 1.25, 1.25)
WHOLE = (0.0, 100.0)

sides = st.integers(1, 24)
shapes = st.tuples(st.integers(1, 3), sides, sides)
sizes = st.tuples(sides, sides)
grids = st.one_of(
  st.builds(Preprocess, size=sizes, zoom=st.floats(0.3, 3.0)),
  st.builds(Preprocess, size=sizes, spacing=st.floats(0.5, 4.0)),
)


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def one_hot(classes, k=4):
  return np.eye(k, dtype=np.float32)[classes]


def heart(shape, centre, radius):
  """Nested discs, myocardium about the cavity, and a disc beside them: (D, H, W) class indices, drawn in fractions."""
  h, w = shape[1:]
  y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
  distance = np.hypot(y - centre[0], x - centre[1])
  classes = np.zeros((h, w), np.uint8)
  classes[np.hypot(y - centre[0], x - centre[1] + 1.2 * radius) < radius] = 3
  classes[distance < radius] = 1
  classes[distance < 0.6 * radius] = 2
  return np.broadcast_to(classes, shape).copy()


def dice(a, b, k):
  return 2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum())


# Pixels of another size than those trained on


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_pixels_of_another_size_come_onto_the_grid_that_was_trained_on(factor):
  """A heart of the same size in mm is one of the same size in the field, whatever the pixels of the volume."""
  shape, pixel_mm, grid = (1, 120, 120), (1.25, 1.25), Preprocess(size=(90, 90), zoom=0.75)
  expected = preprocess_classes(heart(shape, (0.5, 0.5), 0.2), SPACING, grid)
  pixels = round(120 * factor)
  spacing = (8.0, 1.25 / factor, 1.25 / factor)
  matched = match_pixels(grid, spacing, pixel_mm)
  assert (matched == grid) == (factor == 1.0)
  classes = heart((1, pixels, pixels), (0.5, 0.5), 0.2)
  found = preprocess_classes(classes, spacing, matched)
  assert min(dice(found, expected, k) for k in (1, 2, 3)) > 0.95
  if factor != 1.0:
    assert dice(preprocess_classes(classes, spacing, grid), expected, 2) < 0.7
  back = restore_classes(found, classes.shape, spacing, matched)
  assert min(dice(back, classes, k) for k in (1, 2, 3)) > 0.93


def test_settings_do_not_change_where_the_size_of_pixels_is_unknown_or_makes_no_difference():
  by_headers, by_pixels = Preprocess(spacing=1.5), Preprocess(zoom=0.75)
  assert match_pixels(by_headers, (8.0, 0.5, 0.5), (1.2, 1.3)) == by_headers
  assert match_pixels(by_pixels, (8.0, 0.5, 0.5), None) == by_pixels
  assert match_pixels(by_pixels, (8.0, 1.195, 1.31), (1.2, 1.3)) == by_pixels


def test_pixels_with_one_side_of_another_size_are_resampled():
  assert match_pixels(Preprocess(), (8.0, 1.25, 1.0), (1.2, 1.3)).spacing == pytest.approx(1.2)
  assert match_pixels(Preprocess(), (8.0, 1.5, 1.25), (1.2, 1.3)).spacing == pytest.approx(1.3)


def test_pixels_are_resampled_to_the_nearest_size_that_was_trained_on():
  resampled = lambda *pixels: match_pixels(Preprocess(zoom=0.75), (8.0, *pixels), (1.0, 1.4)).spacing * 0.75
  assert resampled(0.5, 0.5) == pytest.approx(1.0)
  assert resampled(1.5, 1.5) == pytest.approx(1.4)
  assert resampled(0.8, 1.8) == pytest.approx(1.2)


@pytest.mark.parametrize("mm", [0.00075, 750.0])
def test_implausible_pixel_sizes_are_refused(mm):
  with pytest.raises(InputError, match="was trained on 1 to 1.4 mm; correct the header, or predict with --noresample"):
    match_pixels(Preprocess(), (8.0, mm, mm), (1.0, 1.4))


# Intensities


def test_percentiles_of_the_volume_become_0_and_1(rng):
  voxels = rng.gamma(2.0, 100.0, size=(5, 40, 40)).astype(np.float32)
  image = preprocess_image(voxels, SPACING, Preprocess(size=(40, 40), percentiles=(2.0, 95.0)))
  low, high = np.percentile(voxels, (2.0, 95.0))
  assert image.dtype == np.float32
  np.testing.assert_allclose(image, np.clip((voxels - low) / (high - low), 0, 1), atol=1e-6)
  assert np.mean(image == 0) == pytest.approx(0.02, abs=1e-3)
  assert np.mean(image == 1) == pytest.approx(0.05, abs=1e-3)


@given(gain=st.floats(1e-3, 1e3), offset=st.floats(-1e3, 1e3))
def test_the_scanners_unit_does_not_matter(gain, offset):
  voxels = np.random.default_rng(0).uniform(size=(2, 8, 8))
  settings = Preprocess(size=(12, 6), zoom=0.8)
  image = preprocess_image(gain * voxels + offset, SPACING, settings)
  np.testing.assert_allclose(image, preprocess_image(voxels, SPACING, settings), atol=1e-6)


@pytest.mark.parametrize("value", [-7.0, 0.0, 3e38])
def test_a_constant_volume_gives_zeros(value):
  image = preprocess_image(np.full((2, 8, 8), value, np.float32), SPACING, Preprocess(size=(8, 8)))
  np.testing.assert_array_equal(image, np.zeros((2, 8, 8)))


def test_voxels_beyond_the_percentiles_count_when_all_others_are_constant():
  voxels = np.zeros((2, 30, 30), np.float32)
  voxels[1, 3, 4] = 50.0
  image = preprocess_image(voxels, SPACING, Preprocess(size=(30, 30)))
  np.testing.assert_array_equal(image, voxels / 50.0)
  faint = preprocess_image(voxels / 200.0, SPACING, Preprocess(size=(30, 30)))
  np.testing.assert_array_equal(faint, image)


# Grids


@given(shape=shapes, grid=grids)
def test_images_and_classes_share_the_networks_grid(shape, grid):
  rng = np.random.default_rng(0)
  image = preprocess_image(rng.normal(size=shape).astype(np.float32), SPACING, grid)
  classes = preprocess_classes(rng.integers(0, 4, shape), SPACING, grid)
  assert image.shape == classes.shape == (shape[0], *grid.size)
  assert (image.dtype, classes.dtype) == (np.float32, np.uint8)
  assert image.min() >= 0.0
  assert image.max() <= 1.0


def test_pixels_keep_their_place_when_resampled():
  ramp = np.broadcast_to(np.arange(64, dtype=np.float32), (1, 64, 64))
  for zoom in (0.5, 0.75, 1.5):
    size = round(64 * zoom)
    resampled = 63 * preprocess_image(ramp, SPACING, Preprocess(size=(size, size), zoom=zoom, percentiles=WHOLE))[0, 0]
    centres = (np.arange(size) + 0.5) / zoom - 0.5  # of the new pixels, in old pixels
    inner = (centres > 4) & (centres < 59)  # the borders have no neighbours to one side
    np.testing.assert_allclose(resampled[inner], centres[inner], atol=1e-3)


def test_detail_beyond_the_new_grid_does_not_alias():
  stripes = np.broadcast_to(np.arange(128) % 2, (1, 128, 128)).astype(np.float32)
  for zoom in (0.27, 0.4):
    size = round(128 * zoom)
    image = preprocess_image(stripes, SPACING, Preprocess(size=(size, size), zoom=zoom, percentiles=WHOLE))
    np.testing.assert_allclose(image[:, 4:-4, 4:-4], 0.5, atol=0.1)


def test_a_line_is_spread_by_half_of_the_pixels_that_a_new_one_gains():
  """Four pixels become one: the Gaussian has a standard deviation of 1.5 pixels."""
  line = np.zeros((1, 64, 64))
  line[:, :, 33] = 1.0
  image = preprocess_image(line, SPACING, Preprocess(size=(16, 16), zoom=0.25, percentiles=WHOLE))
  gaussian = np.exp(-0.5 * ((np.arange(64) - 33) / 1.5) ** 2)
  gaussian /= gaussian.sum()
  # A new pixel lies between the second and the third of its four.
  expected = (gaussian[1::4] + gaussian[2::4]) / 2
  np.testing.assert_allclose(image[0], np.broadcast_to(expected, (16, 16)), atol=1e-3)


def test_spacing_resamples_by_the_header_and_each_axis_by_its_own(rng):
  voxels = rng.normal(size=(2, 20, 30))
  by_header = preprocess_image(voxels, (8.0, 1.5, 1.5), Preprocess(size=(40, 40), spacing=1.0))
  by_factor = preprocess_image(voxels, (8.0, 1.5, 1.5), Preprocess(size=(40, 40), zoom=1.5))
  np.testing.assert_array_equal(by_header, by_factor)
  full = preprocess_classes(np.ones((1, 20, 30), int), (8.0, 1.0, 0.5), Preprocess(size=(50, 50), spacing=1.0))
  assert (full.any((0, 2)).sum(), full.any((0, 1)).sum()) == (20, 15)


def test_zoom_is_not_used_when_spacing_is_given(rng):
  voxels = rng.normal(size=(2, 20, 30))
  a, b = (preprocess_image(voxels, SPACING, Preprocess(size=(16, 16), spacing=2.0, zoom=zoom)) for zoom in (1.0, 0.5))
  np.testing.assert_array_equal(a, b)


def test_the_centre_is_cropped_and_the_padding_is_background():
  voxels = np.arange(1.0, 26.0).reshape(1, 5, 5)
  image = 25 * preprocess_image(voxels, SPACING, Preprocess(size=(3, 7), percentiles=WHOLE))[0]
  expected = np.zeros((3, 7))
  expected[:, 1:6] = (voxels[0, 1:4] - 1) / 24 * 25
  np.testing.assert_allclose(image, expected, atol=1e-5)
  classes = preprocess_classes(np.full((1, 5, 5), 3), SPACING, Preprocess(size=(3, 7)))[0]
  np.testing.assert_array_equal(classes, 3 * (expected > 0) | 3 * np.pad(np.ones((3, 5), int), ((0, 0), (1, 1))))


# The way back


@given(shape=shapes, size=sizes, seed=st.integers(0, 2**32 - 1))
@example(shape=(2, 7, 12), size=(10, 9), seed=0)
def test_without_resampling_a_mask_within_the_field_comes_back_exactly(shape, size, seed):
  rng, grid = np.random.default_rng(seed), Preprocess(size=size)
  field = restore_classes(np.ones((shape[0], *size), np.uint8), shape, SPACING, grid)
  assert field.shape == shape
  assert field.sum() == shape[0] * min(shape[1], size[0]) * min(shape[2], size[1])
  mask = (rng.integers(0, 4, shape) * field).astype(np.uint8)
  restored = restore_classes(preprocess_classes(mask, SPACING, grid), shape, SPACING, grid)
  assert restored.dtype == np.uint8
  np.testing.assert_array_equal(restored, mask)


@given(shape=shapes, size=sizes, seed=st.integers(0, 2**32 - 1))
def test_without_resampling_probabilities_come_back_exactly_and_are_background_elsewhere(shape, size, seed):
  rng, grid = np.random.default_rng(seed), Preprocess(size=size)
  probs = rng.dirichlet(np.ones(4), size=(shape[0], *size)).astype(np.float32)
  restored = restore_probabilities(probs, shape, SPACING, grid)
  field = restore_classes(np.ones(probs.shape[:3], np.uint8), shape, SPACING, grid) == 1
  np.testing.assert_array_equal(restored[~field], np.broadcast_to([1.0, 0, 0, 0], (np.sum(~field), 4)))
  for k in range(4):  # the same pixels, once put back on the network's grid
    put_back = preprocess_image(restored[..., k], SPACING, Preprocess(size=size, percentiles=WHOLE))
    low, high = restored[..., k].min(), restored[..., k].max()
    inside = preprocess_classes(np.ones(shape, int), SPACING, grid) == 1
    np.testing.assert_allclose(low + put_back[inside] * (high - low), probs[inside][:, k], atol=1e-6)


@given(shape=shapes, grid=grids, seed=st.integers(0, 2**32 - 1))
def test_restored_probabilities_are_probabilities_on_the_original_grid(shape, grid, seed):
  probs = np.random.default_rng(seed).dirichlet(np.ones(4), size=(shape[0], *grid.size))
  restored = restore_probabilities(probs, shape, SPACING, grid)
  assert restored.shape == (*shape, 4)
  assert restored.dtype == np.float32
  assert restored.min() >= 0.0
  np.testing.assert_allclose(restored.sum(-1), 1.0, atol=1e-5)


@given(shape=shapes, grid=grids, seed=st.integers(0, 2**32 - 1))
def test_classes_are_restored_as_their_certain_probabilities_are(shape, grid, seed):
  classes = np.random.default_rng(seed).integers(0, 4, (shape[0], *grid.size))
  restored = restore_classes(classes, shape, SPACING, grid)
  assert restored.shape == shape
  probs = np.sort(restore_probabilities(one_hot(classes), shape, SPACING, grid), axis=-1)
  clear = probs[..., -1] - probs[..., -2] > 1e-5  # rounding decides ties
  by_probabilities = restore_probabilities(one_hot(classes), shape, SPACING, grid).argmax(-1)
  np.testing.assert_array_equal(restored[clear], by_probabilities[clear])


@given(
  shape=st.tuples(st.just(2), st.integers(120, 160), st.integers(120, 160)),
  factor=st.floats(0.7, 2.0),  # the myocardium stays 5 pixels wide or more
  by_header=st.booleans(),
  centre=st.tuples(st.floats(0.4, 0.6), st.floats(0.45, 0.65)),
  radius=st.floats(0.165, 0.2),
)
@settings(max_examples=50)
def test_a_resampled_heart_comes_back_nearly_whole(shape, factor, by_header, centre, radius):
  size = (round(shape[1] * factor * 0.9), round(shape[2] * factor) + 9)  # cropped in one axis, padded in the other
  grid = Preprocess(size=size, spacing=SPACING[1] / factor) if by_header else Preprocess(size=size, zoom=factor)
  mask = heart(shape, centre, radius)
  prepared = preprocess_classes(mask, SPACING, grid)
  by_classes = restore_classes(prepared, shape, SPACING, grid)
  by_probabilities = restore_probabilities(one_hot(prepared), shape, SPACING, grid).argmax(-1)
  for k in (1, 2, 3):
    assert dice(by_classes, mask, k) > 0.95
    assert dice(by_probabilities, mask, k) > 0.95


# The field on a pixel of choice


centres = st.tuples(st.floats(-5, 30), st.floats(-5, 30))


@given(shape=shapes, size=sizes, centre=centres, seed=st.integers(0, 2**32 - 1))
def test_a_mask_within_any_field_comes_back_exactly_and_the_field_stays_in_the_image(shape, size, centre, seed):
  rng, grid = np.random.default_rng(seed), Preprocess(size=size)
  field = restore_classes(np.ones((shape[0], *size), np.uint8), shape, SPACING, grid, centre)
  assert field.sum() == shape[0] * min(shape[1], size[0]) * min(shape[2], size[1])
  mask = (rng.integers(0, 4, shape) * field).astype(np.uint8)
  prepared = preprocess_classes(mask, SPACING, grid, centre)
  np.testing.assert_array_equal(restore_classes(prepared, shape, SPACING, grid, centre), mask)
  probs = restore_probabilities(one_hot(prepared), shape, SPACING, grid, centre)
  np.testing.assert_array_equal(probs.argmax(-1), mask)


@given(shape=shapes, grid=grids)
def test_the_middle_of_the_image_is_the_default(shape, grid):
  voxels = np.random.default_rng(0).normal(size=shape)
  middle = [(n - 1) / 2 for n in shape[1:]]
  np.testing.assert_array_equal(
    preprocess_image(voxels, SPACING, grid), preprocess_image(voxels, SPACING, grid, middle)
  )


@given(
  shape=st.tuples(st.just(1), st.integers(60, 90), st.integers(60, 90)),
  at=st.tuples(st.integers(25, 35), st.integers(25, 35)),
  factor=st.floats(0.5, 1.5),
)
def test_the_field_is_put_on_the_centre_and_positions_in_it_lead_back(shape, at, factor):
  """A spot is in the middle of a small field about it, and where it is found in a whole image tells where it was."""
  mask = np.zeros(shape, np.uint8)
  mask[0, at[0] - 2 : at[0] + 3, at[1] - 2 : at[1] + 3] = 2
  assert foreground_centre(mask > 0) == at
  field = Preprocess(size=(13, 13), zoom=factor)
  found = np.argwhere(preprocess_classes(mask, SPACING, field, at)[0] == 2).mean(0)
  np.testing.assert_allclose(found, (6, 6), atol=1.01)
  whole = Preprocess(size=(150, 140), zoom=factor)
  found = np.argwhere(preprocess_classes(mask, SPACING, whole)[0] == 2).mean(0)
  np.testing.assert_allclose(restore_position(found, shape, SPACING, whole), at, atol=0.5 + 0.5 / factor)


def test_a_map_without_foreground_has_its_middle_as_centre():
  assert foreground_centre(np.zeros((2, 5, 8))) == (2.0, 3.5)
