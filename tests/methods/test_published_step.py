"""The step with the published layers, against numbers of the PyTorch twin; see tests/experiments/test_torch_twin.py."""

import json
from pathlib import Path

import jax
import numpy as np

from tests.methods import published
from vamcei_jax.methods import vamcei

STORED = Path(__file__).with_name("published_step.json")


def test_losses_and_norms_of_gradients_are_those_of_the_pytorch_twin():
  config = published.small_config()
  step = jax.jit(vamcei.make_step(config))
  _, metrics = step(published.make_state(config), published.make_batch(config))
  for name, value in json.loads(STORED.read_text(encoding="utf-8")).items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-3 if "gradient" in name else 1e-4, err_msg=name)
