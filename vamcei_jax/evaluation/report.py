"""The report on predicted masks: one HTML file with a headline, sortable tables, charts, and slices of cases.

Of predictions without true masks, it has a table, and a montage of the slices of each case.

The file holds its images and its script, so it opens from disk and fetches nothing.
"""

import base64
import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np

from vamcei_jax.evaluation import charts
from vamcei_jax.evaluation.figures import COLOURS, WEBP_PIXELS, slice_stack
from vamcei_jax.evaluation.metrics import METRICS
from vamcei_jax.evaluation.statistics import Comparison, Scores, format_mean, results_table, summarise
from vamcei_jax.files import write_text
from vamcei_jax.inference.quality import LOW_SCORE

BOXED = ("dice", "assd_mm", "hd95_mm", "volume_difference_ml")
WORST, BEST = 4, 2  # cases in the report
COMPARED = {"volume_difference_ml": "|Volume difference|, ml"}  # titles that are not those of METRICS
SIGNIFICANT = 0.05  # a smaller p is in bold
SLICES = 40  # of a case, at most
MARGIN = 10  # voxels around the heart
PANEL = 240  # approximate width or height of a panel in screen pixels
TILE = 160  # likewise, of a slice in a montage


@dataclasses.dataclass(frozen=True)
class Case:
  """A patient's image and masks, as the report shows them side by side.

  image: (D, h, w) in [0, 1], or None if it is missing.
  truth: (D, h, w) class indices, or None if they are unknown.
  masks: method -> class indices (D, h, w), in the order of the panels.
  pixel: (height, width) of a pixel, in any unit.
  """

  image: np.ndarray | None
  truth: np.ndarray | None
  masks: Mapping[str, np.ndarray]
  pixel: tuple[float, float] = (1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Montage:
  """The slices of a case with outlines.

  source: URL of a WebP image with the slices one below the other.
  slices: their numbers.
  width, height: of a slice, in any unit.
  """

  source: str
  slices: Sequence[int]
  width: float
  height: float


@dataclasses.dataclass(frozen=True)
class Predicted:
  """A prediction as the report shows it.

  name: of the volume.
  volumes_ml: structure -> volume of the mask in ml.
  mass_g: mass of the myocardium in g.
  score: of its quality, in [0, 1].
  findings: (name, sentence) of what may be wrong.
  montage: of its slices.
  """

  name: str
  volumes_ml: Mapping[str, float]
  mass_g: float
  score: float
  findings: Sequence[tuple[str, str]]
  montage: Montage


@dataclasses.dataclass(frozen=True)
class Change:
  """How a metric of a structure changes from one method to another.

  kind: "better", "worse" or "equal", by the median of the patients.
  better, worse: numbers of patients.
  test: of statistics.compare.
  """

  structure: str
  metric: str
  kind: str
  better: int
  worse: int
  test: Mapping[str, float]

  @property
  def title(self) -> str:
    """The title of what is compared."""
    return COMPARED.get(self.metric, METRICS[self.metric].title)

  @property
  def difference(self) -> str:
    """The median difference as text."""
    digits = METRICS[self.metric].digits
    return f"{round(self.test['median_difference'], digits) + 0.0:+.{digits}f}"  # no "-0.00"

  @property
  def significant(self) -> bool:
    """Whether p is small."""
    return self.test["p_value"] < SIGNIFICANT


def write_report(
  path: Path,
  title: str,
  about: Mapping[str, str],
  scores: Mapping[str, Scores] | None = None,
  load_case: Callable[[str], Case] | None = None,
  *,
  split: str = "",
  names: Sequence[str] = (),
  predicted: Sequence[Predicted] = (),
  log: Sequence[Mapping] = (),
  config: str = "",
) -> None:
  """Writes the report.

  Args:
    path: of the HTML file.
    title: what the report is of; the heading is the main result.
    about: lines below the heading: name -> value.
    scores: method -> patient -> structure -> metric -> value, with the same patients for all methods. The report lists
      the patients of the last method, shows its worst and best cases, and compares it with the first method. Empty or
      None if no truth is known.
    load_case: patient -> Case; None if no patient is given.
    split: what the patients are, in the heading: "test", "validation" or "train".
    names: patients to show if there are no scores.
    predicted: predictions without truth.
    log: lines of metrics.jsonl, for the curves.
    config: configuration of the run, as text.
  """
  # Imported late: prediction needs no template.
  import jinja2

  scores = scores or {}
  results = results_table(scores)
  comparison = results.get("comparison")
  last, patients = list(scores.items())[-1] if scores else ("", {})
  cases = pick_cases(patients) or list(names)[: WORST + BEST]
  series = {name: number for number, name in enumerate(dict.fromkeys([*scores, *(line["stage"] for line in log)]))}
  main_curves, other_curves = charts.curves(log, series)
  template = files("vamcei_jax.evaluation").joinpath("report.html").read_text(encoding="utf-8")
  page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
  content = page.render(
    title=title,
    headline=predictions_headline(predicted) if predicted else headline(scores, split, len(names)),
    about={"Date": datetime.date.today().isoformat(), **about, "vamcei_jax": version("vamcei_jax")},
    metrics=METRICS,
    colours=COLOURS,
    series=series,
    methods=results["methods"],
    last=last,
    scores=patients,
    empty_masks=list_empty_masks(scores),
    comparison=comparison,
    changes=list_changes(scores, comparison["tests"]) if comparison else [],
    significance=SIGNIFICANT,
    boxes=[charts.box_plot(scores, metric, series) for metric in BOXED] if scores else [],
    limits=list(charts.bland_altman(patients, series[last])) if scores else [],
    cases=[_panels(name, load_case(name), scores) for name in cases] if load_case else [],
    predicted=predicted,
    low_score=LOW_SCORE,
    worst=cases[:WORST] if len(patients) > WORST + BEST else [],
    curves=main_curves,
    other_curves=other_curves,
    stages=list(dict.fromkeys(line["stage"] for line in log)),
    config=config,
    format_mean=format_mean,
  )
  write_text(path, content)


def headline(scores: Mapping[str, Scores], split: str = "", unscored: int = 0) -> str:
  """The main result in one sentence: the mean Dice of the last method, and of the first one if there are several.

  Args:
    scores: as in write_report.
    split: of the patients.
    unscored: number of patients if there are no scores.
  """
  count = len(next(iter(scores.values()))) if scores else unscored
  kind = "training" if split == "train" else split
  patients = " ".join(filter(None, [str(count), kind, "patient" if count == 1 else "patients"]))
  if not scores:
    return f"Predictions for {patients}. There are no true masks, so there are no scores."
  means = {name: f"{summarise(each)['mean']['dice']['mean']:.3f}" for name, each in scores.items()}
  first, last = list(means)[0], list(means)[-1]
  if len(means) == 1:
    return f"{last} has a mean Dice of {means[last]} on {patients}"
  if means[first] == means[last]:
    return f"{last} and {first} have the same mean Dice on {patients}: {means[last]}"
  verb = "raises" if float(means[last]) > float(means[first]) else "lowers"
  return f"{last} {verb} the mean Dice of {patients} from {means[first]} ({first}) to {means[last]}"


def predictions_headline(predicted: Sequence[Predicted]) -> str:
  """How many predictions there are, and how many have a low score, in one sentence."""
  low = sum(case.score < LOW_SCORE for case in predicted)
  volumes = f"{len(predicted)} {'volume' if len(predicted) == 1 else 'volumes'} segmented"
  if not low:
    return f"{volumes}, none with a score below {LOW_SCORE}"
  return f"{volumes}, {low} with a score below {LOW_SCORE}: look at {'this mask' if low == 1 else 'these masks'} first"


def list_changes(scores: Mapping[str, Scores], tests: Comparison) -> list[Change]:
  """A Change for each structure and metric of the tests, from the first to the last method.

  A metric that is best at 0, such as a volume difference, is better where its absolute value is smaller.
  """
  first, last = list(scores.values())[0], list(scores.values())[-1]
  changes = []
  for structure, by_metric in tests.items():
    for metric, test in by_metric.items():
      best, digits = METRICS[metric].best or 0.0, METRICS[metric].digits
      error = lambda values, s=structure, m=metric, b=best: abs(values[s][m] - b)
      gains = np.array([error(first[name]) - error(last[name]) for name in last])
      median = round(float(np.median(gains)), digits)  # equal is what the table shows as zero
      kind = "better" if median > 0 else "worse" if median < 0 else "equal"
      changes.append(Change(structure, metric, kind, int((gains > 0).sum()), int((gains < 0).sum()), test))
  return changes


def pick_cases(scores: Scores) -> list[str]:
  """The WORST and the BEST patients by mean Dice, in ascending order; all patients if they are not more."""
  order = sorted(scores, key=lambda name: np.mean([values["dice"] for values in scores[name].values()]))
  return order if len(order) <= WORST + BEST else order[:WORST] + order[-BEST:]


def list_empty_masks(scores: Mapping[str, Scores]) -> list[tuple[str, str, str, str]]:
  """(method, patient, structure, which) for each structure with empty masks.

  `which` is "prediction", "truth" or "prediction and truth".
  """
  found = []
  for method, patients in scores.items():
    for patient, structures in patients.items():
      for structure, values in structures.items():
        empty = [name for name, key in (("prediction", "volume_ml"), ("truth", "true_volume_ml")) if not values[key]]
        if empty:
          found.append((method, patient, structure, " and ".join(empty)))
  return found


def draw_montage(case: Case) -> Montage:
  """All slices of a case (at most SLICES, evenly spaced) around its first mask, with the outlines of the mask.

  Rows and columns are thinned out if the part of a slice around the mask is larger than two tiles.
  """
  mask = next(iter(case.masks.values()))
  window = _window(mask > 0)[1:]
  depth, (height, width) = len(mask), mask[0][window].shape
  step, zoom = max(1, max(height, width) // TILE), max(1, round(TILE / max(height, width)))
  chosen = np.unique(np.linspace(0, depth - 1, min(depth, SLICES)).round().astype(int))
  thin = lambda maps: maps[(slice(None), *window)][chosen, ::step, ::step]
  picture = slice_stack(thin(_image_of(case, mask.shape)), thin(mask), zoom)
  size = width * case.pixel[1], height * case.pixel[0]
  return Montage(_source(picture), chosen.tolist(), *size)


def _image_of(case: Case, shape: tuple[int, ...]) -> np.ndarray:
  """The image of a case, or grey if it is missing."""
  return np.full(shape, 0.25) if case.image is None else case.image


def _panels(name: str, case: Case, scores: Mapping[str, Scores]) -> dict:
  """The template's entries for a case: panels as stacks of slices, the slices' numbers, and the size of a slice."""
  masks: list[tuple] = [] if case.truth is None else [("truth", case.truth, None)]
  for method, mask in case.masks.items():
    dice = {each: values["dice"] for each, values in scores[method][name].items()} if method in scores else None
    masks.append((method, mask, dice))
  foreground = np.any([mask > 0 for _, mask, _ in masks], axis=0)
  window = _window(foreground)
  depth, height, width = foreground[window].shape
  zoom = max(1, round(PANEL / max(height, width)))
  count = min(depth, SLICES, WEBP_PIXELS // (height * zoom))
  chosen = np.unique(np.linspace(0, depth - 1, count).round().astype(int))
  image = _image_of(case, foreground.shape)
  stack = lambda mask: _source(slice_stack(image[window][chosen], mask, zoom))
  stacks = [] if case.image is None else [("image", stack(None), None)]
  stacks += [(title, stack(mask[window][chosen]), dice) for title, mask, dice in masks]
  return {
    "name": name,
    "panels": stacks,
    "slices": np.arange(len(foreground))[window[0]][chosen].tolist(),
    "first": len(chosen) // 2,
    "width": width * case.pixel[1],
    "height": height * case.pixel[0],
  }


def _window(foreground: np.ndarray) -> tuple[slice, slice, slice]:
  """The box around the foreground with a margin; the whole volume if there is no foreground."""
  if not foreground.any():
    return slice(None), slice(None), slice(None)
  box = lambda where, margin: slice(max(where.min() - margin, 0), where.max() + 1 + margin)
  slices, rows, columns = np.nonzero(foreground)
  return box(slices, 1), box(rows, MARGIN), box(columns, MARGIN)


def _source(webp: bytes) -> str:
  return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
