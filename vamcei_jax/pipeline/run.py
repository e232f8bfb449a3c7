"""A run: its data, its stages in order, and its results. Finished stages are skipped, interrupted ones resumed."""

import contextlib
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from vamcei_jax import distributed
from vamcei_jax.config.files import stage_content, write_config
from vamcei_jax.config.schema import StageConfig
from vamcei_jax.data.preprocess import preprocess_settings
from vamcei_jax.environment import jax_settings
from vamcei_jax.errors import InputError
from vamcei_jax.files import expanded, locked
from vamcei_jax.inference.load import load_networks
from vamcei_jax.inference.volumes import predict_volume, translate_volume
from vamcei_jax.methods import cyclegan
from vamcei_jax.methods.state import Params, fitting_arrays
from vamcei_jax.pipeline.domains import (
  Datasets,
  locate_hearts,
  prepare_datasets,
  scored_patients,
  translate_datasets,
  with_datasets,
)
from vamcei_jax.pipeline.effort import workloads
from vamcei_jax.pipeline.plan import Plan, inspect_folders, make_plan, remove_stages
from vamcei_jax.pipeline.record import read_record, record_stage, start_record
from vamcei_jax.pipeline.resolve import RunConfig, resolve
from vamcei_jax.pipeline.results import remove_results, write_run_results
from vamcei_jax.pipeline.stages import ADAPT, DISTILL, LOCATOR, STAGES, stage_key
from vamcei_jax.pipeline.teacher_predictions import named_teachers, prepare_for_adapt, teacher_rows
from vamcei_jax.pipeline.teachers import load_stage, scored_stacks, teacher_probabilities
from vamcei_jax.pipeline.validation import segmentation_evaluator, translation_evaluator
from vamcei_jax.training.loop import train


@jax_settings()
def run(
  config: ConfigDict,
  workdir: Path,
  retrain: Collection[str] = (),
  on_start: Callable[[dict], None] = lambda record: None,
) -> dict:
  """Runs all stages of a configuration in `workdir`; an existing run in it is resumed.

  The results are of the target's test patients where their masks are known, else of its validation patients, after the
  last step: no choice is made by target labels. Without any mask, predictions are pictured and not scored.

  On several hosts, all of them call it alike, with a shared workdir and shared prepared data. The first one writes, and
  returns the results.

  Args:
    config: of the run, see configs/uda.py.
    workdir: of the run.
    retrain: stages to train from the start, with all stages that need them.
    on_start: called on the first host before training, with the content of run.json.

  Returns:
    The content of results.json.

  Raises:
    InputError: config, data or workdir cannot be used; nothing was trained or removed.
  """
  resolved = resolve(config)
  if resolved.grid is not None:
    raise InputError("config.grid: a grid of runs; train it with experiments.ablation_grid")
  first = next(iter(resolved.stages.values()))
  for stage in resolved.stages.values():  # raises an error if the hosts cannot share a batch
    distributed.devices_for(stage.train.batch_size)
  trained = load_init(first, workdir)
  check_init(resolved.stages, trained)
  if distributed.is_first_host():
    print(describe_run(first, workdir), flush=True)
  prepare = partial(prepare_for_adapt, first) if first.name == ADAPT else partial(prepare_datasets, first.data, workdir)
  datasets = distributed.first_host_first(prepare)
  configs = name_datasets(resolved.stages, datasets, after_locator=False)
  with contextlib.ExitStack() as stack:
    distributed.first_host_first(lambda: distributed.is_first_host() and stack.enter_context(locked(workdir)))
    folders = inspect_folders(configs, workdir)
    plan = make_plan(configs, folders, retrain, workdir)
    earlier = read_record(workdir)
    distributed.wait_for_hosts("checked")
    if distributed.is_first_host():
      on_start(prepare_workdir(resolved, plan, datasets, earlier, workdir))
    distributed.wait_for_hosts("cleared")
    finished = [stage for stage, action in plan.actions.items() if action == "skip"]
    results = run_stages(resolved, configs, datasets, workdir, finished, trained)
    distributed.wait_for_hosts("finished")
    return results


def load_init(config: StageConfig, workdir: Path) -> dict[str, Params] | None:
  """The networks of `config.init`, from which the stages start; None if they start from random parameters.

  Raises:
    InputError: the weights, or those of a teacher, are missing, damaged, or of a stage that the run itself trains.
  """
  for teacher in config.teachers or ():
    load_outside("teachers", teacher, workdir)
  return None if config.init is None else load_outside("init", config.init, workdir)


def starts_from(stage: str, trained: Mapping[str, Params] | None) -> bool:
  """Whether a stage starts from the networks of load_init: one has its name. The locator has a field of its own."""
  return stage != LOCATOR and bool(set(trained or ()) & set(STAGES[stage].method.NETWORKS))


def check_init(stages: Mapping[str, StageConfig], trained: Mapping[str, Params] | None) -> None:
  """Raises an InputError if no stage starts from the networks of load_init, or if a stage does and no kernel fits."""
  if trained is None:
    return
  starting = [config for name, config in stages.items() if starts_from(name, trained)]
  if not starting:
    init = next(iter(stages.values())).init
    raise InputError(f"config.init={init}: has {', '.join(trained)}, and no stage that could start from it")
  for config in starting:
    state = jax.eval_shape(partial(STAGES[config.name].method.init_state, config, jax.random.key(0)))
    if not any(name[-1] == "kernel" for name in fitting_arrays(state.params, trained)):
      raise InputError(f"config.init={config.init}: no kernel of it fits {config.name}; set config.model as it has it")


def load_outside(field: str, path: str, workdir: Path) -> dict[str, Params]:
  """The networks that a field of the configuration names; raises an InputError if the run itself trains them."""
  stage, _, _, networks = load_networks(expanded(path))
  if stage.resolve().parent == workdir.resolve() and stage.name in STAGES:
    raise InputError(f"config.{field}={path}: a stage of --workdir={workdir}; use another --workdir")
  return networks


def describe_run(config: StageConfig, workdir: Path) -> str:
  """The first line of a run: its devices, data and workdir."""
  data = config.data
  origin = f" in {data.root}" if data.root else ""
  known = data.source or ", ".join(named_teachers(config))
  masks = f", masks of the same patients {data.same_patients}" if data.same_patients else ""
  domains = f"{data.name}, {known} to {data.target}{masks}{origin}"
  return f"device: {distributed.describe_devices()}; data: {domains}; workdir: {workdir}"


def prepare_workdir(config: RunConfig, plan: Plan, datasets: Datasets, earlier: dict | None, workdir: Path) -> dict:
  """Prints the plan, writes config.json and run.json, and removes what the plan discards; returns run.json."""
  print("stages: " + ", ".join(f"{stage} ({action})" for stage, action in plan.actions.items()), flush=True)
  write_config(workdir, config.content)
  record = start_record(workdir, config.content, datasets, None if plan.starts_over else earlier, plan.discard)
  remove_stages(workdir, plan.discard)
  if not plan.keeps_results:
    remove_results(workdir)
  return record


def name_datasets(
  configs: Mapping[str, StageConfig], datasets: Datasets, *, after_locator: bool
) -> dict[str, StageConfig]:
  """The stages' configurations with the names of their datasets.

  In a run that finds the hearts first, those of the later stages are known after the locator.
  """
  located = LOCATOR in configs
  named = lambda stage: not located or (stage == LOCATOR) != after_locator
  return {stage: with_datasets(config, datasets) if named(stage) else config for stage, config in configs.items()}


def run_stages(
  resolved: RunConfig,
  configs: Mapping[str, StageConfig],
  datasets: Datasets,
  workdir: Path,
  finished: Collection[str],
  trained: dict[str, Params] | None,
) -> dict:
  """Trains the stages of a checked run, and writes its results; returns the content of results.json.

  Args:
    resolved: configuration of the run.
    configs: of each stage, in order, with the names of their datasets.
    datasets: role -> prepared dataset of the first stage.
    workdir: of the run.
    finished: stages that need no training.
    trained: networks from which the stages start, of load_init.
  """
  predict = {stage: jax.jit(STAGES[stage].method.make_predict(config)) for stage, config in configs.items()}
  networks: dict[str, dict[str, Params]] = {}
  probs: dict[str, list[np.ndarray]] = {}
  compiled: dict[str, float] = {}  # stage -> seconds
  for stage in configs:
    config, folder, method = configs[stage], workdir / stage, STAGES[stage].method
    if distributed.is_first_host():
      write_config(folder, stage_content(config))
    evaluate = make_evaluator(config, predict[stage], datasets, folder)
    load = partial(load_stage, config, datasets, predict, networks)
    key, ahead = stage_key(resolved.seed, stage), partial(workloads, configs, {*finished, *networks}, compiled)
    start = trained if starts_from(stage, trained) else None
    networks[stage] = train(
      config, method, key, load, evaluate, workdir, start, ahead, on_compiled=partial(compiled.__setitem__, stage)
    )
    if distributed.is_first_host():
      record_stage(workdir, stage, networks[stage])

    if stage == LOCATOR:
      locate = partial(locate_hearts, config.data, predict[stage], networks[stage], datasets["target"], folder)
      distributed.first_host_first(locate)
      later = next(each for name, each in configs.items() if name != LOCATOR)
      datasets = distributed.first_host_first(partial(prepare_datasets, later.data, workdir))
      configs = name_datasets(configs, datasets, after_locator=True)
    elif method is cyclegan:
      translate = partial(translate_volume, predict[stage])
      make = partial(translate_datasets, translate, networks[stage], datasets, folder / "data")
      datasets.update(distributed.first_host_first(make))
    elif distributed.is_first_host():
      _, patients = scored_patients(datasets[STAGES[stage].target])
      if stage == DISTILL:
        stacks = scored_stacks(config, datasets)
        probs["teachers"] = teacher_probabilities(config, predict, networks, stacks)
      elif stage == ADAPT:
        probs |= teacher_rows(config, datasets, [patient.name for patient in patients])
      probs[stage] = [predict_volume(predict[stage], networks[stage], patient.image) for patient in patients]

  if not distributed.is_first_host():
    return {}
  split, patients = scored_patients(datasets["target"])
  data = list(configs.values())[-1].data  # the locator, which may come first, has another grid
  return write_run_results(data, resolved.content, patients, split, probs, workdir)


def make_evaluator(
  config: StageConfig, predict: Callable, datasets: Datasets, folder: Path
) -> Callable[[dict, int], Mapping[str, float]]:
  """evaluate(networks, step) -> scores of a stage during training."""
  stage = STAGES[config.name]
  if stage.method is cyclegan:
    return translation_evaluator(partial(translate_volume, predict), datasets, folder)
  _, validation_cases = scored_patients(datasets[stage.target], ("validation",))
  return segmentation_evaluator(predict, validation_cases, preprocess_settings(config.data), folder, config.name)
