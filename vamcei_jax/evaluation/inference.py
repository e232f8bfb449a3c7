"""Whole volumes through a network: slices in batches of one fixed shape."""

from collections.abc import Callable

import numpy as np

BATCH = 16


def predict_volume(predict: Callable, params, image: np.ndarray) -> np.ndarray:
  """Class probabilities (D, h, w, K) of a prepared volume (D, h, w).

  Args:
    predict: jitted (params, images (B, h, w, 1)) -> probabilities (B, h, w, K). It sees batches of BATCH slices, the
      last one padded with zeros, so volumes of any depth share one compilation.
  """
  depth = len(image)
  padded = np.pad(image, ((0, -depth % BATCH), (0, 0), (0, 0)))[..., None]
  batches = np.split(padded, len(padded) // BATCH)
  return np.concatenate([np.asarray(predict(params, batch)) for batch in batches])[:depth]
