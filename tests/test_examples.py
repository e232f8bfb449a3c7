"""The notebooks run, on embedded data, and their two files have the same cells."""

import re
import runpy
import sys

import jupytext
import matplotlib
import pytest

from tests.commands import ROOT

EXAMPLES = ROOT / "examples"
every_notebook = pytest.mark.parametrize("name", ["segment", "train"])


@every_notebook
def test_both_files_of_a_notebook_have_the_same_cells(name):
  cells = {}
  for suffix in ("py", "ipynb"):
    notebook = jupytext.read(EXAMPLES / f"{name}.{suffix}")
    cells[suffix] = [(cell.cell_type, cell.source) for cell in notebook.cells]
  assert cells["py"] == cells["ipynb"], "run `.venv/bin/jupytext --sync examples/*.py`"
  assert not any(cell.get("outputs") for cell in notebook.cells)


@every_notebook
def test_links_of_a_notebook_lead_somewhere(name):
  for link in re.findall(r"\]\(([^)\s#]+)", (EXAMPLES / f"{name}.py").read_text()):
    assert (EXAMPLES / link).exists(), link


@pytest.mark.parametrize("name", ["segment", pytest.param("train", marks=pytest.mark.slow)])
def test_a_notebook_runs(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", sys.path.copy())
  matplotlib.use("Agg")
  runpy.run_path(str(EXAMPLES / f"{name}.py"))
  assert (tmp_path / "runs" / name).is_dir()
