"""Statistics over patients: summaries, limits of agreement, Wilcoxon's test, tables and result files.

Scores map patient -> structure -> metric -> value, for all metrics of evaluation/metrics.py or for some of them.
Standard deviations are those of the sample (n - 1).
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from vamcei_jax.evaluation.metrics import METRICS
from vamcei_jax.files import write_text

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]


class Statistics(TypedDict):
  """Statistics of a metric over patients; see summarise."""

  mean: float
  std: float | None
  median: float
  worst: NotRequired[float]


Summary = dict[str, dict[str, Statistics]]
Comparison = dict[str, dict[str, dict[str, float]]]

# What clinicians read off masks: title -> structure, metric of the predicted and metric of the true amount.
AMOUNTS = {
  "LV volume, ml": ("LV", "volume_ml", "true_volume_ml"),
  "RV volume, ml": ("RV", "volume_ml", "true_volume_ml"),
  "Myocardial mass, g": ("Myo", "mass_g", "true_mass_g"),
}


def sample_std(values: Sequence[float] | np.ndarray) -> float | None:
  """Standard deviation of a sample (n - 1); None for a single value."""
  return float(np.std(values, ddof=1)) if len(values) > 1 else None


def format_mean(mean: float, std: float | None, digits: int = 3) -> str:
  """A mean and its standard deviation as text: "0.812 ± 0.034", or "0.812 ± –" without a standard deviation."""
  return f"{mean:.{digits}f} ± " + ("–" if std is None else f"{std:.{digits}f}")


def format_seeds(mean: float, std: float | None) -> str:
  """A mean over seeds and its standard deviation as text; the mean alone for one seed."""
  return f"{mean:.3f}" if std is None else format_mean(mean, std)


def annotated(scores: Scores) -> Scores:
  """The scores without the structures that no true mask has: their annotators did not draw them.

  So the RV is not scored on masks of Myo and LV alone. If all true masks are empty, all structures are scored.
  """
  drawn = {name for patient in scores.values() for name, values in patient.items() if values["true_volume_ml"]}
  scored = lambda structures: {name: values for name, values in structures.items() if name in drawn or not drawn}
  return {patient: scored(structures) for patient, structures in scores.items()}


def structures_of(scores: Scores) -> list[str]:
  """The structures that are scored, in order."""
  return list(next(iter(scores.values()), {}))


def summarise(scores: Scores) -> Summary:
  """Statistics over patients: structure -> metric -> {"mean", "std", "median", "worst"}.

  The structure "mean" describes the patients' means over all structures, for overlaps and distances only. "std" is
  None for a single patient. "worst" is the value farthest from that of a perfect mask; a metric that is neither good
  nor bad has none.
  """
  first, structures = next(iter(scores.values())), structures_of(scores)
  columns = {name: {metric: _column(scores, name, metric) for metric in first[name]} for name in structures}
  # No mean over structures of volumes: too much of one structure does not make up for too little of another.
  averaged = [metric for metric in first[structures[0]] if METRICS[metric].empty]
  columns["mean"] = {metric: np.mean([columns[name][metric] for name in structures], axis=0) for metric in averaged}
  return {
    name: {metric: _describe(values, METRICS[metric].best) for metric, values in by_metric.items()}
    for name, by_metric in columns.items()
  }


def agreement(scores: Scores) -> dict[str, dict[str, float]]:
  """Limits of agreement of each of AMOUNTS (Bland and Altman, Lancet 1:307-310, 1986).

  Returns:
    title -> {"bias", "lower", "upper"}: the mean of predicted minus true amount, and bias ± 1.96 standard deviations.
    For a single patient, the bias alone.
  """
  limits = {}
  for title, (predicted, true) in amounts(scores).items():
    bias, std = float(np.mean(predicted - true)), sample_std(predicted - true)
    limits[title] = {"bias": bias}
    if std is not None:
      limits[title] |= {"lower": bias - 1.96 * std, "upper": bias + 1.96 * std}
  return limits


def amounts(scores: Scores) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Title -> the patients' predicted and true values of each of AMOUNTS whose structure is scored."""
  return {
    title: (_column(scores, structure, predicted), _column(scores, structure, true))
    for title, (structure, predicted, true) in AMOUNTS.items()
    if structure in structures_of(scores)
  }


def compare(scores: Scores, against: Scores) -> Comparison:
  """Wilcoxon's signed-rank test, two-sided, over the patients that are in both.

  Metrics that are neither good nor bad are left out. Of metrics that are best at 0, absolute values are compared.

  Returns:
    structure -> metric -> {"n", "median_difference", "p_value"}: the number of patients, the median of `scores` minus
    `against`, and p, which is 1 where no patient differs. Empty if no patient is in both.
  """
  common = [name for name in scores if name in against]
  if not common:
    return {}
  first, second = ({name: patients[name] for name in common} for patients in (scores, against))
  return {
    structure: {
      metric: _signed_rank_test(_column(first, structure, metric), _column(second, structure, metric), best)
      for metric in first[common[0]][structure]
      if (best := METRICS[metric].best) is not None
    }
    for structure in structures_of(first)
  }


def results_table(scores: Mapping[str, Scores], **about) -> dict:
  """The content of results.json and metrics.json.

  Args:
    scores: method -> scores.
    about: further entries, such as split="test".

  Returns:
    {**about, "methods": method -> {"summary", "agreement", "patients"}}, see summarise and agreement; "patients" are
    the method's scores. With several methods, also "comparison" of the last one with the first: {"method", "against",
    "tests"}, see compare.
  """
  methods = {
    name: {"summary": summarise(patients), "agreement": agreement(patients), "patients": patients}
    for name, patients in scores.items()
  }
  table = {**about, "methods": methods}
  if len(scores) > 1:
    first, *_, last = scores
    table["comparison"] = {"method": last, "against": first, "tests": compare(scores[last], scores[first])}
  return table


def write_results(path: Path, scores: Mapping[str, Scores], **about) -> dict:
  """Writes results_table(scores, **about) as JSON, and returns it."""
  table = results_table(scores, **about)
  write_text(path, json.dumps(table, indent=2) + "\n")
  return table


def write_csv(path: Path, scores: Scores) -> None:
  """Writes the scores of one method: a row for each structure of each patient, a column for each of METRICS."""
  rows = io.StringIO()
  writer = csv.DictWriter(rows, ["patient", "structure", *METRICS], restval="", lineterminator="\n")
  writer.writeheader()
  for patient, structures in scores.items():
    for structure, values in structures.items():
      rounded = {metric: f"{value:.6g}" for metric, value in values.items()}
      writer.writerow({"patient": patient, "structure": structure, **rounded})
  write_text(path, rows.getvalue())


def format_table(
  summaries: Mapping[str, Summary], metric: str = "dice", p_values: Mapping[str, float] | None = None
) -> str:
  """A metric of several methods as text: mean ± standard deviation over patients, by structure.

  Args:
    summaries: method -> summary. With several methods, a line has the difference of the last one and the first.
    metric: one of METRICS.
    p_values: structure -> p, for a last line.
  """
  names, digits = list(next(iter(summaries.values()))), METRICS[metric].digits
  width = max(16, *(len(method) + 2 for method in summaries))
  row = lambda title, cells: f"{title:<{width}}" + "".join(f"{cell:>16}" for cell in cells)
  lines = [row(METRICS[metric].title, names)]
  for method, summary in summaries.items():
    cells = [format_mean(summary[name][metric]["mean"], summary[name][metric]["std"], digits) for name in names[:-1]]
    lines.append(row(method, [*cells, f"{summary['mean'][metric]['mean']:.{digits}f}"]))
  if len(summaries) > 1:
    first, *_, last = summaries.values()
    gains = [last[name][metric]["mean"] - first[name][metric]["mean"] for name in names]
    lines.append(row("difference", [f"{gain:+.{digits}f}" for gain in gains]))
  if p_values:
    lines.append(row("Wilcoxon's p", [f"{p:.2g}" for p in p_values.values()]))
  return "\n".join(lines)


def _column(scores: Scores, structure: str, metric: str) -> np.ndarray:
  return np.array([patient[structure][metric] for patient in scores.values()])


def _describe(values: np.ndarray, best: float | None) -> Statistics:
  described = Statistics(mean=float(values.mean()), std=sample_std(values), median=float(np.median(values)))
  if best is not None:
    described["worst"] = float(values[np.abs(values - best).argmax()])
  return described


def _signed_rank_test(first: np.ndarray, second: np.ndarray, best: float) -> dict[str, float]:
  from scipy.stats import wilcoxon  # imported late: it takes half a second, and most callers need none

  differences = np.abs(first) - np.abs(second) if best == 0.0 else first - second
  return {
    "n": len(differences),
    "median_difference": float(np.median(differences)),
    "p_value": float(wilcoxon(differences).pvalue) if differences.any() else 1.0,
  }
