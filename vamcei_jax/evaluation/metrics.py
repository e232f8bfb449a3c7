"""Dice of volumes, and its table over patients."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.files import write_text


def dice(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
  """Dice overlap 2|P∩T| / (|P| + |T|) of each structure, over all voxels of one volume.

  1 where both are empty, 0 where one is. Arrays are class indices of the same shape.
  """
  scores = {}
  for index, name in enumerate(STRUCTURES, start=1):
    p, t = prediction == index, truth == index
    size = p.sum() + t.sum()
    scores[name] = float(2.0 * (p & t).sum() / size) if size else 1.0
  return scores


def summarise(patients: Mapping[str, Mapping[str, float]]) -> dict:
  """{"Myo": {"mean", "std"}, …, "mean": …}: over patients, and the mean over structures of the means."""
  values = {name: np.array([scores[name] for scores in patients.values()]) for name in STRUCTURES}
  summary = {name: {"mean": float(v.mean()), "std": float(v.std())} for name, v in values.items()}
  return summary | {"mean": float(np.mean([v.mean() for v in values.values()]))}


def write_metrics(folder: Path, patients: Mapping[str, Mapping[str, float]], split: str) -> None:
  """metrics.json (summary and patients) and metrics.csv (a row a patient) of one split."""
  content = {"split": split, "summary": summarise(patients), "patients": patients}
  rows = io.StringIO()
  writer = csv.writer(rows, lineterminator="\n")
  writer.writerow(["patient", *STRUCTURES])
  writer.writerows([patient, *(f"{scores[name]:.6f}" for name in STRUCTURES)] for patient, scores in patients.items())
  write_text(folder / "metrics.csv", rows.getvalue())
  write_text(folder / "metrics.json", json.dumps(content, indent=2) + "\n")


def format_table(results: Mapping[str, Mapping]) -> str:
  """Dice of each stage as text, mean ± std over patients, and what the last one gains over the first."""
  names = [*STRUCTURES, "mean"]
  mean = lambda summary, name: summary[name]["mean"] if name in STRUCTURES else summary[name]
  lines = [f"{'Dice':<16}" + "".join(f"{name:>16}" for name in names)]
  for stage, summary in results.items():
    cells = [f"{summary[name]['mean']:.3f} ± {summary[name]['std']:.3f}" for name in STRUCTURES]
    lines.append(f"{stage:<16}" + "".join(f"{cell:>16}" for cell in [*cells, f"{summary['mean']:.3f}"]))
  if len(results) > 1:
    first, *_, last = results.values()
    gains = [f"{mean(last, name) - mean(first, name):+.3f}" for name in names]
    lines.append(f"{'difference':<16}" + "".join(f"{gain:>16}" for gain in gains))
  return "\n".join(lines)
