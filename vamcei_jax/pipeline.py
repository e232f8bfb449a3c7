"""A run: its data, its stages in order, and its results. A finished stage is skipped, a broken one resumed."""

import json
import sys
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from vamcei_jax.checkpoints import is_finished, restore_networks
from vamcei_jax.config import changed_field, preprocess_settings, read_config, write_config
from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.data.loader import Patient, load_patients, load_slices
from vamcei_jax.data.preprocess import Preprocess, preprocess_classes, restore_probabilities
from vamcei_jax.datasets import prepare
from vamcei_jax.datasets.translated import prepare_translated
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.inference import predict_volume
from vamcei_jax.evaluation.metrics import dice, format_table, summarise, write_metrics
from vamcei_jax.evaluation.pictures import save_curves, save_panels
from vamcei_jax.files import write_text
from vamcei_jax.methods import cyclegan, distillation
from vamcei_jax.methods.distillation import mean_probabilities
from vamcei_jax.methods.state import Params
from vamcei_jax.stages import STAGES, TEACHERS, TRANSLATED, remove_stages, stage_configs, stale_stages
from vamcei_jax.training import METRICS_FILE, read_log, train

PICTURED = 6  # cases in a picture
RESULTS = ("results.json", "overlays.png", "curves.png")  # what a run ends with
WATCHED = 16  # slices a domain on which translation is watched
Networks = dict[str, Params]
Datasets = dict[str, tfds.core.DatasetBuilder]


def run(config: ConfigDict, workdir: Path, again: Collection[str] = ()) -> dict:
  """Runs every stage of `config.stages` in `workdir` and returns what results.json holds.

  The final table is of the target's test patients where their masks are known, else of its validation patients, and
  of the last parameters, not of the best on validation: no choice is made by target labels.

  Args:
    config: of the run, see configs/uda.py.
    workdir: of the run; what it holds is gone on with.
    again: stages to train anew, with those that were built upon them.

  Raises:
    InputError: config, data or workdir that cannot be used; nothing has been trained or removed then.
  """
  configs = stage_configs(config)
  if unknown := [stage for stage in again if stage not in configs]:
    raise InputError(f"--stages={unknown[0]}: not a stage of this run; choose from {', '.join(configs)}")
  datasets = {domain: prepare_domain(config, config.data[domain]) for domain in ("source", "target")}
  for own in configs.values():  # a dataset's name tells its files: a stage goes on with those that it began with
    own.data.datasets = [builder.info.full_name for builder in datasets.values()]
  unfinished = [stage for stage, own in configs.items() if not is_finished(workdir / stage / "checkpoints", own)]
  stale = stale_stages(again, unfinished)
  changed = {stage: changed_field(workdir / stage, own) for stage, own in configs.items() if stage not in stale}
  if changed := {stage: field for stage, field in changed.items() if field}:
    stage, field = next(iter(changed.items()))
    anew = ",".join(stage for stage in configs if stage in changed or stage in again)
    raise InputError(
      f"{workdir / stage}: made with another configuration: {field}; "
      f"use another --workdir, or train anew what has changed: --stages={anew}"
    )
  if not list(load_patients(datasets["target"], "validation")):
    name = datasets["target"].info.full_name
    raise InputError(f"{name}: no labelled validation patient; training is watched on at least one")
  load_slices(datasets["source"], "train", labels=True)  # a mask that is missing is named before anything is written
  split = "test" if list(load_patients(datasets["target"], "test")) else "validation"
  write_config(workdir, config)
  remove_stages(workdir, stale)
  if unfinished or stale:
    for file in RESULTS:
      (workdir / file).unlink(missing_ok=True)

  settings = preprocess_settings(config)
  predict = {stage: jax.jit(STAGES[stage].method.make_predict(own)) for stage, own in configs.items()}
  networks, maps = {}, {}
  for stage, own in configs.items():
    folder, translates = workdir / stage, STAGES[stage].method is cyclegan
    write_config(folder, own)
    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(stage.encode()))
    if translates:
      evaluate = translation_evaluator(predict[stage], datasets, folder)
    else:
      watched = load_patients(datasets[STAGES[stage].target], "validation")
      evaluate = segmentation_evaluator(predict[stage], list(watched), settings, folder, stage)
    load = partial(load_stage, stage, own, datasets, predict, networks)
    networks[stage] = train(own, stage, STAGES[stage].method, key, load, evaluate, workdir)

    if translates:
      datasets.update(translate_datasets(predict[stage], networks[stage], datasets, folder / "data"))
      continue
    patients = load_patients(datasets[STAGES[stage].target], split)
    probs = [predict_volume(predict[stage], networks[stage], patient.image) for patient in patients]
    if STAGES[stage].method is distillation:
      of_teachers = zip(*(maps[teacher] for teacher in TEACHERS), strict=True)
      maps["teachers"] = [mean_probabilities(pair, own.distillation.teachers) for pair in of_teachers]
    maps[stage] = probs

  patients = list(load_patients(datasets["target"], split))
  return write_results(config, patients, split, maps, workdir)


def write_results(
  config: ConfigDict, patients: Sequence[Patient], split: str, maps: Mapping[str, Sequence], workdir: Path
) -> dict:
  """Scores class probabilities by name, and writes and prints what a run ends with; returns what results.json holds."""
  settings = preprocess_settings(config)
  scores = {name: score(patients, probs, settings) for name, probs in maps.items()}
  for name, by_patient in scores.items():
    write_metrics(workdir / name, by_patient, split)
  results = {name: summarise(by_patient) for name, by_patient in scores.items()}
  write_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
  save_panels(workdir / "overlays.png", overlay_rows(patients, maps, settings))
  save_curves(workdir / "curves.png", read_log(workdir / METRICS_FILE))
  print(f"\n{len(patients)} {split} patients of {config.data.name}/{config.data.target}\n{format_table(results)}")
  print(f"Pictures and numbers: {workdir}")
  return results


def restore_predict(folder: Path) -> tuple[Callable[[np.ndarray], np.ndarray], ConfigDict]:
  """What the last stage of a run, or the stage whose folder it is, says of target images.

  Returns:
    predict: prepared volume (D, h, w) -> class probabilities (D, h, w, K).
    config: of the stage.

  Raises:
    InputError: no run or no checkpoint there, or a stage that segments nothing.
  """
  folder = folder.resolve()
  last = read_config(folder).stages[-1]
  workdir = folder.parent if (folder / "checkpoints").is_dir() else folder
  if not (workdir / last).is_dir():
    raise InputError(f"{workdir / last}: not there yet; let the run reach this stage")
  stage, (config, networks) = STAGES[last], restore_stage(workdir / last)
  if stage.method is cyclegan:
    raise InputError(f"{folder}: a stage that translates and segments nothing; name the run or another stage of it")
  predict = jax.jit(stage.method.make_predict(config))
  segment = lambda image: predict_volume(predict, networks, image)
  if stage.target not in TRANSLATED:
    return segment, config
  translation, translators = restore_stage(workdir / "translate")
  translate = jax.jit(cyclegan.make_predict(translation))
  direction = TRANSLATED[stage.target][1]
  return lambda image: segment(translate_volume(translate, translators, direction, image)), config


def restore_stage(folder: Path) -> tuple[ConfigDict, Networks]:
  """Configuration and networks of the stage that lives in a folder; says so where its training is not finished."""
  config = read_config(folder)
  method = STAGES[config.stages[-1]].method
  abstract = jax.eval_shape(lambda: method.init_state(config, jax.random.key(0)))
  networks = restore_networks(folder / "checkpoints", abstract)
  if not is_finished(folder / "checkpoints", config):
    print(f"{folder}: training did not end; its newest checkpoint is used", file=sys.stderr)
  return config, networks


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


def translate_datasets(translate: Callable, networks: Networks, datasets: Datasets, folder: Path) -> Datasets:
  """Both datasets in the contrast of the other, made once and kept in `folder`."""
  translated = {}
  for name, (original, direction) in TRANSLATED.items():
    through = lambda image, direction=direction: translate_volume(translate, networks, direction, image)
    # The original's name tells its preprocessing, its files and its version: another original is translated anew.
    own_folder = folder / name / datasets[original].info.full_name
    translated[name] = prepare_translated(datasets[original], through, own_folder)
  return translated


def translate_volume(translate: Callable, networks: Networks, direction: str, image: np.ndarray) -> np.ndarray:
  """A prepared volume (D, h, w) in the other domain's contrast."""
  return predict_volume(translate, networks["translators"][direction], image)[..., 0]


def load_stage(stage: str, config: ConfigDict, datasets: Datasets, predict: Mapping, networks: Mapping) -> dict:
  """The slices that a stage learns from, by domain; for a student, with what its teachers say of the target's.

  Args:
    stage, config: name and configuration of the stage.
    datasets: name -> prepared dataset.
    predict, networks: stage -> compiled prediction and networks, of the teachers at least.
  """
  slices = {
    "source": load_slices(datasets[STAGES[stage].source], "train", labels=True),
    "target": load_slices(datasets[STAGES[stage].target], "train", labels=False),
  }
  if STAGES[stage].method is distillation:
    slices["target"]["teacher"] = teacher_probabilities(predict, networks, datasets, config)
  return slices


def teacher_probabilities(predict: Mapping, networks: Mapping, datasets: Datasets, config: ConfigDict) -> np.ndarray:
  """The teachers' mean class probabilities of all the target's slices: (N, h, w, K) float16, to save memory."""
  probs = []
  for teacher in TEACHERS:
    images = load_slices(datasets[STAGES[teacher].target], "train", labels=False)["image"]
    probs.append(predict_volume(predict[teacher], networks[teacher], images))
  return mean_probabilities(probs, config.distillation.teachers).astype(np.float16)


def segmentation_evaluator(
  predict: Callable, patients: Sequence[Patient], settings: Preprocess, folder: Path, stage: str
) -> Callable[[Networks, int], dict[str, float]]:
  """Returns evaluate(networks, step) -> Dice of the patients; it leaves a picture of them."""

  def evaluate(networks: Networks, step: int) -> dict[str, float]:
    probs = [predict_volume(predict, networks, patient.image) for patient in patients]
    save_panels(folder / "pictures" / f"{step:06d}.png", overlay_rows(patients, {stage: probs}, settings))
    summary = summarise(score(patients, probs, settings))
    return {f"dice_{name}": summary[name]["mean"] for name in STRUCTURES} | {"dice": summary["mean"]}

  return evaluate


def translation_evaluator(
  translate: Callable, datasets: Datasets, folder: Path
) -> Callable[[Networks, int], dict[str, float]]:
  """Returns evaluate(networks, step) -> mean absolute error of the way there and back, by domain; it leaves a picture.

  The picture has S | S→T | S→T→S with the source's masks, and T | T→S | T→S→T.
  """
  watched = {}
  for domain in ("source", "target"):
    slices = load_slices(datasets[domain], "train", labels=domain == "source")
    every = np.linspace(0, len(slices["image"]) - 1, WATCHED).round().astype(int)
    watched[domain] = {name: values[every] for name, values in slices.items()}

  def evaluate(networks: Networks, step: int) -> dict[str, float]:
    errors, rows = {}, []
    for domain, there, back in (("source", "to_target", "to_source"), ("target", "to_source", "to_target")):
      image = watched[domain]["image"]
      translated = translate_volume(translate, networks, there, image)
      restored = translate_volume(translate, networks, back, translated)
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
    panels = {f"{patient.name}, slice {middle}": None} | masks
    rows.append([(title, patient.image[middle], mask) for title, mask in panels.items()])
  return rows
