"""What a run ends with: results.json, metrics of each stage, report.html and overlays.png."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vamcei_jax.config.schema import DataConfig
from vamcei_jax.data.loader import Patient
from vamcei_jax.data.preprocess import preprocess_settings
from vamcei_jax.evaluation.figures import save_panels
from vamcei_jax.evaluation.report import Case, write_report
from vamcei_jax.evaluation.statistics import format_table, write_csv, write_results
from vamcei_jax.pipeline.record import describe_session, read_record
from vamcei_jax.pipeline.validation import overlay_rows, prepared_masks, score
from vamcei_jax.training.log import METRICS_FILE, read_log
from vamcei_jax.training.progress import format_duration

RESULTS = ("results.json", "report.html", "overlays.png")


def remove_results(workdir: Path) -> None:
  """Removes the results of an earlier run, which a run in the workdir makes invalid."""
  for file in RESULTS:
    (workdir / file).unlink(missing_ok=True)


def write_run_results(
  data: DataConfig,
  content: Mapping,
  patients: Sequence[Patient],
  split: str,
  probs: Mapping[str, Sequence[np.ndarray]],
  workdir: Path,
) -> dict:
  """Scores predictions, writes the results of a run and prints their table.

  Args:
    data: of the run.
    content: the run's configuration, for the report.
    patients: of `split`, with or without masks.
    split: "test", "validation" or "train".
    probs: stage -> class probabilities (D, h, w, K) of each patient.
    workdir: of the run.

  Returns:
    The content of results.json.
  """
  settings = preprocess_settings(data)
  scores = {stage: score(patients, maps, settings) for stage, maps in probs.items()}
  scores = {stage: by_patient for stage, by_patient in scores.items() if by_patient}
  for stage, by_patient in scores.items():
    write_results(workdir / stage / "metrics.json", {stage: by_patient}, split=split)
    write_csv(workdir / stage / "metrics.csv", by_patient)
  results = write_results(workdir / "results.json", scores, split=split)
  save_panels(workdir / "overlays.png", overlay_rows(patients, probs, settings))

  index = {patient.name: i for i, patient in enumerate(patients)}

  def load_case(name: str) -> Case:
    patient = patients[index[name]]
    masks = prepared_masks(patient, {stage: maps[index[name]] for stage, maps in probs.items()}, settings)
    pixel = patient.spacing[1:] if settings.spacing is None else (1.0, 1.0)
    return Case(patient.image, masks.pop("truth", None), masks, pixel)

  target, report = f"{data.name}/{data.target}", workdir / "report.html"
  text, log = json.dumps(content, indent=2, sort_keys=True), read_log(workdir / METRICS_FILE)
  masks = f", masks of the same patients {data.same_patients}" if data.same_patients else ""
  about = {"Data": f"{data.name}: source {data.source or 'none'}, target {data.target}{masks}", "Run": str(workdir)}
  about |= describe_circumstances(workdir, log)
  title, names = f"Run {workdir.name}", list(index)
  write_report(report, title, about, scores, load_case, split=split, names=names, log=log, config=text)
  if scores:
    table = format_table({stage: method["summary"] for stage, method in results["methods"].items()})
    print(f"\n{len(patients)} {split} patients of {target}\n{table}")
  else:
    print(f"\n{target} has no masks to score predictions with; see the predictions in {report}")
  print(f"Report, pictures and numbers: {workdir}")
  return results


def describe_circumstances(workdir: Path, log: Sequence[Mapping]) -> dict[str, str]:
  """Commit and device of a run's sessions, how long it was trained, and how well a label-free score ranks it.

  Args:
    workdir: of the run.
    log: lines of its metrics.jsonl.
  """
  record, about = read_record(workdir), {}
  sessions = [describe_session(session) for session in record["sessions"]] if record else []
  for name in dict.fromkeys(name for session in sessions for name in session):
    about[name] = "; ".join(dict.fromkeys(session[name] for session in sessions if name in session))
  if seconds := training_seconds(log):
    about["Training time"] = f"{format_duration(seconds)}, without compilation and evaluation"
  if ranking := describe_ranking(log):
    about["Expected Dice"] = f"rank correlation with the validation Dice: {ranking}"
  return about


def describe_ranking(log: Sequence[Mapping]) -> str:
  """How well the expected Dice, which needs no label, ranks the evaluations of each stage, or the runs of a grid.

  That is Spearman's correlation with the Dice of the validation patients. A grid's runs count by their last evaluation.

  Args:
    log: lines of metrics.jsonl.

  Returns:
    "no_adaptation 0.98 (20 evaluations)", for each stage with three evaluations or more whose scores differ; empty if
    there is none.
  """
  groups: dict[str, dict] = {}
  for line in log:
    if "dice" in line and "expected_dice" in line:
      name, key = ("all rows", (line["row"], line["seed"])) if "row" in line else (line["stage"], line["step"])
      groups.setdefault(name, {})[key] = line["expected_dice"], line["dice"]
  texts = []
  for name, pairs in groups.items():
    expected, true = zip(*pairs.values(), strict=True)
    if len(pairs) >= 3 and len(set(expected)) > 1 and len(set(true)) > 1:
      # Imported late: its import takes as long as that of JAX.
      from scipy.stats import spearmanr

      counted = "runs" if name == "all rows" else "evaluations"
      texts.append(f"{name} {spearmanr(expected, true).statistic:.2f} ({len(pairs)} {counted})")
  return ", ".join(texts)


def training_seconds(log: Sequence[Mapping]) -> float:
  """Seconds that the logged steps took. The steps before the first line of a session have no rate, and do not count."""
  seconds, steps = 0.0, dict[str, int]()
  for line in log:
    stage, step = line["stage"], line["step"]
    if rate := line.get("steps_per_second"):
      seconds += (step - steps.get(stage, 0)) / rate
    steps[stage] = step
  return seconds
