"""Scores and figures of the validation cases during training, and of the scored patients at the end of a run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.data.loader import Patient, load_slices
from vamcei_jax.data.preprocess import Preprocess, preprocess_classes, restore_probabilities
from vamcei_jax.evaluation.figures import save_panels
from vamcei_jax.evaluation.metrics import dice, measure
from vamcei_jax.evaluation.statistics import Scores, annotated
from vamcei_jax.inference.quality import expected_dice
from vamcei_jax.inference.volumes import predict_volume
from vamcei_jax.pipeline.domains import PICTURED

VALIDATION_SLICES = 16  # of each domain, for translation


def segmentation_evaluator(
  predict: Callable, validation_cases: Sequence[Patient], settings: Preprocess, folder: Path, stage: str
) -> Callable[[Mapping, int], dict[str, float]]:
  """Returns evaluate(networks, step) -> scores of the validation cases; it writes a figure of them.

  The scores are mean_expected_dice of all cases, and mean_dice of the labelled ones.
  """

  def evaluate(networks: Mapping, step: int) -> dict[str, float]:
    probs = [predict_volume(predict, networks, patient.image) for patient in validation_cases]
    save_panels(folder / "pictures" / f"{step:06d}.png", overlay_rows(validation_cases, {stage: probs}, settings))
    return mean_expected_dice(probs) | mean_dice(validation_cases, probs, settings)

  return evaluate


def mean_expected_dice(maps: Sequence[np.ndarray]) -> dict[str, float]:
  """The Dice that class probabilities (D, h, w, K) predict of their own masks, without a label, as "expected_dice".

  It is the mean over structures and volumes. Empty without a volume.
  """
  expected = [np.mean(expected_dice(probs, probs.argmax(-1))) for probs in maps]
  return {"expected_dice": float(np.mean(expected))} if expected else {}


def mean_dice(patients: Sequence[Patient], maps: Sequence[np.ndarray], settings: Preprocess) -> dict[str, float]:
  """Mean Dice of the labelled patients: of each structure that some mask has, as "dice_LV", and their mean, "dice".

  Empty without a labelled patient.
  """
  pairs = zip(patients, restore_masks(patients, maps, settings), strict=True)
  scores = [dice(mask, patient.truth) for patient, mask in pairs if patient.truth is not None]
  if not scores:
    return {}
  drawn = np.unique(np.concatenate([np.unique(patient.truth) for patient in patients if patient.truth is not None]))
  names = [name for number, name in enumerate(STRUCTURES, start=1) if number in drawn] or STRUCTURES
  means = {name: float(np.mean([by_structure[name] for by_structure in scores])) for name in names}
  return {f"dice_{name}": mean for name, mean in means.items()} | {"dice": float(np.mean(list(means.values())))}


def translation_evaluator(
  translate: Callable, datasets: Mapping[str, tfds.core.DatasetBuilder], folder: Path
) -> Callable[[Mapping, int], dict[str, float]]:
  """Returns evaluate(networks, step) -> mean absolute error after translation there and back, by domain.

  It writes a figure with S | S→T | S→T→S and the source's masks, and T | T→S | T→S→T.

  Args:
    translate: (networks, direction, image (N, h, w)) -> the image in the other domain's contrast.
    datasets: role -> prepared dataset.
    folder: of the stage.
  """
  slices = {}
  for domain in ("source", "target"):
    loaded = load_slices(datasets[domain], "train", labels=domain == "source")
    chosen = np.linspace(0, len(loaded["image"]) - 1, VALIDATION_SLICES).round().astype(int)
    slices[domain] = {name: values[chosen] for name, values in loaded.items()}

  def evaluate(networks: Mapping, step: int) -> dict[str, float]:
    errors, rows = {}, []
    for domain, direction, back in (("source", "to_target", "to_source"), ("target", "to_source", "to_target")):
      image = slices[domain]["image"]
      translated = translate(networks, direction, image)
      restored = translate(networks, back, translated)
      errors[f"cycle_error_{domain}"] = float(np.abs(restored - image).mean())
      this, other = ("S", "T") if domain == "source" else ("T", "S")
      titles = (this, f"{this}→{other}", f"{this}→{other}→{this}")
      for i in range(VALIDATION_SLICES // 4, VALIDATION_SLICES, VALIDATION_SLICES // 4):
        mask = slices[domain]["label"][i] if "label" in slices[domain] else None
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
  """All metrics of the labelled patients, on their original grids, of the structures that some mask has."""
  pairs = zip(patients, restore_masks(patients, maps, settings), strict=True)
  return annotated(
    {
      patient.name: measure(mask, patient.truth, patient.spacing)
      for patient, mask in pairs
      if patient.truth is not None
    }
  )


def overlay_rows(patients: Sequence[Patient], maps: Mapping[str, Sequence[np.ndarray]], settings: Preprocess) -> list:
  """Rows of a figure: the middle slice of the first patients, its true mask, if known, and each stage's prediction."""
  rows = []
  for i, patient in enumerate(patients[:PICTURED]):
    middle = len(patient.image) // 2
    masks = prepared_masks(patient, {stage: probs[i] for stage, probs in maps.items()}, settings)
    panels = {f"{patient.name}, slice {middle}": None} | {title: mask[middle] for title, mask in masks.items()}
    rows.append([(title, patient.image[middle], mask) for title, mask in panels.items()])
  return rows


def prepared_masks(patient: Patient, probs: Mapping[str, np.ndarray], settings: Preprocess) -> dict[str, np.ndarray]:
  """Title -> class indices (D, h, w): "truth", if known, and what each stage's probabilities (D, h, w, K) predict."""
  truth = {}
  if patient.truth is not None:
    truth["truth"] = preprocess_classes(patient.truth, patient.spacing, settings, patient.centre)
  return truth | {stage: maps.argmax(-1) for stage, maps in probs.items()}
