"""The apical end of a short-axis stack: which end it is, and how much rarer the structures are near it."""

from collections.abc import Iterable

import numpy as np

from vamcei_jax.data.labels import STRUCTURES

STEP, ROWS = 5.0, 2  # mm from one row of apical_odds to the next, and how many there are
WIDTH = 5.0  # mm, standard deviation of the Gaussian by which slices count for a row


def widens(area: np.ndarray) -> bool:
  """Whether the heart of a stack widens from the first slice to the last, so that the first ones are the apical ones.

  Args:
    area: (D,) pixels of structures in each slice; base and apex themselves may be cut off. True where nothing tells.
  """
  filled = np.flatnonzero(area)
  return not len(filled) or bool(np.average(np.arange(len(area)), weights=area) >= (filled[0] + filled[-1]) / 2)


def beyond_apex(area: np.ndarray) -> np.ndarray:
  """Which slices (D,) of a stack are empty and lie beyond the apex; area as in widens. None where all are empty."""
  filled, number = np.flatnonzero(area), np.arange(len(area))
  if not len(filled):
    return np.zeros(len(area), bool)
  return number < filled[0] if widens(area) else number > filled[-1]


def apical_odds(masks: Iterable[tuple[np.ndarray, float]]) -> np.ndarray:
  """How frequent each structure is near the apical end of a stack, against its frequency where there is a heart.

  A heart has no right ventricle at its apex, and annotators leave the last few millimetres out; a network that sees one
  slice does not know where in the stack it lies. By Bayes' rule these are the factors by which `shift_prior` tells it.
  Only of the end itself: stacks of different domains begin near the apex, and then go on in different steps.

  Args:
    masks: (D, H, W) class indices of each stack, and mm between its slices. Stacks without a structure tell nothing.

  Returns:
    (ROWS, K - 1) odds of Myo, LV and RV against background, at 0, STEP, 2 STEP, … mm from the first slice of the apical
    end, at most 1: what annotators do at the base differs, so nothing becomes more frequent there.
  """
  positions, frequencies = [], []
  for mask, distance in masks:
    if (area := np.count_nonzero(mask, axis=(1, 2))).any():
      stack = mask if widens(area) else mask[::-1]
      positions.append(distance * np.arange(len(stack)))
      frequencies.append(np.stack([(stack == index).mean((1, 2)) for index in range(1 + len(STRUCTURES))], -1))
  positions, frequencies = np.concatenate(positions), np.concatenate(frequencies)
  near = np.exp(-0.5 * ((STEP * np.arange(ROWS)[:, None] - positions) / WIDTH) ** 2)
  there = near @ frequencies / near.sum(1, keepdims=True)
  usual = frequencies[frequencies[:, 1:].any(1)].mean(0)
  odds = (there[:, 1:] / there[:, :1]) / (usual[1:] / usual[0])
  return np.clip(odds, 1e-6, 1.0)
