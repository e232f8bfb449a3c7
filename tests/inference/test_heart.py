"""The centre of the heart in a coarse segmentation."""

import numpy as np
import pytest
from nibabel.orientations import apply_orientation

from vamcei_jax.data.geometry import TURNS
from vamcei_jax.inference.heart import find_heart, look_turned


def test_the_heart_is_the_largest_component():
  probs = np.zeros((3, 20, 30, 4))
  probs[..., 0] = 0.6
  probs[:2, 4:9, 10:17, 2] = 1.0  # centre (6, 13)
  probs[2, 15:18, 25:28, 3] = 1.0
  assert find_heart(probs) == pytest.approx((6.0, 13.0))
  probs[..., 1:] = 0.0
  assert find_heart(probs) is None


def test_the_largest_component_is_that_of_most_voxels():
  probs = np.zeros((4, 20, 30, 4))
  probs[..., 0] = 0.6
  probs[:, 4:8, 10:14, 2] = 1.0  # 64 voxels, centre (5.5, 11.5)
  probs[1, 12:18, 20:27, 3] = 1.0  # 42 voxels, which cover more pixels
  assert find_heart(probs) == pytest.approx((5.5, 11.5))


@pytest.mark.parametrize("number", range(8))
def test_a_turned_look_gives_probabilities_on_the_grid_of_the_image(number):
  """The network sees the turned slices, and what it says of a pixel comes back to that pixel."""
  image = np.random.default_rng(0).uniform(size=(2, 5, 7))
  seen = []

  def look(turned):
    seen.append(turned)
    return np.stack([1 - turned, turned], axis=-1)

  probs = look_turned(look, TURNS[number], image)
  np.testing.assert_array_equal(probs[..., 1], image)
  np.testing.assert_array_equal(seen[0], apply_orientation(image, TURNS[number]))
