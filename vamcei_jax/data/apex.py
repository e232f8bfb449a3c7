"""The apical end of a short-axis stack: which end it is, and how much rarer the structures are there."""

from collections.abc import Iterable

import numpy as np

from vamcei_jax.data.labels import STRUCTURES

STEP, ROWS = 5.0, 2  # mm from one row of apical_odds to the next, and their number; weights that are shipped hold such
WIDTH = 5.0  # mm, standard deviation of the Gaussian by which slices count for a row
LEAST = 0.01  # of odds: that no source has a structure there does not say that no heart can


def starts_at_apex(area: np.ndarray) -> bool | None:
  """Whether the first slice of a stack lies at its apical end, where hearts are small; None where nothing tells.

  Args:
    area: (D,) pixels of structures in each slice. Base and apex themselves may be cut off, and single pixels be wrong.
  """
  filled = np.flatnonzero(area)
  if len(filled) < 2:
    return None
  # The whole stack tells where the heart is wide, as its last slices may be cut.
  lean = np.average(np.arange(len(area)), weights=area) - filled.mean()
  return None if lean == 0.0 else bool(lean > 0.0)


def beyond_apex(area: np.ndarray) -> np.ndarray:
  """Which slices (D,) of a stack are empty and lie beyond the apex, if it is known; area as in starts_at_apex."""
  filled, number, first = np.flatnonzero(area), np.arange(len(area)), starts_at_apex(area)
  if first is None:
    return np.zeros(len(area), bool)
  return number < filled[0] if first else number > filled[-1]


def apical_odds(masks: Iterable[tuple[np.ndarray, float]]) -> np.ndarray:
  """How frequent each structure is at the apical end of a stack, against its frequency in slices that show a heart.

  A heart has no right ventricle at its apex, and annotators leave the last few millimetres out; a network that sees one
  slice does not know where in the stack it lies. Where it has learned from slices with a heart in them, these are, by
  Bayes' rule, the factors by which `shift_prior` tells it. They are of the end alone: stacks of different domains begin
  near the apex, and then go on in steps of their own.

  Args:
    masks: (D, H, W) class indices of each stack, and mm between its slices. Those that tell of no apex do not count.

  Returns:
    (ROWS, K - 1) odds of Myo, LV and RV against background, at 0, STEP, … mm from the first slice of the apical end,
    LEAST to 1; ones where a structure, or a heart, is in none of the masks.
  """
  positions, frequencies = [np.zeros(0)], [np.zeros((0, 1 + len(STRUCTURES)))]
  for mask, distance in masks:
    if (first := starts_at_apex(np.count_nonzero(mask, axis=(1, 2)))) is not None:
      stack = mask if first else mask[::-1]
      positions.append(distance * np.arange(len(stack)))
      frequencies.append(np.stack([(stack == index).mean((1, 2)) for index in range(1 + len(STRUCTURES))], -1))
  positions, frequencies = np.concatenate(positions), np.concatenate(frequencies)
  if not len(positions):
    return np.ones((ROWS, len(STRUCTURES)))
  near = np.exp(-0.5 * ((STEP * np.arange(ROWS)[:, None] - positions) / WIDTH) ** 2)
  there = near @ frequencies / near.sum(1, keepdims=True)
  usual = frequencies[frequencies[:, 1:].any(1)].mean(0)
  seen = usual[1:] > 0.0
  odds = np.ones((ROWS, len(STRUCTURES)))
  odds[:, seen] = (there[:, 1:] / there[:, :1])[:, seen] / (usual[1:] / usual[0])[seen]
  return np.clip(odds, LEAST, 1.0)
