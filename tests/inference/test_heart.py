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
