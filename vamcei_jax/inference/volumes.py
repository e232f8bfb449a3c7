"""Whole volumes through a network, in batches of one fixed shape."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from vamcei_jax.prng import example_keys

BATCH = 4  # Stacks of LGE have 5 to 18 slices: what is padded costs time.


def predict_volume(predict: Callable, params: Any, image: np.ndarray, key: Array | None = None) -> np.ndarray:
  """Class probabilities (D, h, w, K) of a prepared volume (D, h, w).

  Args:
    predict: jitted (params, images (B, h, w, 1), keys (B,) if there is a key) -> probabilities (B, h, w, K). It is
      called with BATCH slices, the last batch padded with zeros, so that volumes of any depth share one compilation.
    params: first argument of `predict`.
    image: in [0, 1].
    key: for networks that sample their latents; a slice's key is folded from it and the slice's number.
  """
  depth = len(image)
  padded = np.pad(image, ((0, -depth % BATCH), (0, 0), (0, 0)))[..., None]
  probs = []
  for start in range(0, len(padded), BATCH):
    keys = () if key is None else (example_keys(key, jnp.asarray(start + np.arange(BATCH))),)
    probs.append(predict(params, padded[start : start + BATCH], *keys))
  # All batches are dispatched before the first result is waited for.
  return np.concatenate([np.asarray(each) for each in probs])[:depth]


def translate_volume(translate: Callable, networks: Mapping, direction: str, image: np.ndarray) -> np.ndarray:
  """A prepared volume (D, h, w) in the other domain's contrast; `direction` is a key of cyclegan.DIRECTIONS."""
  return predict_volume(translate, networks["translators"][direction], image)[..., 0]
