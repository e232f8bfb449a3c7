"""Slices without a structure: the apical end of a short-axis stack, and the empty slices beyond the apex."""

import numpy as np


def starts_at_apex(area: np.ndarray) -> bool | None:
  """Whether the first slice of a stack lies at its apical end, where hearts are small.

  Args:
    area: (D,) pixels of structures in each slice. Base and apex may be cut off, and single pixels be wrong.

  Returns:
    None where the areas do not tell the two ends apart.
  """
  filled = np.flatnonzero(area)
  if len(filled) < 2:
    return None
  # All slices count: the last ones may be cut, so that they are no longer the widest.
  lean = np.average(np.arange(len(area)), weights=area) - filled.mean()
  return None if lean == 0.0 else bool(lean > 0.0)


def beyond_apex(area: np.ndarray) -> np.ndarray:
  """Whether each slice (D,) of a stack is empty and lies beyond the apex; False throughout where the apex is unknown.

  Args:
    area: (D,) pixels of structures in each slice, see `starts_at_apex`.
  """
  filled, number, first = np.flatnonzero(area), np.arange(len(area)), starts_at_apex(area)
  if first is None:
    return np.zeros(len(area), bool)
  return number < filled[0] if first else number > filled[-1]


def selected_slices(area: np.ndarray, empty_slices: str) -> np.ndarray:
  """Whether each slice (D,) of a source's stack is used for training.

  Args:
    area: (D,) pixels of structures in each slice.
    empty_slices: which slices without a structure are used: "all", "apical" (those beyond the apex) or "none".
  """
  if empty_slices == "all":
    return np.ones(len(area), bool)
  selected = area > 0
  return selected | beyond_apex(area) if empty_slices == "apical" else selected
