"""Pictures of predictions and of training, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.files import replacing

COLOURS = {"Myo": "#35b779", "LV": "#e4572e", "RV": "#3f8efc"}


def save_panels(path: Path, rows: Sequence[Sequence[tuple[str, np.ndarray, np.ndarray | None]]]) -> None:
  """Rows of titled images, each with the outlines of a mask.

  Args:
    path: of the PNG.
    rows: of (title, image (h, w) in [0, 1], class indices (h, w) or None).
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
  figure.tight_layout(rect=(0, 0.6 / (2.5 * len(rows)), 1, 1))
  _save(figure, path)


def save_curves(path: Path, lines: Sequence[Mapping]) -> None:
  """A panel a metric over steps, one curve a stage, from the lines of metrics.jsonl."""
  plt = _pyplot()
  names = sorted({name for line in lines for name in line} - {"step", "stage", "steps_per_second"})
  colours = {stage: f"C{number}" for number, stage in enumerate(dict.fromkeys(line["stage"] for line in lines))}
  columns = 4
  figure, axes = plt.subplots(-(-len(names) // columns), columns, figsize=(14, 2.4 * -(-len(names) // columns)))
  for axis in axes.flat[len(names) :]:
    axis.axis("off")
  for axis, name in zip(axes.flat, names, strict=False):
    for stage, colour in colours.items():
      points = [(line["step"], line[name]) for line in lines if line["stage"] == stage and name in line]
      if points:
        axis.plot(*zip(*points, strict=True), color=colour, linewidth=1)
    axis.set_title(name, fontsize=9)
    axis.tick_params(labelsize=7)
  handles = [plt.Line2D([], [], color=colour, label=stage) for stage, colour in colours.items()]
  figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=8)
  figure.tight_layout(rect=(0, 0.04, 1, 1))
  _save(figure, path)


def _pyplot():
  # Imported late: importing the package must stay cheap, and most of it draws nothing.
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  return plt


def _save(figure, path: Path) -> None:
  with replacing(path) as temporary:
    figure.savefig(temporary, dpi=100, format="png")
  _pyplot().close(figure)
