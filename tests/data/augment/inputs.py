"""Strengths and images for the tests of augmentation."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

GEOMETRY = {"rotation": 0.5, "scale": 0.3, "shift": 5.0}
INTENSITY = {"gamma": 0.5, "contrast": 0.5, "bias": 0.5, "blur": 1.0, "noise": 0.2, "gin": 1.0, "ipa": 0.5}
CARDIAC = {"scar": 0.5, "contraction": 0.5}
OFF = dict.fromkeys((*GEOMETRY, "upright", *INTENSITY, *CARDIAC), 0.0)


def strengths(**amounts):
  """Strengths that are 0 but for those given."""
  return SimpleNamespace(**OFF | {"flip": ()} | amounts)


def heart():
  """Image and label (64, 64): a bright cavity in a dark ring, beside a right ventricle."""
  y, x = np.mgrid[:64, :64]
  radius = np.hypot(y - 32, x - 36)
  label = np.where(radius < 10, 2, np.where(radius < 16, 1, np.where((x < 24) & (radius < 30), 3, 0))).astype(np.uint8)
  return jnp.asarray(np.array([0.3, 0.15, 0.6, 0.6], np.float32)[label]), jnp.asarray(label)
