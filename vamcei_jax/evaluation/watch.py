"""What training is watched by, and what a run ends with: scores of patients, and pictures of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.data.loader import Patient, load_slices
from vamcei_jax.data.preprocess import Preprocess, preprocess_classes, restore_probabilities
from vamcei_jax.evaluation.figures import save_panels
from vamcei_jax.evaluation.inference import predict_volume
from vamcei_jax.evaluation.metrics import dice, measure
from vamcei_jax.evaluation.statistics import Scores

PICTURED = 6  # cases in a picture
WATCHED = 16  # slices a domain on which translation is watched


def segmentation_evaluator(
  predict: Callable, patients: Sequence[Patient], settings: Preprocess, folder: Path, stage: str
) -> Callable[[Mapping, int], dict[str, float]]:
  """Returns evaluate(networks, step) -> Dice of the patients, if they are labelled; it leaves a picture of them."""

  def evaluate(networks: Mapping, step: int) -> dict[str, float]:
    probs = [predict_volume(predict, networks, patient.image) for patient in patients]
    save_panels(folder / "pictures" / f"{step:06d}.png", overlay_rows(patients, {stage: probs}, settings))
    masks = restore_masks(patients, probs, settings)
    scores = [dice(mask, own.truth) for own, mask in zip(patients, masks, strict=True) if own.truth is not None]
    if not scores:
      return {}
    means = {name: float(np.mean([own[name] for own in scores])) for name in STRUCTURES}
    return {f"dice_{name}": mean for name, mean in means.items()} | {"dice": float(np.mean(list(means.values())))}

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


def restore_masks(
  patients: Sequence[Patient], maps: Sequence[np.ndarray], settings: Preprocess
) -> Iterator[np.ndarray]:
  """Class indices (D, H, W) on the patients' original grids, from class probabilities on the prepared ones."""
  for patient, probs in zip(patients, maps, strict=True):
    yield restore_probabilities(probs, patient.shape, patient.spacing, settings, patient.centre).argmax(-1)


def score(patients: Sequence[Patient], maps: Sequence[np.ndarray], settings: Preprocess) -> Scores:
  """All metrics of the labelled patients, on their original grids."""
  masks = zip(patients, restore_masks(patients, maps, settings), strict=True)
  return {own.name: measure(mask, own.truth, own.spacing) for own, mask in masks if own.truth is not None}


def overlay_rows(patients: Sequence[Patient], maps: Mapping[str, Sequence[np.ndarray]], settings: Preprocess) -> list:
  """Rows for a picture: the middle slice of the first patients, its truth, if known, and every stage's prediction."""
  rows = []
  for i, patient in enumerate(patients[:PICTURED]):
    middle = len(patient.image) // 2
    masks = prepared_masks(patient, {stage: probs[i] for stage, probs in maps.items()}, settings)
    panels = {f"{patient.name}, slice {middle}": None} | {title: mask[middle] for title, mask in masks.items()}
    rows.append([(title, patient.image[middle], mask) for title, mask in panels.items()])
  return rows


def prepared_masks(patient: Patient, probs: Mapping[str, np.ndarray], settings: Preprocess) -> dict[str, np.ndarray]:
  """The truth, if known, and what stages' class probabilities (D, h, w, K) say: title -> class indices (D, h, w)."""
  truth = {}
  if patient.truth is not None:
    truth["truth"] = preprocess_classes(patient.truth, patient.spacing, settings, patient.centre)
  return truth | {stage: own.argmax(-1) for stage, own in probs.items()}
