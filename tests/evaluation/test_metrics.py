"""Overlaps, distances and volumes against hand, brute force, SciPy and SimpleITK."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from vamcei_jax.evaluation.metrics import METRICS, dice, measure, measure_structure, surface_distances

SPACING = (8.0, 1.25, 0.75)


def test_dice_of_boxes_by_hand():
  prediction, truth = np.zeros((2, 10, 10), int), np.zeros((2, 10, 10), int)
  truth[:, 0:4, 0:5] = 1  # 40 voxels
  prediction[:, 2:6, 0:5] = 1  # 40, of which 20 overlap
  truth[0, 8, 0] = 2  # missed
  scores = dice(prediction, truth)
  assert scores == {"Myo": 0.5, "LV": 0.0, "RV": 1.0}  # RV: in neither


def test_dice_is_of_the_volume_not_the_mean_of_slices():
  prediction, truth = np.zeros((2, 4, 4), int), np.zeros((2, 4, 4), int)
  truth[0, :, :] = prediction[0, :, :] = 3
  truth[1, 0, 0] = 3
  assert dice(prediction, truth)["RV"] == pytest.approx(2 * 16 / 33)


def test_overlaps_and_volumes_of_boxes_by_hand():
  prediction, truth = np.zeros((2, 10, 10), int), np.zeros((2, 10, 10), int)
  truth[:, 0:4, 0:5] = 1  # 40 voxels
  prediction[:, 2:8, 0:5] = 1  # 60, of which 20 overlap
  scores = measure(prediction, truth, (10.0, 2.0, 2.0))["Myo"]  # a voxel of 0.04 ml
  expected = {
    "dice": 0.4,
    "jaccard": 0.25,
    "sensitivity": 0.5,
    "precision": 1 / 3,
    "volume_difference_ml": 0.8,
    "volume_ml": 2.4,
    "true_volume_ml": 1.6,
    "mass_g": 2.52,
    "true_mass_g": 1.68,
  }
  assert {name: scores[name] for name in expected} == pytest.approx(expected)
  assert set(scores) == set(METRICS)
  assert set(measure(prediction, truth, SPACING)["LV"]) == set(METRICS) - {"mass_g", "true_mass_g"}


@pytest.mark.parametrize(("axis", "voxels"), [(0, 2), (1, 5), (2, 7)])
def test_parallel_plates_are_as_far_apart_as_the_spacing_says(axis, voxels):
  a = np.zeros((12, 12, 12), bool)
  a[(slice(2, 10),) * axis + (2,)] = True  # across the whole box along the other axes
  assert surface_distances(a, np.roll(a, voxels, axis), SPACING) == pytest.approx((voxels * SPACING[axis],) * 2)


def test_a_box_and_its_half_by_hand():
  """Bars of one voxel across: 10 and 5 voxels of 8 mm, all of them surface, the second one the first half."""
  a, b = np.zeros((12, 3, 3), bool), np.zeros((12, 3, 3), bool)
  a[1:11, 1, 1] = b[1:6, 1, 1] = True
  assd, hd95 = surface_distances(a, b, SPACING)
  # Distances from a to b: 0 five times, 8, 16, 24, 32, 40; from b to a: 0 five times.
  assert assd == pytest.approx(120 / 15)
  assert hd95 == pytest.approx(32 + 0.55 * 8)  # of a to b: position 0.95 · 9 = 8.55 of the sorted distances


def test_hd95_is_the_larger_directed_percentile_not_that_of_all_distances():
  """A bar of 10 voxels, and the same bar with one voxel 4 slices (32 mm) above it."""
  truth = np.zeros((5, 3, 12), bool)
  truth[0, 1, 1:11] = True
  prediction = truth.copy()
  prediction[4, 1, 5] = True
  # From the prediction: 0 ten times, 32, and position 0.95 · 10 = 9.5 lies between 0 and 32. From the truth: 0.
  # All 21 distances together: position 0.95 · 20 = 19 is 0, the last but one.
  expected = pytest.approx((32 / 21, 16.0))
  assert surface_distances(prediction, truth, SPACING) == expected
  assert surface_distances(truth, prediction, SPACING) == expected


def test_concentric_spheres_are_the_difference_of_their_radii_apart():
  spacing = np.array([1.5, 0.5, 0.75])
  grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in (18, 54, 36)), indexing="ij"), -1) * spacing
  radius = np.linalg.norm(grid, axis=-1)
  assd, hd95 = surface_distances(radius <= 24, radius <= 16, spacing)
  # A surface voxel's centre lies within a voxel of the sphere, inside.
  assert assd == pytest.approx(8.0, abs=0.5 * spacing.max())
  assert hd95 == pytest.approx(8.0, abs=spacing.max())
  assert assd <= hd95


@st.composite
def shapes(draw):
  """Two random masks, not empty, of a few blobs that may touch the border, and a spacing."""
  size = draw(st.tuples(*[st.integers(1, 14)] * 3))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  masks = []
  for _ in range(2):
    smooth = ndimage.gaussian_filter(rng.standard_normal(size), draw(st.floats(0.3, 2.0)))
    masks.append(smooth >= np.quantile(smooth, draw(st.floats(0.3, 0.99))))
  assume(all(mask.any() for mask in masks))
  return *masks, draw(st.tuples(*[st.floats(0.2, 10.0)] * 3))


def surface(mask):
  """Voxels with background, or the border, beside one of their faces, without morphology."""
  padded = np.pad(mask, 1)
  inside = np.all([np.roll(padded, step, axis) for axis in range(3) for step in (-1, 1)], axis=0)
  return (padded & ~inside)[1:-1, 1:-1, 1:-1]


def assd_and_hd95(from_a, from_b):
  """Of the distances of two surfaces to each other; the percentile by linear interpolation, written out."""
  percentiles = []
  for distances in map(np.sort, (from_a, from_b)):
    position = 0.95 * (len(distances) - 1)
    below, above = distances[int(np.floor(position))], distances[int(np.ceil(position))]
    percentiles.append(below + (position % 1) * (above - below))
  return (from_a.sum() + from_b.sum()) / (len(from_a) + len(from_b)), max(percentiles)


@settings(max_examples=60)
@given(shapes())
def test_distances_agree_with_all_pairs_and_with_distance_transforms(drawn):
  a, b, spacing = drawn
  pairs = cdist(*(np.argwhere(surface(mask)) * spacing for mask in (a, b)))
  to_a, to_b = (ndimage.distance_transform_edt(~surface(mask), sampling=spacing) for mask in (a, b))
  for from_a, from_b in ((pairs.min(1), pairs.min(0)), (to_b[surface(a)], to_a[surface(b)])):
    expected = assd_and_hd95(from_a, from_b)
    assert surface_distances(a, b, spacing) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@settings(max_examples=60)
@given(shapes())
def test_distances_agree_with_those_of_simpleitk(drawn):
  """Its distance maps give ASSD and HD95, and its Hausdorff distance is the largest of the same distances."""
  a, b, spacing = drawn
  images = [sitk.GetImageFromArray(np.pad(surface(mask), 1).astype(np.uint8)) for mask in (a, b)]
  for image in images:
    image.SetSpacing(spacing[::-1])
  distance_map = lambda image: sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
  to_a, to_b = (sitk.GetArrayFromImage(sitk.Abs(distance_map(image)))[1:-1, 1:-1, 1:-1] for image in images)
  from_a, from_b = to_b[surface(a)], to_a[surface(b)]
  assert surface_distances(a, b, spacing) == pytest.approx(assd_and_hd95(from_a, from_b), rel=1e-4, abs=1e-5)
  hausdorff = sitk.HausdorffDistanceImageFilter()
  hausdorff.Execute(*images)
  assert max(from_a.max(), from_b.max()) == pytest.approx(hausdorff.GetHausdorffDistance(), rel=1e-4, abs=1e-5)


@settings(max_examples=40)
@given(shapes(), st.floats(0.1, 10.0))
def test_distances_are_symmetric_zero_on_identity_and_scale_with_spacing(drawn, factor):
  a, b, spacing = drawn
  distances = surface_distances(a, b, spacing)
  assert surface_distances(b, a, spacing) == pytest.approx(distances)
  assert surface_distances(a, a, spacing) == (0.0, 0.0)
  assert surface_distances(a, b, np.multiply(spacing, factor)) == pytest.approx(np.multiply(distances, factor))


def test_what_lies_around_the_masks_changes_nothing():
  rng = np.random.default_rng(0)
  a, b = rng.random((2, 4, 9, 7)) > 0.6
  wide = [np.pad(mask, ((3, 2), (40, 10), (0, 30))) for mask in (a, b)]
  # But for the border, beside which a voxel is surface: here it has background beside it all the same.
  assert surface_distances(*wide, SPACING) == pytest.approx(surface_distances(a, b, SPACING))


def test_empty_masks_are_what_the_table_says():
  empty, full = np.zeros((3, 30, 40), bool), np.zeros((3, 30, 40), bool)
  full[1, 4:9, 4:9] = True
  diagonal = float(np.hypot(np.hypot(3 * 8.0, 30 * 1.25), 40 * 0.75))
  in_words = {"0": 0.0, "1": 1.0, "the volume's diagonal": diagonal}
  for column, masks in enumerate([(empty, empty), (empty, full), (full, empty)]):
    scores = measure_structure(*masks, SPACING)
    for name, metric in METRICS.items():
      if metric.empty:
        assert scores[name] == pytest.approx(in_words[metric.empty[column]]), (name, column)
    volume = 25 * 8.0 * 1.25 * 0.75 / 1000
    assert scores["volume_difference_ml"] == pytest.approx((0, -volume, volume)[column])
