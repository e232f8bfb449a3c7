"""From patients' scores to what is said of them all: summaries, agreement of volumes, tests, tables, files.

Scores are patient -> structure -> metric -> value, of all metrics of evaluation/metrics.py or of some.
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.evaluation.metrics import METRICS
from vamcei_jax.files import write_text

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
Summary = dict[str, dict[str, dict[str, float]]]

# What clinicians read off masks: title -> structure, its predicted and its true amount.
AMOUNTS = {
  "LV volume, ml": ("LV", "volume_ml", "true_volume_ml"),
  "RV volume, ml": ("RV", "volume_ml", "true_volume_ml"),
  "Myocardial mass, g": ("Myo", "mass_g", "true_mass_g"),
}


def summarise(scores: Scores) -> Summary:
  """Structure -> metric -> {"mean", "std", "median", "worst"} over patients, and the same of "mean", over structures.

  The last is of patients' means over structures, of overlaps and distances. std is that of the population. "worst" is
  the value farthest from a perfect mask's; metrics that are neither good nor bad have none.
  """
  by_structure = {name: {} for name in (*STRUCTURES, "mean")}
  for name in STRUCTURES:
    for metric in next(iter(scores.values()))[name]:
      by_structure[name][metric] = np.array([patient[name][metric] for patient in scores.values()])
  for metric in by_structure[STRUCTURES[0]]:
    if METRICS[metric].empty:  # overlaps and distances: too much of one structure does not make up for another
      by_structure["mean"][metric] = np.mean([by_structure[name][metric] for name in STRUCTURES], axis=0)
  return {
    name: {metric: _describe(values, METRICS[metric].best) for metric, values in own.items()}
    for name, own in by_structure.items()
  }


def agreement(scores: Scores) -> dict[str, dict[str, float]]:
  """Bland and Altman's limits of agreement of each of AMOUNTS: "bias", mean of predicted less true, and "lower" and
  "upper", bias ± 1.96 standard deviations (of the sample) of it; of one patient, the bias alone.
  """
  limits = {}
  for title, differences in ((title, predicted - true) for title, (predicted, true) in amounts(scores).items()):
    limits[title] = {"bias": float(differences.mean())}
    if len(differences) > 1:
      spread = 1.96 * float(differences.std(ddof=1))
      limits[title] |= {"lower": limits[title]["bias"] - spread, "upper": limits[title]["bias"] + spread}
  return limits


def amounts(scores: Scores) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Title -> the patients' predicted and true values of each of AMOUNTS."""
  column = lambda structure, metric: np.array([patient[structure][metric] for patient in scores.values()])
  return {
    title: (column(structure, predicted), column(structure, true))
    for title, (structure, predicted, true) in AMOUNTS.items()
  }


def compare(scores: Scores, against: Scores) -> dict[str, dict[str, dict[str, float]]]:
  """Wilcoxon's signed-rank test over the patients that both have, two-sided: structure -> metric -> result.

  A result is the number of patients "n", the "median_difference" of `scores` less `against` and the "p_value", which is
  1 where no patient differs. Metrics that are neither good nor bad are not compared; of those that are best at 0, the
  absolute values are. Empty where no patient is in both.
  """
  from scipy.stats import wilcoxon

  patients = [name for name in scores if name in against]
  results = {}
  for structure in STRUCTURES if patients else ():
    results[structure] = {}
    for metric in (metric for metric in METRICS if METRICS[metric].best is not None):
      own, other = (_compared(some, patients, structure, metric) for some in (scores, against))
      differences = own - other
      results[structure][metric] = {
        "n": len(patients),
        "median_difference": float(np.median(differences)),
        "p_value": float(wilcoxon(differences).pvalue) if differences.any() else 1.0,
      }
  return results


def write_metrics(folder: Path, scores: Scores, **more) -> None:
  """metrics.json (structure -> metric -> mean, std, …; "patients"; **more) and metrics.csv (a row a structure)."""
  content = {**more, **summarise(scores), "agreement": agreement(scores), "patients": scores}
  rows = io.StringIO()
  writer = csv.DictWriter(rows, ["patient", "structure", *METRICS], restval="", lineterminator="\n")
  writer.writeheader()
  for patient, structures in scores.items():
    for structure, values in structures.items():
      rounded = {metric: f"{value:.6g}" for metric, value in values.items()}
      writer.writerow({"patient": patient, "structure": structure, **rounded})
  write_text(folder / "metrics.csv", rows.getvalue())
  write_text(folder / "metrics.json", json.dumps(content, indent=2) + "\n")


def format_table(
  results: Mapping[str, Summary], metric: str = "dice", digits: int = 3, p_values: Mapping[str, float] | None = None
) -> str:
  """A metric of each stage as text: mean ± std over patients, what the last one gains over the first, and p values."""
  names = [*STRUCTURES, "mean"]
  width = max(16, *(len(stage) + 2 for stage in results))
  row = lambda title, cells: f"{title:<{width}}" + "".join(f"{cell:>16}" for cell in cells)
  lines = [row(METRICS[metric].title, names)]
  for stage, summary in results.items():
    own = [summary[name][metric] for name in names]
    cells = [f"{values['mean']:.{digits}f} ± {values['std']:.{digits}f}" for values in own[:-1]]
    lines.append(row(stage, [*cells, f"{own[-1]['mean']:.{digits}f}"]))
  if len(results) > 1:
    first, *_, last = results.values()
    gains = [last[name][metric]["mean"] - first[name][metric]["mean"] for name in names]
    lines.append(row("difference", [f"{gain:+.{digits}f}" for gain in gains]))
  if p_values:
    lines.append(row("Wilcoxon's p", [f"{p:.2g}" for p in p_values.values()]))
  return "\n".join(lines)


def _compared(scores: Scores, patients: list[str], structure: str, metric: str) -> np.ndarray:
  values = np.array([scores[name][structure][metric] for name in patients])
  return np.abs(values) if METRICS[metric].best == 0.0 else values


def _describe(values: np.ndarray, best: float | None) -> dict[str, float]:
  described = {"mean": float(values.mean()), "std": float(values.std()), "median": float(np.median(values))}
  return described if best is None else described | {"worst": float(values[np.abs(values - best).argmax()])}
