"""Figures: what they show, and what saving one leaves as it was."""

import matplotlib
import matplotlib.axes
import numpy as np

from vamcei_jax.evaluation.figures import save_bars, save_panels, save_scatter


def test_every_row_of_bars_is_in_the_legend(tmp_path, monkeypatch):
  legends, legend = [], matplotlib.axes.Axes.legend
  monkeypatch.setattr(matplotlib.axes.Axes, "legend", lambda *args, **options: legends.append(legend(*args, **options)))
  rows = {name: {"column": 1.0} for name in ("_row", "row", "$x$")}
  save_bars(tmp_path / "bars.png", rows, {name: {"column": None} for name in rows}, "label")
  assert [text.get_text().strip() for text in legends[0].get_texts()] == list(rows)


def test_figures_leave_the_plots_of_a_notebook_as_they_are(tmp_path, monkeypatch):
  """A notebook shows plots by a backend of its own, and may have formulas in its labels."""
  backend = "module://a_notebook"
  monkeypatch.setitem(matplotlib.rcParams, "backend", backend)
  save_panels(tmp_path / "panels.png", [[("$title", np.zeros((8, 8)), None)]])
  points = (np.zeros((1, 2)), np.array(["source"]), np.array([1]))
  save_scatter(tmp_path / "scatter.png", [[("title", *points)]])
  save_bars(tmp_path / "bars.png", {"row": {"column": 1.0}}, {"row": {"column": None}}, "label")
  assert matplotlib.get_backend() == backend
  assert matplotlib.rcParams["text.parse_math"]
  assert len(list(tmp_path.iterdir())) == 3
