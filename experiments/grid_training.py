"""An ablation grid, from its configuration to its table; the command line is ablation_grid.py."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from experiments.grid_results import Run, Scores, write_grid_results
from vamcei_jax import distributed
from vamcei_jax.config.files import CONFIG_FILE, changed_field, read_config, stage_content, write_config
from vamcei_jax.config.rules import shortened
from vamcei_jax.config.schema import GridConfig, StageConfig, vary
from vamcei_jax.data.loader import load_patients, make_draw
from vamcei_jax.data.preprocess import preprocess_settings
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.statistics import summarise
from vamcei_jax.files import locked
from vamcei_jax.grid import (
  averages,
  compile_grid,
  grid_placement,
  make_grid,
  maps_grids,
  members,
  runs_at_once,
)
from vamcei_jax.inference.volumes import predict_volume
from vamcei_jax.methods import vamcei
from vamcei_jax.methods.state import Params, State, config_arrays
from vamcei_jax.pipeline.domains import prepare_datasets, scored_patients, with_datasets
from vamcei_jax.pipeline.record import read_record, start_record
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.run import describe_run
from vamcei_jax.pipeline.stages import stage_key
from vamcei_jax.pipeline.teachers import load_stage
from vamcei_jax.pipeline.validation import mean_dice, mean_expected_dice, score
from vamcei_jax.training.checkpoints import open_checkpoints, restore_newest, save, set_aside
from vamcei_jax.training.log import METRICS_FILE, drop_later_lines
from vamcei_jax.training.loop import steps_to_go
from vamcei_jax.training.progress import WIDTH, format_duration
from vamcei_jax.training.shutdown import end, noted_signals

STAGE = "vamcei"
Networks = dict[str, Params]
Validate = Callable[[Networks], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class GridProgram:
  """A compiled grid, and what its runs share.

  config: of the stage; a run has another seed, and the changes of its row.
  devices: over which the runs are spread.
  mapped: of grid.maps_grids.
  data: domain -> slices, on all devices.
  init: run -> its state before the first step.
  advance: of grid.compile_grid.
  at_once: how many runs fit into memory.
  """

  config: StageConfig
  devices: distributed.Devices
  mapped: bool
  data: Any
  init: Callable[[Run], State]
  advance: Callable
  at_once: int


@dataclasses.dataclass(frozen=True)
class Part:
  """Runs of a grid that are trained together.

  name: of its folder in the workdir, and of its lines in the log.
  runs: of the part.
  padded: the same runs, the last one repeated up to a multiple of the devices.
  later: number of runs in the parts after it.
  """

  name: str
  runs: Sequence[Run]
  padded: Sequence[Run]
  later: int


def run_grid(config: ConfigDict, workdir: Path) -> Scores:
  """Trains and scores all runs of a grid, and writes its table; an existing grid in `workdir` is resumed.

  Args:
    config: of the stage vamcei, with a `grid`; see configs/ablation.py.
    workdir: of the grid.

  Returns:
    Run -> structure -> mean Dice of the target's test patients, or of its validation patients.

  Raises:
    InputError: config, data or workdir cannot be used; or as of train_grid.
  """
  resolved = resolve(config)
  if resolved.grid is None or not resolved.grid.rows:
    raise InputError("config.grid: no rows; give it rows and seeds, as configs/ablation.py does")
  if tuple(resolved.stages) != (STAGE,):
    raise InputError(f"config.stages={tuple(resolved.stages)}: must be ('{STAGE}',), the only stage of a grid")
  stage_config = resolved.stages[STAGE]
  if stage_config.init is not None:
    raise InputError(f"config.init={stage_config.init}: a grid starts from random parameters; set it to None")
  print(describe_run(stage_config, workdir), flush=True)
  datasets = prepare_datasets(stage_config.data, workdir)
  stage_config = with_datasets(stage_config, datasets)
  split, patients = scored_patients(datasets["target"])
  if patients[0].truth is None:
    raise InputError(f"{config.data.name}/{config.data.target}: no mask to score the rows by")
  refuse_changes(stage_config, resolved.content["grid"], workdir)

  with locked(workdir):
    earlier = read_record(workdir)
    write_config(workdir, resolved.content)
    start_record(workdir, resolved.content, datasets, earlier)
    slices = {domain: stored.load() for domain, stored in load_stage(stage_config, datasets, {}, {}).items()}
    program = make_program(stage_config, resolved.grid, slices)
    predict, settings = jax.jit(vamcei.make_predict(stage_config)), preprocess_settings(stage_config.data)
    maps = lambda networks, cases: [predict_volume(predict, networks, case.image) for case in cases]
    validation = list(load_patients(datasets["target"], "validation"))

    def validate(networks: Networks) -> dict[str, float]:
      probs = maps(networks, validation)
      return mean_expected_dice(probs) | mean_dice(validation, probs, settings)

    scores = {}
    for run, networks in train_grid(program, grid_runs(resolved.grid), validate, workdir):
      summary = summarise(score(patients, maps(networks, patients), settings))
      scores[run] = {structure: metrics["dice"]["mean"] for structure, metrics in summary.items()}
    scored = f"{len(patients)} {split} patients of {stage_config.data.name}/{stage_config.data.target}"
    write_grid_results(resolved.grid, scores, scored, resolved.content, workdir)
  return scores


def refuse_changes(config: StageConfig, grid: Mapping[str, Any], workdir: Path) -> None:
  """Raises an InputError if the workdir has a grid of another configuration.

  Args:
    config: of the stage, with the names of its datasets.
    grid: the section `grid` as config.json holds it.
    workdir: of the grid.
  """
  if not (workdir / CONFIG_FILE).exists():
    return
  before = read_config(workdir).get("grid", {})
  pairs = [(f"grid.{name}", before.get(name), grid[name]) for name in grid]
  # Of rows, the first one that differs is named.
  if isinstance(before.get("rows"), list):
    pairs = [("grid.rows", *rows) for rows in zip_longest(before["rows"], grid["rows"])] + pairs
  changes = (f"{name} had {shortened(then)}, has {shortened(now)}" for name, then, now in pairs if then != now)
  if field := changed_field(workdir / part_name(0), config) or next(changes, None):
    raise InputError(f"{workdir}: made with another configuration: {field}; use another --workdir")


def grid_runs(grid: GridConfig) -> list[Run]:
  """The runs of a grid, row by row."""
  return [Run(row, seed) for row, _ in grid.rows for seed in grid.seeds]


def part_name(number: int) -> str:
  """The name of a part of a grid."""
  return f"part{number}"


def run_keys(run: Run) -> tuple[Array, Array]:
  """The keys of a run's batches and of its state, as training/loop.py derives them."""
  draw_key, init_key = jax.random.split(stage_key(run.seed, STAGE))
  return draw_key, init_key


def make_program(
  config: StageConfig, grid: GridConfig, slices: Mapping, devices: distributed.Devices | None = None
) -> GridProgram:
  """Compiles a grid.

  Args:
    config: of the stage.
    grid: rows and seeds.
    slices: domain -> slices.
    devices: to use; all of this host by default. Where runs are not mapped, only the first is used.
  """
  devices = devices or jax.local_devices()
  mapped = maps_grids(devices)
  devices = devices if mapped else devices[:1]
  data = distributed.replicate(dict(slices), devices)
  step = vamcei.make_step(config)
  draw = make_draw(config)
  rows, init_state = dict(grid.rows), jax.jit(partial(vamcei.init_state, config))
  arrays = partial(config_arrays, networks=vamcei.NETWORKS, terms=vamcei.TERMS)

  def init(run: Run) -> State:
    _, init_key = run_keys(run)
    return init_state(init_key).replace(**arrays(vary(config, rows[run.row])))

  first = grid_runs(grid)[0]
  at_once = runs_at_once(step, draw, init(first), data, run_keys(first)[0], devices)
  advance = compile_grid(step, draw, devices, mapped=mapped)
  return GridProgram(config, devices, mapped, data, init, advance, at_once)


def train_grid(
  program: GridProgram, runs: Sequence[Run], validate: Validate, workdir: Path
) -> Iterator[tuple[Run, Networks]]:
  """Trains all runs, as many together as fit, and yields each run with its averaged parameters.

  Args:
    program: of the grid.
    runs: of the grid.
    validate: averaged parameters -> scores of the validation patients by name; called every `train.eval_every` steps.
    workdir: of the grid; parts that it already has are resumed.

  Raises:
    InputError: `train.max_bad_steps` successive steps of a run were not finite.
    SystemExit: SIGTERM or SIGINT was received; the state after the current step is saved.
  """
  devices = program.devices
  at_once = min(len(runs), program.at_once)
  for number, first in enumerate(range(0, len(runs), at_once)):
    members_of_part = list(runs[first : first + at_once])
    padding = members_of_part[-1:] * (-len(members_of_part) % len(devices))
    later = len(runs) - first - len(members_of_part)
    part = Part(part_name(number), members_of_part, members_of_part + padding, later)
    for run, networks in zip(part.runs, train_part(program, part, len(runs), validate, workdir), strict=True):
      yield run, jax.device_put(networks, devices[0])


def train_part(program: GridProgram, part: Part, total: int, validate: Validate, workdir: Path) -> list[Networks]:
  """Trains the runs of a part to their last step, from the newest checkpoint if there is one.

  Args:
    program: of the grid.
    part: of the grid.
    total: number of runs of the grid.
    validate: of train_grid.
    workdir: of the grid.

  Returns:
    The averaged parameters of each run, in the memory of the host.
  """
  folder, train = workdir / part.name, program.config.train
  write_config(folder, stage_content(program.config))
  with open_checkpoints(folder / "checkpoints", train.keep) as checkpoints:
    states = restore_states(program, part, checkpoints)
    step = int(states[0].step)
    grid = make_grid(states, program.devices, mapped=program.mapped)
    del states  # the devices may have no memory for them beside the grid
    doing = "; compiling" if step < train.steps else ", finished"
    print(f"{part.name}: {len(part.runs)} of {total} runs, step {step} of {train.steps}{doing}", flush=True)
    grid = advance_part(program, part, grid, step, checkpoints, validate, workdir)
    checkpoints.wait_until_finished()
  return [jax.device_get(networks) for networks in islice(averages(grid), len(part.runs))]


def restore_states(program: GridProgram, part: Part, checkpoints: ocp.CheckpointManager) -> list[State]:
  """The states of a part's runs, of the newest intact checkpoint or before the first step, each on its device."""
  placement = grid_placement(len(part.padded), program.devices)
  abstract = jax.eval_shape(lambda: program.init(part.padded[0]))
  states, damaged = restore_newest(checkpoints, [abstract] * len(part.padded), placement)
  set_aside(checkpoints, damaged)
  if states is None:
    return [jax.device_put(program.init(run), place) for run, place in zip(part.padded, placement, strict=True)]
  return states


def advance_part(
  program: GridProgram,
  part: Part,
  grid: list[State] | State,
  step: int,
  checkpoints: ocp.CheckpointManager,
  validate: Validate,
  workdir: Path,
) -> list[State] | State:
  """The grid after its last step; losses and validation Dice are logged and states are saved on the way.

  Args:
    program, part: of the grid.
    grid: of grid.make_grid; must not be used again.
    step: steps done.
    checkpoints: manager of the part.
    validate: of train_grid.
    workdir: of the grid.
  """
  train, first = program.config.train, step
  intervals = (train.log_every, train.eval_every, train.checkpoint_every)
  keys = jnp.stack([run_keys(run)[0] for run in part.padded])
  skipped, since, started = [0] * len(part.padded), step, time.perf_counter()
  total = taken = np.zeros(len(part.padded))  # of the losses since the last line, and number of their steps
  with open_grid_log(workdir, part, step) as log, noted_signals() as signals:
    while step < train.steps:
      count = steps_to_go(step, train, program.devices)
      grid, metrics = program.advance(grid, program.data, keys, count)
      step += count
      skipped = count_skipped(skipped, metrics["skipped"], count)
      stop_if_stuck(part, skipped, train.max_bad_steps)
      of_dispatch = count * (1 - metrics["skipped"])
      taken, total = taken + of_dispatch, total + np.where(of_dispatch > 0, of_dispatch * metrics["loss"], 0)
      stopped = bool(signals)
      if step == train.steps or not all(step % every for every in intervals):
        # The first line of a session includes the compilation, so it has no rate.
        rate = (step - since) / (time.perf_counter() - started) if since > first else None
        losses = np.divide(total, taken, out=np.full(len(taken), np.nan), where=taken > 0)
        scores = [{"loss": float(loss)} for loss in losses[: len(part.runs)]]
        if step % train.eval_every == 0 or step == train.steps:
          for run_scores, networks in zip(scores, averages(grid), strict=False):
            run_scores.update(validate(jax.device_put(networks, program.devices[0])))
        log(step, scores)
        print(progress(part, scores, step, train.steps, rate), flush=True)
        total, taken, since, started = 0 * total, 0 * taken, step, time.perf_counter()
      if step % train.checkpoint_every == 0 or step == train.steps or stopped:
        save(checkpoints, members(grid), step)
      if stopped:
        checkpoints.wait_until_finished()
        end(signals[0], f"{part.name} stopped at step {step}, which is saved; the same command resumes from there")
  return grid


@contextmanager
def open_grid_log(workdir: Path, part: Part, step: int) -> Iterator[Callable[[int, Sequence[Mapping]], None]]:
  """Yields log(step, scalars of each run): a line for each run in metrics.jsonl, and TensorBoard events.

  Lines of the part after `step` are dropped first: a resumed part logs those steps again.
  """
  path = workdir / METRICS_FILE
  drop_later_lines(path, part.name, step)
  with (
    path.open("a", encoding="utf-8") as lines,
    SummaryWriter(str(workdir / part.name), purge_step=step + 1) as events,
  ):

    def log(step: int, scores: Sequence[Mapping[str, float]]) -> None:
      for run, scalars in zip(part.runs, scores, strict=True):
        lines.write(json.dumps({"stage": part.name, "step": step, **run._asdict(), **scalars}) + "\n")
        for name, value in scalars.items():
          events.add_scalar(f"{name}/{run.row}, seed {run.seed}", value, step)
      lines.flush()

    yield log


def progress(part: Part, scores: Sequence[Mapping[str, float]], step: int, steps: int, rate: float | None) -> str:
  """A printed line: mean loss, range of the validation Dice and its best row, speed, time left of the whole grid.

  Args:
    part: of the grid.
    scores: "loss" and, if it was evaluated, "dice" of each run.
    step, steps: done, and of a run.
    rate: steps a second of the whole part, or None.
  """
  speed, best = "", ""
  if rate:
    seconds = ((steps - step) + steps * part.later / len(part.runs)) / rate
    speed = f"  {rate:#.3g} steps/s  {format_duration(seconds)} left"
  line = f"{part.name} {step:>5}/{steps}  loss {np.mean([each['loss'] for each in scores]):#.3g}"
  if dices := [each["dice"] for each in scores if math.isfinite(each.get("dice", math.nan))]:
    line += f"  validation Dice {min(dices):.3f} to {max(dices):.3f}"
    row, room = part.runs[int(np.argmax(dices))].row, WIDTH - len(line) - len(speed) - 3
    best = f" ({row if len(row) <= room else row[: room - 1] + '…'})"
  return line + best + speed


def count_skipped(before: Sequence[int], shares: Sequence[float], count: int) -> list[int]:
  """Number of successive skipped steps of each run, in whole dispatches.

  Args:
    before: the numbers before a dispatch.
    shares: share of skipped steps in the dispatch, of each run.
    count: steps of the dispatch.
  """
  return [number + count if share == 1.0 else 0 for number, share in zip(before, shares, strict=True)]


def stop_if_stuck(part: Part, skipped: Sequence[int], most: int) -> None:
  """Raises an InputError if a run has skipped `most` successive steps."""
  worst = int(np.argmax(skipped))
  if skipped[worst] >= most:
    run = part.padded[worst]
    raise InputError(
      f"{run.row}, seed {run.seed}: {skipped[worst]} steps in a row were not finite; the checkpoints hold the state "
      "before them: lower config.optimizer.rates, in another --workdir"
    )
