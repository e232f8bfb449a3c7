"""The centre of the heart in a coarse segmentation."""

import numpy as np
import pytest

from vamcei_jax.inference.heart import find_heart


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
