"""A run: its data, its stages in order, and its results. A finished stage is skipped, a broken one resumed."""

import contextlib
import itertools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from vamcei_jax import parallel
from vamcei_jax.checkpoints import is_finished
from vamcei_jax.config import CONFIG_FILE, changed_field, preprocess_settings, write_config
from vamcei_jax.data.loader import Patient, load_patients, load_stacks
from vamcei_jax.data.preprocess import covers
from vamcei_jax.data.stream import StoredSlices
from vamcei_jax.datasets import left_out, prepare, refuse_shared
from vamcei_jax.datasets.translated import prepare_translated
from vamcei_jax.datasets.volumes import ROLES
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.inference import average_views, predict_volume, trained_views
from vamcei_jax.evaluation.pictures import save_curves, save_panels
from vamcei_jax.evaluation.postprocess import smooth_slices
from vamcei_jax.evaluation.report import Case, write_report
from vamcei_jax.evaluation.statistics import format_table, summarise, write_metrics
from vamcei_jax.evaluation.watch import (
  PICTURED,
  overlay_rows,
  prepared_masks,
  score,
  segmentation_evaluator,
  translation_evaluator,
)
from vamcei_jax.files import locked, write_text
from vamcei_jax.methods import cyclegan, distillation
from vamcei_jax.methods.distillation import mean_probabilities
from vamcei_jax.provenance import begin_record, read_record, record_stage
from vamcei_jax.restore import Networks, find_centre, translate_volume
from vamcei_jax.stages import (
  LOCATOR,
  STAGES,
  TRANSLATED,
  remove_stages,
  stage_configs,
  stage_key,
  stale_stages,
  teacher_weights,
)
from vamcei_jax.training import METRICS_FILE, read_log, train

RESULTS = ("results.json", "report.html", "overlays.png", "curves.png")  # what a run ends with
CENTRES_FILE = "centres.json"
Datasets = dict[str, tfds.core.DatasetBuilder]


def run(
  config: ConfigDict, workdir: Path, again: Collection[str] = (), begun: Callable[[dict], None] = lambda record: None
) -> dict:
  """Runs every stage of `config.stages` in `workdir` and returns what results.json holds.

  The final table is of the target's test patients where their masks are known, else of its validation patients, and
  of the last parameters, not of the best on validation: no choice is made by target labels. A target without any mask
  is pictured and not scored.

  On several hosts, all of them call it alike, with a workdir and prepared data that they share. The first one writes,
  and returns the results.

  Args:
    config: of the run, see configs/uda.py.
    workdir: of the run; what it holds is gone on with.
    again: stages to train anew, with those that were built upon them.
    begun: called on the first host, before anything is trained, with what run.json tells of the run.

  Raises:
    InputError: config, data or workdir that cannot be used; nothing has been trained or removed then.
  """
  configs = stage_configs(config)
  if unknown := [stage for stage in again if stage not in configs]:
    raise InputError(f"--stages={unknown[0]}: not a stage of this run; choose from {', '.join(configs)}")
  first = next(iter(configs))
  for own in configs.values():  # batches that the hosts cannot share
    parallel.devices_for(own.train.batch_size)
  datasets = parallel.first_host_first(lambda: prepare_datasets(configs[first], workdir))
  name_datasets([configs[LOCATOR]] if first == LOCATOR else configs.values(), datasets)
  with contextlib.ExitStack() as stack:
    parallel.first_host_first(lambda: parallel.is_first_host() and stack.enter_context(locked(workdir)))
    unfinished = [stage for stage, own in configs.items() if not is_finished(workdir / stage / "checkpoints", own)]
    anew, stale = stale_stages(configs, again, ()), stale_stages(configs, again, unfinished)
    # What all others learn from follows from what the locator finds.
    anew |= set(configs) if LOCATOR in again else set()
    stale |= anew | (set(configs) - {LOCATOR} if LOCATOR in unfinished else set())
    refuse_changes(configs, workdir, anew, again)
    before = read_record(workdir)
    parallel.wait_for_hosts("checked")
    if parallel.is_first_host():
      write_config(workdir, config)
      record = begin_record(workdir, config, datasets, None if set(configs) <= stale else before, stale)
      remove_stages(workdir, stale)
      if unfinished or stale:
        for file in RESULTS:
          (workdir / file).unlink(missing_ok=True)
      begun(record)
    parallel.wait_for_hosts("cleared")
    results = run_stages(config, configs, datasets, workdir)
    parallel.wait_for_hosts("finished")
    return results


def run_stages(config: ConfigDict, configs: Mapping[str, ConfigDict], datasets: Datasets, workdir: Path) -> dict:
  """The stages of a run that is checked, see run; returns what results.json holds.

  Args:
    config: of the run.
    configs: of each stage, in order.
    datasets: role -> prepared dataset that the first stage learns from.
    workdir: of the run.
  """
  later = list(configs)[1:]
  predict = {stage: jax.jit(STAGES[stage].method.make_predict(own)) for stage, own in configs.items()}
  teach = teaching(configs, predict)
  networks, maps = {}, {}
  for stage, own in configs.items():
    folder, method, target = workdir / stage, STAGES[stage].method, STAGES[stage].target
    if parallel.is_first_host():
      write_config(folder, own)
    key = stage_key(config.seed, stage)
    if method is cyclegan:
      translate = partial(translate_volume, predict[stage])
      evaluate = translation_evaluator(translate, datasets, folder)
    else:
      _, watched = scored_patients(datasets[target], ("validation",))
      evaluate = segmentation_evaluator(predict[stage], watched, preprocess_settings(own), folder, stage)
    load = partial(load_stage, stage, own, datasets, teach, networks)
    networks[stage] = train(own, stage, method, key, load, evaluate, workdir)
    if parallel.is_first_host():
      record_stage(workdir, stage, networks[stage])

    if stage == LOCATOR:
      locate = partial(locate_hearts, own, predict[stage], networks[stage], datasets["target"], folder)
      parallel.first_host_first(locate)
      datasets = parallel.first_host_first(partial(prepare_datasets, configs[later[0]], workdir))
      name_datasets([configs[stage] for stage in later], datasets)
    elif method is cyclegan:
      make = partial(translate_datasets, translate, networks[stage], datasets, folder / "data")
      datasets.update(parallel.first_host_first(make))
    elif parallel.is_first_host():
      _, patients = scored_patients(datasets[target])
      probs = [predict_volume(predict[stage], networks[stage], patient.image) for patient in patients]
      if method is distillation:
        seen = {teacher: scored_patients(datasets[STAGES[teacher].target])[1] for teacher in teacher_weights(own)}
        stacks = {teacher: [(each.image, each.spacing[0]) for each in those] for teacher, those in seen.items()}
        maps["teachers"] = teacher_probabilities(teach, networks, stacks, own)
      maps[stage] = probs

  if not parallel.is_first_host():
    return {}
  split, patients = scored_patients(datasets["target"])
  return write_results(config, patients, split, maps, workdir)


def refuse_changes(configs: Mapping[str, ConfigDict], workdir: Path, anew: Collection[str], again: Collection[str]):
  """Raises an InputError where a stage that is not trained `anew` was begun with another configuration.

  `again` are the stages that the user wants anew; the advice names them with those that have changed.
  """
  changed = {stage: changed_field(workdir / stage, own) for stage, own in configs.items() if stage not in anew}
  if changed := {stage: field for stage, field in changed.items() if field}:
    stage, field = next(iter(changed.items()))
    stages = ",".join(stage for stage in configs if stage in changed or stage in again)
    raise InputError(
      f"{workdir / stage}: made with another configuration: {field}; "
      f"use another --workdir, or train anew what has changed: --stages={stages}"
    )


def write_results(
  config: ConfigDict, patients: Sequence[Patient], split: str, maps: Mapping[str, Sequence], workdir: Path
) -> dict:
  """Scores class probabilities by name, and writes and prints what a run ends with; returns what results.json holds."""
  settings = preprocess_settings(config)
  scores = {name: score(patients, probs, settings) for name, probs in maps.items()}
  scores = {name: by_patient for name, by_patient in scores.items() if by_patient}
  for name, by_patient in scores.items():
    write_metrics(workdir / name, by_patient, split=split)
  results = {name: summarise(by_patient) for name, by_patient in scores.items()}
  write_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
  save_panels(workdir / "overlays.png", overlay_rows(patients, maps, settings))
  log = read_log(workdir / METRICS_FILE)
  save_curves(workdir / "curves.png", log)

  numbers = {patient.name: i for i, patient in enumerate(patients)}

  def load_case(name: str) -> Case:
    patient, probs = patients[numbers[name]], {stage: own[numbers[name]] for stage, own in maps.items()}
    masks = prepared_masks(patient, probs, settings)
    pixel = patient.spacing[1:] if settings.spacing is None else (1.0, 1.0)
    return Case(patient.image, masks.pop("truth", None), masks, pixel)

  target = f"{config.data.name}/{config.data.target}"
  about = {"Masks of": f"{len(patients)} {split} patients of {target}", "Run": str(workdir)}
  text = (workdir / CONFIG_FILE).read_text(encoding="utf-8")
  report, title = workdir / "report.html", f"Run {workdir.name}"
  write_report(report, title, about, scores, load_case, names=list(numbers), log=log, config=text)
  if results:
    print(f"\n{len(patients)} {split} patients of {target}\n{format_table(results)}")
  else:
    print(f"\n{target} has no masks to score predictions by; look at them in {report}")
  print(f"Report, pictures and numbers: {workdir}")
  return results


def prepare_datasets(config: ConfigDict, workdir: Path) -> Datasets:
  """The prepared datasets of a stage, by role; those of a run that looks for the heart are centred on it."""
  located = config.data.get("located", False)
  centres = dict.fromkeys(ROLES, "image")
  if located:
    centres = {"source": "mask", "target": json.loads((workdir / LOCATOR / CENTRES_FILE).read_text(encoding="utf-8"))}
  # What cannot be used of located data has been refused, or left out, when it was prepared for the locator.
  datasets = {role: prepare_domain(config, role, centres=centres[role], leave_out=located) for role in ROLES}
  refuse_shared(datasets["source"], datasets["target"])
  for builder in datasets.values():
    if files := left_out(builder):
      example = f"{len(files)} files were left out when it was prepared, among them {next(iter(files))}"
      print(f"{builder.info.full_name}: {example} (python -m vamcei_jax.prepare lists them)")
  return datasets


def prepare_domain(config: ConfigDict, role: str, **arguments) -> tfds.core.DatasetBuilder:
  """The prepared dataset of a run's "source" or "target"; **arguments as in datasets.prepare."""
  data = config.data
  return prepare(
    data.name,
    data[role],
    role,
    data_dir=str(Path(data.prepared_dir).expanduser()),
    root=data.root,
    preprocess=preprocess_settings(config),
    label_values=data.label_values,
    plane=data.get("view", "short_axis"),
    **data.options,
    **arguments,
  )


def name_datasets(configs: Collection[ConfigDict], datasets: Datasets) -> None:
  """Notes in stages' configurations the names of their datasets, which tell the files: a stage goes on with those."""
  for config in configs:
    config.data.datasets = [datasets[role].info.full_name for role in ROLES]


def scored_patients(
  target: tfds.core.DatasetBuilder, splits: Sequence[str] = ("test", "validation")
) -> tuple[str, list[Patient]]:
  """The labelled patients of the first split that has some; else a few unlabelled ones of "train", to look at."""
  for split in splits:
    if patients := list(load_patients(target, split)):
      return split, patients
  return "train", list(itertools.islice(load_patients(target, "train", labelled=False), PICTURED))


def locate_hearts(
  config: ConfigDict, predict: Callable, networks: Networks, target: tfds.core.DatasetBuilder, folder: Path
) -> None:
  """Writes centres.json, the pixel on which the field is put for each of the target's patients, unless it is there.

  The middle of the image where no heart is found. Once written they stand: on another machine, sums are rounded in
  another order.
  """
  if (folder / CENTRES_FILE).exists():
    return
  centres, settings = {}, preprocess_settings(config)
  for split in target.info.splits:
    for patient in load_patients(target, split, labelled=False):
      if not covers(patient.shape, patient.spacing, settings):
        print(f"{patient.name}: wider than the locator's field; enlarge config.stage.{LOCATOR}.data.size", flush=True)
      found = find_centre(predict, networks, patient.image, patient.shape, patient.spacing, settings)
      centres[patient.name] = patient.centre if found is None else found
  write_text(folder / CENTRES_FILE, json.dumps(centres, indent=2) + "\n")


def translate_datasets(translate: Callable, networks: Networks, datasets: Datasets, folder: Path) -> Datasets:
  """Both datasets in the contrast of the other by translate(networks, direction, image), made once, in `folder`."""
  translated = {}
  for name, (original, direction) in TRANSLATED.items():
    through = partial(translate, networks, direction)
    # The original's name tells its preprocessing, its files and its version: another original is translated anew.
    own_folder = folder / name / datasets[original].info.full_name
    translated[name] = prepare_translated(datasets[original], through, own_folder)
  return translated


def teaching(configs: Mapping[str, ConfigDict], predict: Mapping[str, Callable]) -> dict[str, Callable]:
  """The predictions of a student's teachers; means over the views that each was trained on, if its config says so."""
  teachers = teacher_weights(configs["distill"]) if "distill" in configs else ()
  if not teachers or not configs["distill"].distillation.views:
    return {teacher: predict[teacher] for teacher in teachers}
  views = {teacher: trained_views(configs[teacher].augment) for teacher in teachers}
  return {teacher: jax.jit(average_views(predict[teacher], views[teacher])) for teacher in teachers}


def load_stage(
  stage: str, config: ConfigDict, datasets: Datasets, teach: Mapping, networks: Mapping
) -> dict[str, StoredSlices]:
  """The slices that a stage learns from, by domain; for a student, with what its teachers say of the target's.

  Args:
    stage, config: name and configuration of the stage.
    datasets: name -> prepared dataset.
    teach, networks: stage -> prediction and networks, of the teachers at least.
  """
  beside = {}
  if STAGES[stage].method is distillation:
    seen = cache(lambda dataset: load_stacks(datasets[dataset], "train"))
    stacks = {teacher: seen(STAGES[teacher].target) for teacher in teacher_weights(config)}
    # float16 saves memory.
    probs = teacher_probabilities(teach, networks, stacks, config)
    beside["teacher"] = np.concatenate(probs).astype(np.float16)
  return {
    "source": StoredSlices(datasets[STAGES[stage].source], "train", labels=True, empty=config.data.empty_slices),
    "target": StoredSlices(datasets[STAGES[stage].target], "train", labels=False, beside=beside),
  }


def teacher_probabilities(
  teach: Mapping,
  networks: Mapping,
  stacks: Mapping[str, Sequence[tuple[np.ndarray, float]]],
  config: ConfigDict,
) -> list[np.ndarray]:
  """The teachers' mean class probabilities (D, h, w, K) of each patient, smoothed along the stack.

  Args:
    teach, networks: stage -> prediction and networks.
    stacks: teacher -> image (D, h, w) of each patient, as that teacher is shown it, and mm between its slices.
    config: of the student, whose `distillation` says what is done to them.
  """
  weights, sigma = teacher_weights(config), config.distillation.smooth
  say = lambda teacher, image: predict_volume(teach[teacher], networks[teacher], image)
  means = []
  for seen in zip(*(stacks[teacher] for teacher in weights), strict=True):
    said = [say(teacher, image) for teacher, (image, _) in zip(weights, seen, strict=True)]
    distance = seen[0][1]
    means.append(smooth_slices(mean_probabilities(said, tuple(weights.values())), distance, sigma))
  return means
