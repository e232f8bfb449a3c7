"""Which end of a stack is the apical one, and what masks tell of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vamcei_jax.data.apex import LEAST, ROWS, STEP, apical_odds, beyond_apex, starts_at_apex
from vamcei_jax.phantom.scanner import draw_patient

areas = st.tuples(
  st.integers(0, 3), st.lists(st.integers(1, 500), min_size=2, max_size=9, unique=True), st.integers(0, 3)
)


@given(areas)
def test_a_heart_widens_towards_its_base_whichever_way_it_is_stacked(drawn):
  before, filled, after = drawn
  area = np.array([0] * before + sorted(filled) + [0] * after)
  assert starts_at_apex(area) is True
  assert starts_at_apex(area[::-1]) is False
  beyond = np.arange(len(area)) < before
  np.testing.assert_array_equal(beyond_apex(area), beyond)
  np.testing.assert_array_equal(beyond_apex(area[::-1]), beyond[::-1])


def test_a_base_that_is_cut_misleads_nobody():
  area = np.array([0, 20, 40, 60, 60, 30, 0])
  assert starts_at_apex(area) is True
  assert starts_at_apex(area[::-1]) is False


def test_a_stray_pixel_misleads_nobody():
  heart = np.array([0, 10, 20, 30, 40, 50, 60, 70, 80, 0, 0, 0])
  for slice in (0, -1):
    strewn = heart.copy()
    strewn[slice] = 1
    assert starts_at_apex(strewn)
    assert starts_at_apex(strewn[::-1]) is False


@pytest.mark.parametrize("area", [[0, 0, 0, 0], [0, 7, 0], [7], [5, 5], [0, 3, 8, 3]])
def test_what_does_not_widen_tells_of_no_apex(area):
  assert starts_at_apex(np.array(area)) is None
  assert not beyond_apex(np.array(area)).any()


def test_the_phantoms_hearts_widen_as_they_are_drawn():
  for number in range(4):
    mask = draw_patient(0, number, "bssfp").classes
    assert starts_at_apex(np.count_nonzero(mask, axis=(1, 2)))


def cone(depth, apex, turned=False):
  """RV from the third slice of the heart on, Myo and LV in all; `apex` empty slices before it."""
  mask = np.zeros((apex + depth, 10, 10), np.uint8)
  for level in range(depth):
    mask[apex + level, :2, : 1 + level] = 1
    mask[apex + level, 2:4, : 1 + level] = 2
    mask[apex + level, 4:6, : 1 + level] = 3 * (level >= 2)
  return mask[::-1] if turned else mask


def test_odds_are_those_of_the_frequencies_near_the_apical_end(monkeypatch):
  monkeypatch.setattr("vamcei_jax.data.apex.WIDTH", 0.5)  # each row is of the slices that lie there
  masks = [cone(12, 1), cone(12, 1, turned=True), np.zeros((4, 10, 10), np.uint8)]
  monkeypatch.setattr("vamcei_jax.data.apex.ROWS", 13)
  odds = apical_odds([(mask, STEP) for mask in masks])
  assert odds.shape == (13, 3)
  filled = masks[0][1:]
  usual = np.array([(filled == index).mean() for index in range(4)])
  for row in range(13):
    there = np.array([(masks[0][row] == index).mean() for index in range(4)])
    expected = np.minimum(1.0, there[1:] / there[0] / (usual[1:] / usual[0]))
    np.testing.assert_allclose(odds[row], np.maximum(expected, LEAST), rtol=1e-5)
  assert (np.diff(odds, axis=0) >= 0.0).all()


def test_odds_are_told_by_mm_not_by_slices():
  coarse, fine = cone(6, 1), np.repeat(cone(6, 1), 2, axis=0)
  np.testing.assert_allclose(apical_odds([(fine, STEP)]), apical_odds([(coarse, 2 * STEP)]), atol=0.12)


def test_what_masks_do_not_show_they_say_nothing_of():
  without = np.where(cone(6, 1) == 3, 0, cone(6, 1))
  odds = apical_odds([(without, STEP), (cone(1, 0), STEP)])
  np.testing.assert_array_equal(odds[:, 2], 1.0)
  assert (odds[:, :2] < 1.0).all()
  for masks in ([], [(np.zeros((4, 10, 10), np.uint8), STEP)], [(cone(1, 0), STEP)]):
    np.testing.assert_array_equal(apical_odds(masks), np.ones((ROWS, 3)))
