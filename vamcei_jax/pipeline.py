"""A run: its data, its stages in order, and its results. A finished stage is skipped, a broken one resumed."""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from vamcei_jax.config import check_config, check_workdir, preprocess_settings, write_config
from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.data.loader import Patient, load_patients, load_slices
from vamcei_jax.data.preprocess import Preprocess, preprocess_classes, restore_probabilities
from vamcei_jax.datasets import prepare
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.inference import predict_volume
from vamcei_jax.evaluation.metrics import dice, format_table, summarise, write_metrics
from vamcei_jax.evaluation.pictures import save_curves, save_overlays
from vamcei_jax.files import write_text
from vamcei_jax.methods import supervised, vamcei
from vamcei_jax.methods.state import Params
from vamcei_jax.training import METRICS_FILE, read_log, train

METHODS = {"no_adaptation": supervised, "vamcei": vamcei}
PICTURED = 6  # patients in a picture


def run(config: ConfigDict, workdir: Path) -> dict:
  """Runs every stage of `config.stages` in `workdir` and returns what results.json holds.

  The final table is of the target's test patients where their masks are known, else of its validation patients, and
  of the last parameters, not of the best on validation: no choice is made by target labels.

  Raises:
    InputError: config, data or workdir that cannot be used; nothing has been trained then.
  """
  check_config(config, METHODS)
  check_workdir(workdir, config)
  source, target = (prepare_domain(config, domain) for domain in (config.data.source, config.data.target))
  validation, test = (list(load_patients(target, split)) for split in ("validation", "test"))
  if not validation:
    raise InputError(f"{target.info.full_name}: no labelled validation patient; training is watched on at least one")
  split, patients = ("test", test) if test else ("validation", validation)
  settings = preprocess_settings(config)
  data = jax.device_put({
    "source": load_slices(source, "train", labels=True),
    "target": load_slices(target, "train", labels=False),
  })
  write_config(workdir, config)

  maps = {}
  for stage in config.stages:
    predict = jax.jit(METHODS[stage].make_predict(config))

    def evaluate(params: Params, step: int, stage=stage, predict=predict) -> dict[str, float]:
      probs = predict_patients(predict, params, validation)
      picture = workdir / stage / "pictures" / f"{step:06d}.png"
      save_overlays(picture, overlay_rows(validation, {stage: probs}, settings))
      summary = summarise(score(validation, probs, settings))
      return {f"dice_{name}": summary[name]["mean"] for name in STRUCTURES} | {"dice": summary["mean"]}

    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(stage.encode()))
    params = train(config, stage, METHODS[stage], key, data, evaluate, workdir)
    maps[stage] = predict_patients(predict, params, patients)

  scores = {stage: score(patients, probs, settings) for stage, probs in maps.items()}
  for stage, by_patient in scores.items():
    write_metrics(workdir / stage, by_patient, split)
  results = {stage: summarise(by_patient) for stage, by_patient in scores.items()}
  write_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
  save_overlays(workdir / "overlays.png", overlay_rows(patients, maps, settings))
  save_curves(workdir / "curves.png", read_log(workdir / METRICS_FILE))
  print(f"\n{len(patients)} {split} patients of {config.data.name}/{config.data.target}\n{format_table(results)}")
  print(f"Pictures and numbers: {workdir}")
  return results


def prepare_domain(config: ConfigDict, domain: str) -> tfds.core.DatasetBuilder:
  """The prepared dataset of one domain of the run."""
  data = config.data
  return prepare(
    data.name,
    domain,
    data_dir=str(Path(data.prepared_dir).expanduser()),
    root=data.root,
    preprocess=preprocess_settings(config),
    label_values=tuple(data.label_values),
    **data.options,
  )


def predict_patients(predict: Callable, params: Params, patients: Sequence[Patient]) -> list[np.ndarray]:
  """Class probabilities (D, h, w, K) of each patient, on the network's grid."""
  return [predict_volume(predict, params, patient.image) for patient in patients]


def score(patients: Sequence[Patient], maps: Sequence[np.ndarray], settings: Preprocess) -> dict[str, dict[str, float]]:
  """Dice of each structure by patient, on the original grid."""
  scores = {}
  for patient, probs in zip(patients, maps, strict=True):
    restored = restore_probabilities(probs, patient.truth.shape, patient.spacing, settings)
    scores[patient.name] = dice(restored.argmax(-1), patient.truth)
  return scores


def overlay_rows(patients: Sequence[Patient], maps: Mapping[str, Sequence[np.ndarray]], settings: Preprocess) -> list:
  """Rows for a picture: the middle slice of the first patients with its truth and every stage's prediction."""
  rows = []
  for i, patient in enumerate(patients[:PICTURED]):
    middle = len(patient.image) // 2
    truth = preprocess_classes(patient.truth[middle : middle + 1], patient.spacing, settings)[0]
    masks = {"truth": truth} | {stage: probs[i][middle].argmax(-1) for stage, probs in maps.items()}
    rows.append((f"{patient.name}, slice {middle}", patient.image[middle], masks))
  return rows
