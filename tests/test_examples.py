"""The notebooks run on embedded data, and the two files of each have the same cells."""

import re
import runpy
import sys

import jupytext
import matplotlib
import pytest
from absl import logging

from tests.commands import ROOT

EXAMPLES = ROOT / "examples"
every_notebook = pytest.mark.parametrize("name", ["segment", "train"])


@every_notebook
def test_both_files_of_a_notebook_have_the_same_cells(name):
  text, notebook = (jupytext.read(EXAMPLES / f"{name}.{suffix}") for suffix in ("py", "ipynb"))
  cells = [[(cell.cell_type, cell.source) for cell in file.cells] for file in (text, notebook)]
  assert cells[0] == cells[1], "run `.venv/bin/jupytext --sync examples/*.py`"
  assert not any(cell.get("outputs") for cell in notebook.cells)


@every_notebook
def test_links_of_a_notebook_lead_somewhere(name):
  links = re.findall(r"\]\(([^)\s#]+)", (EXAMPLES / f"{name}.py").read_text())
  assert links
  for link in links:
    assert (EXAMPLES / link).exists(), link


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """Another folder, for the files of a notebook; what a notebook sets in its process is restored."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", sys.path.copy())
  matplotlib.use("Agg")
  verbosity = logging.get_verbosity()
  yield tmp_path
  logging.set_verbosity(verbosity)
  matplotlib.pyplot.close("all")


@pytest.mark.parametrize("name", ["segment", pytest.param("train", marks=pytest.mark.slow)])
def test_a_notebook_runs(name, elsewhere):
  runpy.run_path(str(EXAMPLES / f"{name}.py"))
  assert any((elsewhere / "runs" / name).iterdir())
