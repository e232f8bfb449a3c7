"""Charts of the report: what they show, in the units of an SVG image, which the template draws.

Drawn by the template, they have the page's colours, light or dark, and their text is escaped as all other text.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from vamcei_jax.evaluation.metrics import METRICS
from vamcei_jax.evaluation.statistics import Scores, agreement, amounts, structures_of

LEFT, RIGHT, TOP, BOTTOM = 54, 338, 30, 200  # of the area between the axes
LABELLED = RIGHT - 26  # RIGHT where lines have a text
MAIN_CURVES = {"dice": "Validation Dice, mean of the structures", "loss": "Training loss"}


@dataclasses.dataclass(frozen=True)
class Line:
  """A line through points, or a dot if it has one point.

  series: number of its colour.
  points: (N, 2) in the units of the image.
  """

  series: int
  points: np.ndarray

  @property
  def path(self) -> str:
    """The points as SVG writes them."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclasses.dataclass(frozen=True)
class Dot:
  """A dot for a patient: the number of its colour, its place, and a text that appears under the pointer."""

  series: int
  x: float
  y: float
  text: str


@dataclasses.dataclass(frozen=True)
class Box:
  """A box of a box plot: the number of its colour, its left edge and width, and the heights of its lines."""

  series: int
  x: float
  width: float
  low: float
  lower: float
  median: float
  upper: float
  high: float


@dataclasses.dataclass(frozen=True)
class Rule:
  """A horizontal line with a text: the bias, a limit of agreement, or zero, which has no text."""

  y: float
  text: str
  dashed: bool


@dataclasses.dataclass(frozen=True)
class Chart:
  """A chart. Ticks are places on an axis with their text."""

  x_label: str
  y_label: str
  x_ticks: Sequence[tuple[float, str]]
  y_ticks: Sequence[tuple[float, str]]
  lines: Sequence[Line] = ()
  dots: Sequence[Dot] = ()
  boxes: Sequence[Box] = ()
  rules: Sequence[Rule] = ()


class Axis:
  """The linear map from values to places between two ends of an image, and round values on it."""

  def __init__(self, values: Iterable[float], start: float, end: float):
    low, high = min(values := list(values)), max(values)
    if high == low:
      low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    self._low, self._scale, self._start = first * step, (end - start) / ((last - first) * step), start
    self.ticks = [(self(number * step), f"{round(number * step, 12):g}") for number in range(first, last + 1)]

  def __call__(self, value):
    """The place of a value or of an array of values."""
    return self._start + (value - self._low) * self._scale


def curves(log: Sequence[Mapping], series: Mapping[str, int]) -> tuple[list[Chart], list[Chart]]:
  """A chart for each metric in the lines of metrics.jsonl, with one line per stage that has logged it.

  Args:
    log: lines of metrics.jsonl. Values that are not finite are left out.
    series: stage -> number of its colour.

  Returns:
    The charts of MAIN_CURVES, as far as they were logged, and those of all other metrics.
  """
  logged = {name for line in log for name in line} - {"step", "stage", "steps_per_second"}
  draw = lambda names: [chart for name in names if (chart := curve(log, name, series))]
  return draw(name for name in MAIN_CURVES if name in logged), draw(sorted(logged - set(MAIN_CURVES)))


def curve(log: Sequence[Mapping], name: str, series: Mapping[str, int]) -> Chart | None:
  """A metric over steps, see `curves`; None if it has no finite value."""
  points: dict[str, list[tuple[float, float]]] = {}
  for line in log:
    if name in line and math.isfinite(line[name]):
      points.setdefault(line["stage"], []).append((line["step"], line[name]))
  if not points:
    return None
  steps, values = zip(*(point for stage in points.values() for point in stage), strict=True)
  whole = (0.0, 1.0) if name.startswith("dice") and name != "dice_loss" else ()
  x, y = Axis([0, *steps], LEFT, RIGHT), Axis([*values, *whole], BOTTOM, TOP)
  place = lambda stage: np.stack([x(np.array(points[stage])[:, 0]), y(np.array(points[stage])[:, 1])], axis=1)
  lines = [Line(series[stage], place(stage)) for stage in points]
  return Chart("Training step", MAIN_CURVES.get(name, name), x.ticks, y.ticks, lines=lines)


def box_plot(scores: Mapping[str, Scores], metric: str, series: Mapping[str, int]) -> Chart:
  """A metric: for each structure, one box per method over its patients, and one dot per patient.

  A box holds the middle half of the patients. Its whiskers reach the last patient within 1.5 box lengths.
  """
  title, digits = METRICS[metric].title, METRICS[metric].digits
  column = lambda patients, structure: [values[structure][metric] for values in patients.values()]
  structures = structures_of(next(iter(scores.values())))
  y = Axis((value for each in scores.values() for name in structures for value in column(each, name)), BOTTOM, TOP)
  group = (RIGHT - LEFT) / len(structures)
  width = 0.8 * group / len(scores)
  centres = LEFT + (np.arange(len(structures)) + 0.5) * group
  dots, boxes = [], []
  for number, (method, patients) in enumerate(scores.items()):
    # Random places make dots of equal values visible; the seed makes them the same in every chart.
    spread = np.random.default_rng(0).uniform(-0.25, 0.25, len(patients)) * width
    for structure, centre in zip(structures, centres, strict=True):
      middle = centre + (number - (len(scores) - 1) / 2) * width
      values = np.array(column(patients, structure))
      boxes.append(Box(series[method], middle - 0.35 * width, 0.7 * width, *y(_box(values))))
      for patient, offset, value in zip(patients, spread, values, strict=True):
        text = f"{patient}, {method}, {structure}: {value:.{digits}f}"
        dots.append(Dot(series[method], middle + offset, float(y(value)), text))
  return Chart("Structure", title, list(zip(centres, structures, strict=True)), y.ticks, dots=dots, boxes=boxes)


def bland_altman(scores: Scores, series: int) -> Iterator[Chart]:
  """For each of AMOUNTS: predicted minus true value over their mean, one dot per patient.

  A line marks the bias, and dashed lines the limits of agreement.
  """
  limits = agreement(scores)
  for title, (predicted, true) in amounts(scores).items():
    unit = title.rpartition(", ")[2]
    means, differences = (predicted + true) / 2, predicted - true
    x, y = Axis(means, LEFT, LABELLED), Axis([0.0, *differences, *limits[title].values()], BOTTOM, TOP)
    dots = [
      Dot(series, float(x(mean)), float(y(difference)), f"{patient}: {difference:+.1f} {unit}")
      for patient, mean, difference in zip(scores, means, differences, strict=True)
    ]
    rules = [Rule(y(0.0), "", False)]
    rules += [Rule(y(value), f"{value:+.1f}", name != "bias") for name, value in limits[title].items()]
    x_label, y_label = f"{title}: mean of prediction and truth", f"Prediction − truth, {unit}"
    yield Chart(x_label, y_label, x.ticks, y.ticks, dots=dots, rules=rules)


def _box(values: np.ndarray) -> np.ndarray:
  """Ends of the whiskers, quartiles and median, in ascending order."""
  lower, median, upper = np.percentile(values, (25, 50, 75))
  reach = 1.5 * (upper - lower)
  inside = values[(values >= lower - reach) & (values <= upper + reach)]
  return np.array([inside.min(), lower, median, upper, inside.max()])
