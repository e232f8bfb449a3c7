"""Figures of predictions and scores: PNG files, and WebP images for the report."""

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vamcei_jax.data.labels import CLASSES
from vamcei_jax.files import replacing

if TYPE_CHECKING:
  from matplotlib.figure import Figure

COLOURS = {"Myo": "#35b779", "LV": "#e4572e", "RV": "#3f8efc"}
MARKERS = {"source": "o", "target": "x"}
INNER_FIRST = ("LV", "Myo", "RV")  # a line between two structures belongs to the first of them
WEBP_PIXELS = 16383  # the largest height of a WebP image
PANEL = 480  # approximate width or height of an image before it is drawn in a figure


def save_panels(path: Path, rows: Sequence[Sequence[tuple[str, np.ndarray, np.ndarray | None]]]) -> None:
  """Saves a PNG of images in rows, each with a title and the outlines of a mask.

  Args:
    path: of the PNG.
    rows: each a list of (title, image (h, w) in [0, 1], class indices (h, w) or None).
  """
  from matplotlib.lines import Line2D

  columns = max(map(len, rows))
  with _saved_figure(path, figsize=(2.4 * columns, 2.5 * len(rows))) as figure:
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row_axes, panels in zip(axes, rows, strict=True):
      for axis in row_axes:
        axis.axis("off")
      for axis, (title, image, mask) in zip(row_axes, panels, strict=False):
        zoom = max(1, round(PANEL / max(image.shape)))
        axis.imshow(outlined(image[None], None if mask is None else mask[None], zoom)[0])
        axis.set_title(title, fontsize=8)
    handles = [Line2D([], [], color=colour, label=name) for name, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=8)
    inch = 1 / (2.5 * len(rows))  # as a share of the figure: below are the names, above a title
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.4 * inch, top=1 - 0.25 * inch, wspace=0.03, hspace=0.15)


def slice_stack(image: np.ndarray, mask: np.ndarray | None, zoom: int) -> bytes:
  """WebP image of the slices of a volume, one below the other, each with the outlines of its mask.

  Args:
    image, mask, zoom: see `outlined`; D * h * zoom must not exceed WEBP_PIXELS.
  """
  # With the format's plugin imported, Pillow does not import those of all formats, which takes 0.04 s.
  from PIL import Image, WebPImagePlugin  # noqa: F401

  colours, file = outlined(image, mask, zoom), io.BytesIO()
  Image.fromarray(colours.reshape(-1, *colours.shape[2:])).save(file, "WEBP", quality=75)
  return file.getvalue()


def outlined(image: np.ndarray, mask: np.ndarray | None, zoom: int) -> np.ndarray:
  """RGB image (D, h * zoom, w * zoom, 3) of a volume's slices with the outlines of a mask.

  Where two structures touch, there is one line: it belongs to the inner one of LV, Myo and RV. So LV has a closed line,
  Myo has one outside, and the line of RV ends where it meets Myo.

  Args:
    image: (D, h, w) in [0, 1].
    mask: (D, h, w) class indices, or None.
    zoom: screen pixels per voxel.
  """
  from PIL import ImageColor
  from scipy import ndimage

  enlarge = lambda stack: stack.repeat(zoom, axis=1).repeat(zoom, axis=2)
  colours = np.stack([enlarge((np.clip(image, 0, 1) * 255).astype(np.uint8))] * 3, axis=-1)
  if mask is None:
    return colours
  classes = enlarge(mask)
  inside, width = np.zeros(classes.shape, bool), -(-2 * zoom // 3)
  for structure in INNER_FIRST:
    structure_mask = classes == CLASSES.index(structure)
    inside |= structure_mask
    within = ndimage.binary_erosion(inside, np.ones((1, 3, 3)), iterations=width, border_value=1)
    colours[structure_mask & ~within] = ImageColor.getrgb(COLOURS[structure])
  return colours


def save_scatter(path: Path, rows: Sequence[Sequence[tuple[str, np.ndarray, Sequence[str], np.ndarray]]]) -> None:
  """Saves a PNG of scatter plots in rows; colours stand for classes, markers for domains.

  Args:
    path: of the PNG.
    rows: each a list of (title, points (N, 2), domain of each point, class index of each point).
  """
  with _saved_figure(path, figsize=(14, 6 * len(rows))) as figure:
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
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


def save_bars(path: Path, means: Mapping[str, Mapping], stds: Mapping[str, Mapping], label: str) -> None:
  """Saves a PNG of bars: one group per column, one bar per row.

  Args:
    path: of the PNG.
    means: row -> column -> height of the bar.
    stds: row -> column -> half length of its error bar, or None for none.
    label: of the axis.
  """
  columns, width = list(next(iter(means.values()))), 0.8 / len(means)
  with _saved_figure(path, figsize=(10, 4), layout="constrained") as figure:
    axis = figure.subplots()
    for number, row in enumerate(means):
      places = np.arange(len(columns)) + (number - (len(means) - 1) / 2) * width
      heights, errors = (np.array([values[row][column] for column in columns], float) for values in (means, stds))
      # The blank is for Matplotlib, which hides names that begin with "_".
      axis.bar(places, heights, width, yerr=errors, label=f" {row}", capsize=2)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_ylabel(label)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


@contextmanager
def _saved_figure(path: Path, **options) -> "Iterator[Figure]":
  """Yields a figure, and saves it as a PNG. The plots of a program or a notebook around it stay as they are."""
  # Imported late: most users of this package draw nothing. Without pyplot: it would choose a backend for all plots.
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  with rc_context({"text.parse_math": False}):  # a folder's name with "$" in it is no formula
    figure = Figure(**options)
    yield figure
    with replacing(path) as temporary:
      figure.savefig(temporary, dpi=100, format="png")
