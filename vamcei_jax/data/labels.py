"""The classes, by index, and their label values in files."""

from collections.abc import Sequence

import numpy as np

CLASSES = ("background", "Myo", "LV", "RV")
STRUCTURES = CLASSES[1:]

# Of each class, its value in masks, or several values that are folded into the class. Masks are written with the first.
LabelValues = Sequence[int | Sequence[int]]
LABEL_VALUES = (0, 200, 500, 600)  # MS-CMRSeg's


def folded_values(label_values: LabelValues) -> tuple[tuple[int, ...], ...]:
  """The values of each class as a tuple, also of a class that has one value."""
  return tuple(tuple(values) if isinstance(values, Sequence) else (values,) for values in label_values)


def first_values(label_values: LabelValues) -> tuple[int, ...]:
  """The value of each class in masks that are written."""
  return tuple(values[0] for values in folded_values(label_values))


def class_indices(mask: np.ndarray, label_values: LabelValues) -> np.ndarray:
  """Class indices of a mask that was written with these label values; background where a voxel has another value."""
  classes = np.zeros(mask.shape, np.uint8)
  for index, value in enumerate(first_values(label_values)):
    classes[mask == value] = index
  return classes


def are_label_values(values: object) -> bool:
  """Whether these are LabelValues: integers of 32 bits, one or several for each class, none of them for two classes."""
  if not isinstance(values, list | tuple) or len(values) != len(CLASSES):
    return False
  folded = [of_class if isinstance(of_class, list | tuple) else (of_class,) for of_class in values]
  every = [value for of_class in folded for value in of_class]
  integers = all(type(value) is int and abs(value) < 2**31 for value in every)
  return integers and all(folded) and len(set(every)) == len(every)
