"""Where the heart is, and how its slices lie, by a coarse segmentation of whole images."""

from collections.abc import Callable

import numpy as np
from nibabel.orientations import apply_orientation, ornt_transform
from scipy import ndimage

from vamcei_jax.data.geometry import TURNS
from vamcei_jax.data.preprocess import Centre, Preprocess, restore_position
from vamcei_jax.inference.uncertainty import entropy


def find_heart(probs: np.ndarray) -> tuple[float, float] | None:
  """The centre (row, column) of the heart in a stack of class probabilities (D, h, w, K); None without a structure.

  It is the centre of mass of the structures, summed over slices, in their largest connected patch. Other patches, where
  the network segments something that is no heart, do not move it.
  """
  plane = (probs.argmax(-1) > 0).sum(axis=0)
  patches, count = ndimage.label(plane)
  if not count:
    return None
  sizes = ndimage.sum_labels(plane, patches, np.arange(1, count + 1))
  return ndimage.center_of_mass(plane * (patches == 1 + sizes.argmax()))


def find_turn(look: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> int:
  """The number in TURNS of the turn that a network is surest of: with it, its class probabilities have least entropy.

  Args:
    look: image -> class probabilities (D, h, w, K).
    image: (D, h, w), prepared for the network.
  """
  return min(range(len(TURNS)), key=lambda number: entropy(look_turned(look, TURNS[number], image)).mean())


def look_turned(look: Callable[[np.ndarray], np.ndarray], turn: np.ndarray, image: np.ndarray) -> np.ndarray:
  """Class probabilities of an image (D, h, w), of which the network sees the slices turned as one of TURNS says."""
  return apply_orientation(look(apply_orientation(image, turn)), ornt_transform(TURNS[0], turn))


def find_centre(
  look: Callable[[np.ndarray], np.ndarray], image: np.ndarray, shape: tuple, spacing: tuple, settings: Preprocess
) -> Centre:
  """The pixel (row, column) of the original grid on which the heart is centred; None where no heart is found.

  Args:
    look: image -> class probabilities (D, h, w, K) of the stage `locate`.
    image: (D, h, w), prepared with `settings`.
    shape, spacing: of the original volume.
    settings: of the stage `locate`.
  """
  heart = find_heart(look(image))
  return None if heart is None else restore_position(heart, shape, spacing, settings)
