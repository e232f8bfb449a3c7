"""The classes, by index, and the values that stand for them in files."""

from collections.abc import Sequence

CLASSES = ("background", "Myo", "LV", "RV")
STRUCTURES = CLASSES[1:]

# What a mask holds for each class: one value, or several that are folded into the class. Masks are written with the
# first.
LabelValues = Sequence[int | Sequence[int]]
LABEL_VALUES: LabelValues = (0, 200, 500, 600)  # MS-CMRSeg's


def folded_values(label_values: LabelValues) -> tuple[tuple[int, ...], ...]:
  """The values of each class, as tuples throughout."""
  return tuple(tuple(values) if isinstance(values, Sequence) else (values,) for values in label_values)


def are_label_values(values: object) -> bool:
  """Whether these are LabelValues: whole numbers of 32 bits, one or several for each class, and none for two."""
  listed = lambda some: isinstance(some, list | tuple)
  if not listed(values) or len(values) != len(CLASSES):
    return False
  folded = [own if listed(own) else (own,) for own in values]
  every = [value for own in folded for value in own]
  whole = all(type(value) is int and abs(value) < 2**31 for value in every)
  return whole and all(folded) and len(set(every)) == len(every)
