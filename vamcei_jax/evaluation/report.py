"""One HTML file that says how good masks are: tables that sort, plots, worst and best cases to leaf through.

It needs nothing beside itself: pictures and script are inside, and it opens from disk.
"""

import base64
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.evaluation.figures import COLOURS, WEBP_PIXELS, bland_altman, box_plot, curves, slice_stack
from vamcei_jax.evaluation.metrics import METRICS
from vamcei_jax.evaluation.statistics import Scores, agreement, compare, summarise
from vamcei_jax.files import write_text

BOXED = ("dice", "assd_mm", "hd95_mm", "volume_difference_ml")
WORST, BEST = 4, 2  # cases shown
SLICES = 40  # of a case, at most
MARGIN = 10  # voxels shown about the heart
PANEL = 240  # screen pixels of a panel, about


@dataclasses.dataclass(frozen=True)
class Case:
  """What is shown of a patient.

  image: (D, h, w) in [0, 1], or None where there is none.
  truth: (D, h, w) class indices, or None where there is none.
  masks: method -> class indices (D, h, w); in this order beside the image.
  pixel: (height, width) of a pixel, in any unit.
  """

  image: np.ndarray | None
  truth: np.ndarray | None
  masks: Mapping[str, np.ndarray]
  pixel: tuple[float, float] = (1.0, 1.0)


def write_report(
  path: Path,
  title: str,
  about: Mapping[str, str],
  scores: Mapping[str, Scores],
  load_case: Callable[[str], Case],
  *,
  names: Sequence[str] = (),
  log: Sequence[Mapping] = (),
  config: str = "",
) -> None:
  """Writes the report.

  Args:
    path: of the HTML file.
    title: its heading.
    about: what the masks are of and by: name -> value.
    scores: method -> patient -> structure -> metric -> value, of the same patients. The last method is the one that
      matters: its patients are listed, its worst and best cases shown, and it is tested against the first. Empty where
      there is no truth.
    load_case: name -> Case.
    names: patients to show where there are no scores.
    log: lines of metrics.jsonl, for the curves.
    config: of the run, as text.
  """
  # Imported late: what only predicts needs no template.
  import jinja2

  own = list(scores.values())[-1] if scores else {}
  shown = pick_cases(own) or list(names)[: WORST + BEST]
  template = files("vamcei_jax.evaluation").joinpath("report.html").read_text(encoding="utf-8")
  page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
  content = page.render(
    title=title,
    about={**about, "vamcei_jax": version("vamcei_jax")},
    metrics=METRICS,
    colours=COLOURS,
    methods=list(scores),
    summaries={method: summarise(patients) for method, patients in scores.items()},
    scores=own,
    counted=counted_as_empty(scores),
    comparison=compare(own, next(iter(scores.values()))) if len(scores) > 1 else {},
    boxes=[(METRICS[metric].title, _svg_source(box_plot(scores, metric))) for metric in BOXED] if scores else [],
    agreement=agreement(own) if own else {},
    limits=[(amount, _svg_source(svg)) for amount, svg in bland_altman(own)] if own else [],
    cases=[_panels(name, load_case(name), own.get(name)) for name in shown],
    worst=shown[:WORST] if len(own) > WORST + BEST else [],
    curves=[(metric, _svg_source(svg)) for metric, svg in curves(log)],
    config=config,
  )
  write_text(path, content)


def pick_cases(scores: Scores) -> list[str]:
  """The patients that are shown, by mean Dice: the worst first, then the best; all where they are few."""
  order = sorted(scores, key=lambda name: np.mean([scores[name][structure]["dice"] for structure in STRUCTURES]))
  return order if len(order) <= WORST + BEST else order[:WORST] + order[-BEST:]


def counted_as_empty(scores: Mapping[str, Scores]) -> list[tuple[str, str, str, str]]:
  """(method, patient, structure, which masks are empty): where METRICS' definitions for empty masks have counted."""
  found = []
  for method, patients in scores.items():
    for patient, structures in patients.items():
      for structure, values in structures.items():
        empty = [name for name, key in (("prediction", "volume_ml"), ("truth", "true_volume_ml")) if not values[key]]
        if empty:
          found.append((method, patient, structure, " and ".join(empty)))
  return found


def _panels(name: str, case: Case, scores: Mapping | None) -> dict:
  """A case as the template shows it: its panels, each a stack of slices that are `ratio` times as wide as high."""
  masks = [(method, mask) for method, mask in (("truth", case.truth), *case.masks.items()) if mask is not None]
  foreground = np.any([mask > 0 for _, mask in masks], axis=0)
  window = _window(foreground)
  depth, height, width = foreground[window].shape
  zoom = max(1, round(PANEL / max(height, width)))
  count = min(depth, SLICES, WEBP_PIXELS // (height * zoom))
  chosen = np.unique(np.linspace(0, depth - 1, count).round().astype(int))
  image = np.full(foreground.shape, 0.25) if case.image is None else case.image
  stack = lambda mask: slice_stack(image[window][chosen], mask, zoom)
  stacks = [] if case.image is None else [("image", stack(None))]
  stacks += [(title, stack(mask[window][chosen])) for title, mask in masks]
  return {
    "name": name,
    "scores": scores,
    "panels": [(title, _source("image/webp", picture)) for title, picture in stacks],
    "slices": np.arange(len(foreground))[window[0]][chosen].tolist(),
    "first": len(chosen) // 2,
    "width": width * case.pixel[1],
    "height": height * case.pixel[0],
  }


def _window(foreground: np.ndarray) -> tuple[slice, slice, slice]:
  """The box about the heart with a margin; everything where there is no heart."""
  if not foreground.any():
    return slice(None), slice(None), slice(None)
  box = []
  for where, margin in zip(np.nonzero(foreground), (1, MARGIN, MARGIN), strict=True):
    box.append(slice(max(where.min() - margin, 0), where.max() + 1 + margin))
  return tuple(box)


def _svg_source(svg: str) -> str:
  return _source("image/svg+xml", svg.encode())


def _source(kind: str, content: bytes) -> str:
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"
