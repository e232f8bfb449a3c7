import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vamcei_jax.data.slices import beyond_apex, selected_slices, starts_at_apex
from vamcei_jax.phantom.scanner import draw_patient

areas = st.tuples(
  st.integers(0, 3), st.lists(st.integers(1, 500), min_size=2, max_size=9, unique=True), st.integers(0, 3)
)


@given(areas)
def test_a_heart_widens_towards_its_base_in_either_order_of_the_slices(drawn):
  before, filled, after = drawn
  area = np.array([0] * before + sorted(filled) + [0] * after)
  assert starts_at_apex(area) is True
  assert starts_at_apex(area[::-1]) is False
  beyond = np.arange(len(area)) < before
  np.testing.assert_array_equal(beyond_apex(area), beyond)
  np.testing.assert_array_equal(beyond_apex(area[::-1]), beyond[::-1])


def test_a_cut_base_does_not_change_the_end():
  area = np.array([0, 20, 40, 60, 60, 30, 0])
  assert starts_at_apex(area) is True
  assert starts_at_apex(area[::-1]) is False


def test_a_stray_pixel_does_not_change_the_end():
  heart = np.array([0, 10, 20, 30, 40, 50, 60, 70, 80, 0, 0, 0])
  for slice in (0, -1):
    strewn = heart.copy()
    strewn[slice] = 1
    assert starts_at_apex(strewn)
    assert starts_at_apex(strewn[::-1]) is False


@pytest.mark.parametrize("area", [[0, 0, 0, 0], [0, 7, 0], [7], [5, 5], [0, 3, 8, 3]])
def test_the_apex_of_a_heart_that_does_not_widen_is_unknown(area):
  assert starts_at_apex(np.array(area)) is None
  assert not beyond_apex(np.array(area)).any()


def test_the_phantoms_hearts_start_at_the_apex():
  for number in range(4):
    mask = draw_patient(0, number, "bssfp").classes
    assert starts_at_apex(np.count_nonzero(mask, axis=(1, 2)))


@pytest.mark.parametrize(
  ("empty_slices", "selected"),
  [("all", [1, 1, 1, 1, 1, 1, 1]), ("apical", [1, 1, 1, 0, 1, 1, 0]), ("none", [0, 0, 1, 0, 1, 1, 0])],
)
def test_slices_with_a_structure_are_selected_and_of_the_empty_ones_those_that_are_wanted(empty_slices, selected):
  area = np.array([0, 0, 4, 0, 8, 9, 0])
  np.testing.assert_array_equal(selected_slices(area, empty_slices), np.array(selected, bool))
  np.testing.assert_array_equal(selected_slices(area[::-1], empty_slices), np.array(selected, bool)[::-1])
