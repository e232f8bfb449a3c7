"""What the value of a configuration field may be: its type and its range."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vamcei_jax.data.labels import CLASSES, are_label_values

_LARGEST = 3e38  # about the largest number of float32


class Rule(NamedTuple):
  """Which values a field accepts.

  accepts: value -> whether it is accepted.
  expected: what a value must be, as an error message ends with it.
  """

  accepts: Callable[[Any], bool]
  expected: str


def whole(low: int, high: int = 2**31 - 1) -> Rule:
  """A whole number. JAX counts with 32 bits."""
  return Rule(lambda value: type(value) is int and low <= value <= high, f"a whole number from {low} to {high}")


def number(low: float, high: float = _LARGEST) -> Rule:
  """A finite number, whole or not."""
  accepts = lambda value: type(value) in (int, float) and low <= value <= high
  return Rule(accepts, f"a number from {low:g} to {high:g}")


def choice(values: tuple[str, ...]) -> Rule:
  """One of these texts."""
  return Rule(lambda value: isinstance(value, str) and value in values, f"one of {', '.join(values)}")


def each(rule: Rule, count: int | None = None) -> Rule:
  """A tuple or list of `count` values, or of at least one, that the rule accepts."""

  def accepts(values: Any) -> bool:
    if not isinstance(values, list | tuple) or len(values) != (count or max(len(values), 1)):
      return False
    return all(map(rule.accepts, values))

  return Rule(accepts, f"{count or 'one or more'} values, each {rule.expected}")


def rising(pair: Rule, *, equal: bool = False) -> Rule:
  """A pair whose second value is larger than its first, or with `equal`, not smaller."""

  def accepts(values: Any) -> bool:
    return pair.accepts(values) and (values[0] < values[1] or (equal and values[0] == values[1]))

  return Rule(accepts, f"low and high: {pair.expected}")


def differing(values: Rule) -> Rule:
  """Values without a duplicate."""

  def accepts(value: Any) -> bool:
    return values.accepts(value) and len(set(value)) == len(value)

  return Rule(accepts, f"{values.expected}, none twice")


def optional(rule: Rule) -> Rule:
  """None, or a value that the rule accepts."""
  return Rule(lambda value: value is None or rule.accepts(value), f"{rule.expected}, or None")


def either(first: Rule, second: Rule) -> Rule:
  """A value that one of two rules accepts."""
  return Rule(lambda value: first.accepts(value) or second.accepts(value), f"{first.expected}, or {second.expected}")


TEXT = Rule(lambda value: isinstance(value, str) and value != "" and "\0" not in value, "a text")
FOLDER = Rule(lambda value: isinstance(value, str) and "\0" not in value, "a folder")
FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
SEED = whole(0, 2**32 - 1)  # PRNG keys repeat beyond
COUNT = whole(1)
STRENGTH = number(0)
SCALE = number(1e-6, 1e6)
SHARE = number(0, 1)
RATE = number(0, 1000)  # steps of Adam are bounded, so parameters stay finite
PIXELS = each(COUNT, 2)
LABELS = Rule(are_label_values, f"{len(CLASSES)} different values or tuples of values, one a class")
AXES = Rule(
  lambda axes: isinstance(axes, list | tuple) and all(type(axis) is int and axis in (0, 1) for axis in axes),
  "axes of the image, 0 and 1",
)
EMPTY = Rule(lambda value: isinstance(value, list | tuple) and not value, "()")
ROW = Rule(
  lambda row: isinstance(row, list | tuple) and len(row) == 2 and TEXT.accepts(row[0]) and isinstance(row[1], Mapping),
  "a name and a dictionary of the fields that the row changes",
)
OPTION = either(whole(0), TEXT)


def shortened(value: object) -> str:
  """A value in an error message: on one line of at most 100 characters."""
  try:
    line = " ".join(reprlib.repr(value).split())
  except ValueError:  # Python formats no number of more than 4300 digits
    return "a number without end"
  return line if len(line) <= 100 else f"{line[:100]}..."
