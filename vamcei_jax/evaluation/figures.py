"""Figures of predictions, scores and training: PNG files, and SVG and WebP images for the report."""

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vamcei_jax.data.labels import CLASSES, STRUCTURES
from vamcei_jax.evaluation.metrics import METRICS
from vamcei_jax.evaluation.statistics import AMOUNTS, Scores, agreement, amounts
from vamcei_jax.files import replacing

COLOURS = {"Myo": "#35b779", "LV": "#e4572e", "RV": "#3f8efc"}
MARKERS = {"source": "o", "target": "x"}
WEBP_PIXELS = 16383  # the largest height of a WebP image


def save_panels(path: Path, rows: Sequence[Sequence[tuple[str, np.ndarray, np.ndarray | None]]]) -> None:
  """Saves a PNG of images in rows, each with a title and the outlines of a mask.

  Args:
    path: of the PNG.
    rows: each a list of (title, image (h, w) in [0, 1], class indices (h, w) or None).
  """
  plt = _pyplot()
  columns = max(map(len, rows))
  figure, axes = plt.subplots(len(rows), columns, figsize=(2.4 * columns, 2.5 * len(rows)), squeeze=False)
  for row_axes, panels in zip(axes, rows, strict=True):
    for axis in row_axes:
      axis.axis("off")
    for axis, (title, image, mask) in zip(row_axes, panels, strict=False):
      axis.imshow(image, cmap="gray", vmin=0, vmax=1)
      axis.set_title(title, fontsize=8)
      for index, structure in enumerate(STRUCTURES, start=1):
        if mask is not None and (mask == index).any():
          axis.contour(mask == index, levels=[0.5], colors=COLOURS[structure], linewidths=1.2)
  handles = [plt.Line2D([], [], color=colour, label=name) for name, colour in COLOURS.items()]
  figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=8)
  inch = 1 / (2.5 * len(rows))  # as a share of the figure: below are the names, above a title
  figure.subplots_adjust(left=0.01, right=0.99, bottom=0.4 * inch, top=1 - 0.25 * inch, wspace=0.03, hspace=0.15)
  _save(figure, path)


def curves(lines: Sequence[Mapping]) -> Iterator[tuple[str, str]]:
  """(metric, SVG) for each metric in the lines of metrics.jsonl; one curve per stage."""
  colours = _stage_colours(lines)
  for name in _logged(lines):
    figure, axis = _pyplot().subplots(figsize=(3.6, 2.4))
    draw_curve(axis, lines, name, colours)
    _add_legend(axis, {stage: colour for stage, colour in colours.items() if _points(lines, stage, name)})
    yield name, _svg(figure)


def draw_curve(axis, lines: Sequence[Mapping], name: str, colours: Mapping[str, str]) -> None:
  """Draws the metric `name` over steps, one line for each stage that has logged it."""
  for stage, colour in colours.items():
    if points := _points(lines, stage, name):
      axis.plot(*zip(*points, strict=True), color=colour, linewidth=1)
  axis.set_title(name, fontsize=9)
  axis.tick_params(labelsize=7)


def box_plot(scores: Mapping[str, Scores], metric: str) -> str:
  """SVG of a metric: for each structure, one box per method over its patients, and one dot per patient."""
  figure, axis = _pyplot().subplots(figsize=(4.2, 3.0))
  draw_boxes(axis, scores, metric)
  return _svg(figure)


def draw_boxes(axis, scores: Mapping[str, Scores], metric: str) -> None:
  """Draws what box_plot describes; the axis holds one scatter for each method and structure, in this order."""
  width = 0.8 / len(scores)
  for number, patients in enumerate(scores.values()):
    values = [[patient[structure][metric] for patient in patients.values()] for structure in STRUCTURES]
    places = np.arange(len(STRUCTURES)) + (number - (len(scores) - 1) / 2) * width
    axis.boxplot(
      values,
      positions=places,
      widths=0.7 * width,
      showfliers=False,
      patch_artist=True,
      boxprops={"facecolor": "none", "edgecolor": f"C{number}"},
      **{f"{part}props": {"color": f"C{number}"} for part in ("whisker", "cap", "median")},
    )
    # Random places make dots of equal values visible; the seed makes them the same in every figure.
    spread = np.random.default_rng(0).uniform(-0.2, 0.2, len(patients)) * width
    for place, dots in zip(places, values, strict=True):
      axis.scatter(place + spread, dots, s=12, color=f"C{number}", alpha=0.6, linewidths=0)
  axis.set_xticks(range(len(STRUCTURES)), STRUCTURES)
  axis.set_ylabel(METRICS[metric].title)
  _add_legend(axis, {method: f"C{number}" for number, method in enumerate(scores)})


def bland_altman(scores: Scores) -> Iterator[tuple[str, str]]:
  """(title, SVG) for each of AMOUNTS: predicted minus true value over their mean, one dot per patient.

  Lines mark the bias and the limits of agreement.
  """
  for title in AMOUNTS:
    figure, axis = _pyplot().subplots(figsize=(4.2, 3.0))
    draw_agreement(axis, scores, title)
    yield title, _svg(figure)


def draw_agreement(axis, scores: Scores, title: str) -> None:
  """Draws what bland_altman describes, for `title` of AMOUNTS."""
  predicted, true = amounts(scores)[title]
  axis.scatter((predicted + true) / 2, predicted - true, s=10, color="C0", linewidths=0)
  axis.axhline(0.0, color="0.8", linewidth=0.8)
  for name, value in agreement(scores)[title].items():
    axis.axhline(value, color="C3", linewidth=1, linestyle="-" if name == "bias" else "--")
    axis.annotate(f" {value:.1f}", (1, value), xycoords=("axes fraction", "data"), va="center", fontsize=7)
  axis.tick_params(labelsize=7)
  axis.set_xlabel(f"Mean of prediction and truth: {title}", fontsize=8)
  axis.set_ylabel("Prediction minus truth", fontsize=8)


def slice_stack(image: np.ndarray, mask: np.ndarray | None, zoom: int) -> bytes:
  """WebP image of the slices of a volume, one below the other, each with the outlines of its mask.

  Args:
    image: (D, h, w) in [0, 1].
    mask: (D, h, w) class indices, or None.
    zoom: screen pixels per voxel; D * h * zoom must not exceed WEBP_PIXELS.
  """
  from matplotlib.colors import to_rgb
  from PIL import Image
  from scipy import ndimage

  enlarge = lambda stack: stack.repeat(zoom, axis=1).repeat(zoom, axis=2)
  grey = enlarge((np.clip(image, 0, 1) * 255).astype(np.uint8))
  colours = np.stack([grey] * 3, axis=-1)
  for index, structure in enumerate(STRUCTURES, start=1):
    if mask is not None:
      inside = enlarge(mask == index)
      width = -(-2 * zoom // 3)
      within = ndimage.binary_erosion(inside, np.ones((1, 3, 3)), iterations=width, border_value=1)
      colours[inside & ~within] = np.multiply(to_rgb(COLOURS[structure]), 255)
  file = io.BytesIO()
  Image.fromarray(colours.reshape(-1, *colours.shape[2:])).save(file, "WEBP", quality=75)
  return file.getvalue()


def save_scatter(path: Path, rows: Sequence[Sequence[tuple[str, np.ndarray, Sequence[str], np.ndarray]]]) -> None:
  """Saves a PNG of scatter plots in rows; colours stand for classes, markers for domains.

  Args:
    path: of the PNG.
    rows: each a list of (title, points (N, 2), domain of each point, class index of each point).
  """
  plt = _pyplot()
  figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=(14, 6 * len(rows)), squeeze=False)
  for axis, (title, points, domains, classes) in zip(axes.flat, itertools.chain(*rows), strict=True):
    for domain, marker in MARKERS.items():
      for index, name in enumerate(CLASSES):
        x, y = points[(domains == domain) & (classes == index)].T
        label = f"{name}, {domain}"
        axis.scatter(x, y, s=22, marker=marker, color=COLOURS.get(name, "0.6"), alpha=0.7, linewidths=1, label=label)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
  handles, labels = axes.flat[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="lower center", ncols=len(CLASSES) * 2, frameon=False)
  figure.tight_layout(rect=(0, 0.03, 1, 1))
  _save(figure, path)


def save_bars(path: Path, means: Mapping[str, Mapping], stds: Mapping[str, Mapping], label: str) -> None:
  """Saves a PNG of bars: one group per column, one bar per row.

  Args:
    path: of the PNG.
    means: row -> column -> height of the bar.
    stds: row -> column -> half length of its error bar, or None for none.
    label: of the axis.
  """
  plt = _pyplot()
  columns, width = list(next(iter(means.values()))), 0.8 / len(means)
  figure, axis = plt.subplots(figsize=(10, 4), layout="constrained")
  for number, row in enumerate(means):
    places = np.arange(len(columns)) + (number - (len(means) - 1) / 2) * width
    heights, errors = (np.array([values[row][column] for column in columns], float) for values in (means, stds))
    axis.bar(places, heights, width, yerr=errors, label=row, capsize=2)
  axis.set_xticks(range(len(columns)), columns)
  axis.set_ylabel(label)
  axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
  _save(figure, path)


def _logged(lines: Sequence[Mapping]) -> list[str]:
  return sorted({name for line in lines for name in line} - {"step", "stage", "steps_per_second"})


def _stage_colours(lines: Sequence[Mapping]) -> dict[str, str]:
  return {stage: f"C{number}" for number, stage in enumerate(dict.fromkeys(line["stage"] for line in lines))}


def _points(lines: Sequence[Mapping], stage: str, name: str) -> list[tuple[int, float]]:
  return [(line["step"], line[name]) for line in lines if line["stage"] == stage and name in line]


def _add_legend(axis, colours: Mapping[str, str]) -> None:
  """Puts names below the axis. The blank before each is for Matplotlib, which hides names that begin with "_"."""
  handles = [_pyplot().Line2D([], [], color=colour, label=f" {name}") for name, colour in colours.items()]
  where = {"loc": "upper left", "bbox_to_anchor": (0, -0.12), "ncols": 2}
  axis.legend(handles=handles, frameon=False, fontsize=7, **where)


def _pyplot():
  # Imported late: the import takes a second, and most users of this package draw nothing.
  import matplotlib

  matplotlib.use("Agg")
  matplotlib.rcParams["text.parse_math"] = False  # a folder's name with "$" in it is no formula
  import matplotlib.pyplot as plt

  return plt


def _save(figure, path: Path) -> None:
  with replacing(path) as temporary:
    figure.savefig(temporary, dpi=100, format="png")
  _pyplot().close(figure)


def _svg(figure) -> str:
  text = io.StringIO()
  # Text stays text, in a font of the reader's browser, and equal figures are equal files.
  with _pyplot().rc_context({"svg.fonttype": "none", "svg.hashsalt": "", "font.family": "sans-serif"}):
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
  _pyplot().close(figure)
  return text.getvalue()
