"""The results of an ablation grid: its table, its picture and its report."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.tables import write_rows
from vamcei_jax.config.schema import GridConfig
from vamcei_jax.evaluation.figures import save_bars
from vamcei_jax.evaluation.statistics import format_seeds, sample_std
from vamcei_jax.files import write_text
from vamcei_jax.pipeline.results import describe_circumstances
from vamcei_jax.training.log import METRICS_FILE, read_log

TEMPLATE = Path(__file__).with_name("grid_report.html")


class Run(NamedTuple):
  """One run of a grid: the name of its row, and its seed."""

  row: str
  seed: int


Scores = Mapping[Run, Mapping[str, float]]  # run -> structure -> mean Dice
Table = dict[str, dict[str, float | None]]  # row -> structure -> value


def write_grid_results(
  grid: GridConfig, scores: Scores, scored: str, content: Mapping[str, Any], workdir: Path
) -> None:
  """Writes ablation.csv, .json, .md and .png and report.html, and prints the table.

  Args:
    grid: rows and seeds.
    scores: of all runs.
    scored: what the scores were measured on, in words.
    content: configuration of the grid, for the report.
    workdir: of the grid.
  """
  means, stds = over_seeds([row for row, _ in grid.rows], scores)
  seeds = len(grid.seeds)
  measure = f"Dice, mean ± standard deviation over {seeds} seeds" if seeds > 1 else "Dice of one seed"
  table = format_table(means, stds)
  write_rows(workdir / "ablation.csv", [{**run._asdict(), **values} for run, values in scores.items()])
  write_text(workdir / "ablation.json", json.dumps({"mean": means, "std": stds}, indent=2) + "\n")
  write_text(workdir / "ablation.md", table)
  save_bars(workdir / "ablation.png", means, stds, measure)
  write_report(grid, means, stds, {"Score": measure, "Scored on": scored}, content, workdir)
  print(f"\n{measure}, on {scored}\n{table}Report, tables and picture: {workdir}")


def over_seeds(rows: Sequence[str], scores: Scores) -> tuple[Table, Table]:
  """Means and standard deviations over the seeds of each row; the latter are None for one seed."""
  columns = list(next(iter(scores.values())))
  means: Table = {}
  stds: Table = {}
  for row in rows:
    values = {name: [by_name[name] for run, by_name in scores.items() if run.row == row] for name in columns}
    means[row] = {name: float(np.mean(numbers)) for name, numbers in values.items()}
    stds[row] = {name: sample_std(numbers) for name, numbers in values.items()}
  return means, stds


def format_table(means: Table, stds: Table) -> str:
  """Means and standard deviations as a Markdown table."""
  columns = list(next(iter(means.values())))
  lines = ["| Dice | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
  for row, values in means.items():
    cells = [format_seeds(values[name], stds[row][name]) for name in columns]
    lines.append(" | ".join(["| " + row.replace("|", "\\|"), *cells]) + " |")  # a plain bar would begin a cell
  return "\n".join(lines) + "\n"


def write_report(
  grid: GridConfig, means: Table, stds: Table, about: Mapping[str, str], content: Mapping[str, Any], workdir: Path
) -> None:
  """Writes report.html: the rows in a table and a picture, what they change, validation curves and the configuration.

  Args:
    grid: rows and seeds.
    means, stds: of over_seeds.
    about: lines below the heading.
    content: configuration of the grid.
    workdir: of the grid; has ablation.png, metrics.jsonl and run.json.
  """
  # Imported late, as in evaluation/report.py.
  import jinja2

  log = read_log(workdir / METRICS_FILE)
  about = {
    **about,
    "Seeds": ", ".join(map(str, grid.seeds)),
    "Date": date.today().isoformat(),
    "Folder": str(workdir),
    **describe_circumstances(workdir, log),
  }
  curves = validation_curves(log)
  page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
  text = page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
    title=f"Ablation grid {workdir.name}",
    about=about,
    columns=list(next(iter(means.values()))),
    means=means,
    stds=stds,
    best=max(means, key=lambda row: means[row]["mean"]),
    first=grid.rows[0][0],
    cell=format_seeds,
    rows=[(row, ", ".join(f"{name} = {value}" for name, value in changes.items())) for row, changes in grid.rows],
    bars=_source("image/png", (workdir / "ablation.png").read_bytes()),
    curves=_source("image/svg+xml", draw_curves(curves).encode()) if curves else "",
    config=json.dumps(content, indent=2, sort_keys=True),
  )
  write_text(workdir / "report.html", text)


def validation_curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[list[tuple[int, float]]]]:
  """Row -> (step, validation Dice) of each of its runs, from the lines of metrics.jsonl; empty without any Dice."""
  points: dict[Run, list[tuple[int, float]]] = {}
  for line in lines:
    if "dice" in line:
      points.setdefault(Run(line["row"], line["seed"]), []).append((line["step"], line["dice"]))
  curves: dict[str, list[list[tuple[int, float]]]] = {}
  for run, values in points.items():
    curves.setdefault(run.row, []).append(values)
  return curves


def draw_curves(curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]]) -> str:
  """SVG of the validation Dice over steps: a thick line for the mean of a row, thin lines for its seeds."""
  # Imported late and without pyplot, as in evaluation/figures.py.
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 4), layout="constrained")
  axis = figure.subplots()
  for number, (row, runs) in enumerate(curves.items()):
    style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
    for points in runs:
      axis.plot(*zip(*points, strict=True), linewidth=0.6, alpha=0.6, **style)
    mean = [(points[0][0], np.mean([dice for _, dice in points])) for points in zip(*runs, strict=False)]
    # The blank is for Matplotlib, which hides names that begin with "_".
    axis.plot(*zip(*mean, strict=True), linewidth=2, marker=".", label=f" {row}", **style)
  axis.set_xlabel("Step")
  axis.set_ylabel("Mean Dice of the validation patients")
  axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
  text = io.StringIO()
  # A row's name with "$" in it is no formula.
  options = {"svg.fonttype": "none", "svg.hashsalt": "", "font.family": "sans-serif", "text.parse_math": False}
  with rc_context(options):
    figure.savefig(text, format="svg", metadata={"Date": None})
  return text.getvalue()


def _source(kind: str, content: bytes) -> str:
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"
