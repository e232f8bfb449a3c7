"""What the tests of all losses share: a seeded generator."""

import numpy as np
import pytest


@pytest.fixture
def rng():
  return np.random.default_rng(0)
