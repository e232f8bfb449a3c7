"""What training is watched by, and what a run ends with: scores of patients, and pictures of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.data.loader import Patient, load_slices
from vamcei_jax.data.preprocess import Preprocess, preprocess_classes, restore_probabilities
from vamcei_jax.evaluation.inference import predict_volume
from vamcei_jax.evaluation.metrics import dice, summarise
from vamcei_jax.evaluation.pictures import save_panels

PICTURED = 6  # cases in a picture
WATCHED = 16  # slices a domain on which translation is watched


def segmentation_evaluator(
  predict: Callable, patients: Sequence[Patient], settings: Preprocess, folder: Path, stage: str
) -> Callable[[Mapping, int], dict[str, float]]:
  """Returns evaluate(networks, step) -> Dice of the patients, if they are labelled; it leaves a picture of them."""

  def evaluate(networks: Mapping, step: int) -> dict[str, float]:
    probs = [predict_volume(predict, networks, patient.image) for patient in patients]
    save_panels(folder / "pictures" / f"{step:06d}.png", overlay_rows(patients, {stage: probs}, settings))
    scores = score(patients, probs, settings)
    if not scores:
      return {}
    summary = summarise(scores)
    return {f"dice_{name}": summary[name]["mean"] for name in STRUCTURES} | {"dice": summary["mean"]}

  return evaluate


def translation_evaluator(
  translate: Callable, datasets: Mapping[str, tfds.core.DatasetBuilder], folder: Path
) -> Callable[[Mapping, int], dict[str, float]]:
  """Returns evaluate(networks, step) -> mean absolute error of the way there and back, by domain; it leaves a picture.

  translate(networks, direction, image (N, h, w)) gives the same images in the other domain's contrast.

  The picture has S | S→T | S→T→S with the source's masks, and T | T→S | T→S→T.
  """
  watched = {}
  for domain in ("source", "target"):
    slices = load_slices(datasets[domain], "train", labels=domain == "source")
    every = np.linspace(0, len(slices["image"]) - 1, WATCHED).round().astype(int)
    watched[domain] = {name: values[every] for name, values in slices.items()}

  def evaluate(networks: Mapping, step: int) -> dict[str, float]:
    errors, rows = {}, []
    for domain, there, back in (("source", "to_target", "to_source"), ("target", "to_source", "to_target")):
      image = watched[domain]["image"]
      translated = translate(networks, there, image)
      restored = translate(networks, back, translated)
      errors[f"cycle_error_{domain}"] = float(np.abs(restored - image).mean())
      own, other = ("S", "T") if domain == "source" else ("T", "S")
      titles = (own, f"{own}→{other}", f"{own}→{other}→{own}")
      for i in range(WATCHED // 4, WATCHED, WATCHED // 4):
        mask = watched[domain]["label"][i] if "label" in watched[domain] else None
        panels = zip(titles, (image, translated, restored), strict=True)
        rows.append([(title, images[i], mask) for title, images in panels])
    save_panels(folder / "pictures" / f"{step:06d}.png", rows)
    return errors

  return evaluate


def score(patients: Sequence[Patient], maps: Sequence[np.ndarray], settings: Preprocess) -> dict[str, dict[str, float]]:
  """Dice of each structure by labelled patient, on the original grid."""
  scores = {}
  for patient, probs in zip(patients, maps, strict=True):
    if patient.truth is not None:
      restored = restore_probabilities(probs, patient.shape, patient.spacing, settings, patient.centre)
      scores[patient.name] = dice(restored.argmax(-1), patient.truth)
  return scores


def overlay_rows(patients: Sequence[Patient], maps: Mapping[str, Sequence[np.ndarray]], settings: Preprocess) -> list:
  """Rows for a picture: the middle slice of the first patients, its truth, if known, and every stage's prediction."""
  rows = []
  for i, patient in enumerate(patients[:PICTURED]):
    middle = len(patient.image) // 2
    panels = {f"{patient.name}, slice {middle}": None}
    if patient.truth is not None:
      truth = patient.truth[middle : middle + 1]
      panels["truth"] = preprocess_classes(truth, patient.spacing, settings, patient.centre)[0]
    panels |= {stage: probs[i][middle].argmax(-1) for stage, probs in maps.items()}
    rows.append([(title, patient.image[middle], mask) for title, mask in panels.items()])
  return rows
