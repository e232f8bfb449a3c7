"""An ablation grid, from its configuration to its table; the command line is ablation_grid.py."""

import csv
import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array
from ml_collections import ConfigDict

from vamcei_jax import distributed
from vamcei_jax.config.files import CONFIG_FILE, changed_field, read_config, stage_content, write_config
from vamcei_jax.config.schema import GridConfig, StageConfig
from vamcei_jax.data.loader import Patient, draw_batch
from vamcei_jax.data.preprocess import preprocess_settings
from vamcei_jax.datasets import earlier_names
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.figures import save_bars
from vamcei_jax.evaluation.statistics import format_mean, sample_std, summarise
from vamcei_jax.files import locked, write_text
from vamcei_jax.grid import compile_grid, grid_placement, make_grid, maps_grids, members, runs_at_once
from vamcei_jax.inference.volumes import predict_volume
from vamcei_jax.methods import vamcei
from vamcei_jax.methods.state import Params, State
from vamcei_jax.pipeline.domains import prepare_datasets, scored_patients, with_datasets
from vamcei_jax.pipeline.record import read_record, start_record
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.stages import stage_key
from vamcei_jax.pipeline.teachers import load_stage
from vamcei_jax.pipeline.validation import score
from vamcei_jax.training.checkpoints import open_checkpoints, restore_newest, save, set_aside
from vamcei_jax.training.log import open_log
from vamcei_jax.training.shutdown import end, noted_signals

STAGE = "vamcei"
Networks = dict[str, Params]


class Run(NamedTuple):
  """One run of a grid: the name of its row, and its seed."""

  row: str
  seed: int


Scores = dict[Run, dict[str, float]]  # run -> structure -> mean Dice


@dataclasses.dataclass(frozen=True)
class GridProgram:
  """A compiled grid, and what its runs share.

  config: of the stage; a run has another seed and other loss weights.
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
  """

  name: str
  runs: Sequence[Run]
  padded: Sequence[Run]


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
  datasets = prepare_datasets(stage_config.data, workdir)
  stage_config = with_datasets(stage_config, datasets)
  _, patients = scored_patients(datasets["target"])
  if patients[0].truth is None:
    raise InputError(f"{config.data.name}/{config.data.target}: no mask to score the rows by")
  refuse_changes(stage_config, resolved.content["grid"], workdir, earlier_names(datasets.values()))

  with locked(workdir):
    earlier = read_record(workdir)
    write_config(workdir, resolved.content)
    start_record(workdir, resolved.content, datasets, earlier)
    slices = {domain: stored.load() for domain, stored in load_stage(stage_config, datasets, {}, {}).items()}
    program = make_program(stage_config, resolved.grid, slices)
    scores = score_runs(stage_config, train_grid(program, grid_runs(resolved.grid), workdir), patients)
    write_table([row for row, _ in resolved.grid.rows], scores, workdir)
  return scores


def refuse_changes(config: StageConfig, grid: Mapping[str, Any], workdir: Path, earlier: Mapping[str, str]) -> None:
  """Raises an InputError if the workdir has a grid of another configuration.

  Args:
    config: of the stage, with the names of its datasets.
    grid: the section `grid` as config.json holds it.
    workdir: of the grid.
    earlier: names of the datasets, see changed_field.
  """
  if not (workdir / CONFIG_FILE).exists():
    return
  before = read_config(workdir).get("grid", {})
  changed = [name for name in grid if before.get(name) != grid[name]]
  changes = [f"grid.{name} was {before.get(name)}, is {grid[name]}" for name in changed]
  if field := changed_field(workdir / part_name(0), config, earlier) or next(iter(changes), None):
    raise InputError(f"{workdir}: made with another configuration: {field}; use another --workdir")


def grid_runs(grid: GridConfig) -> list[Run]:
  """The runs of a grid, row by row."""
  return [Run(row, seed) for row, _ in grid.rows for seed in grid.seeds]


def part_name(number: int) -> str:
  """The name of a part of a grid."""
  return f"part{number}"


def row_weights(config: StageConfig, terms: Sequence[str]) -> dict[str, Array]:
  """The loss weights of a row: those of the segmentation and of its terms; the other terms have weight 0.

  Args:
    config: of the stage.
    terms: unsupervised terms of the row.

  Returns:
    Loss term -> () or (scales,) float32.
  """
  used = {"segmentation", *terms}
  weights = {name: weight if name in used else np.zeros_like(weight) for name, weight in config.loss.weights.items()}
  return {name: jnp.asarray(weight, jnp.float32) for name, weight in weights.items()}


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
  draw = partial(draw_batch, batch_size=config.train.batch_size, crop=config.data.crop, strengths=config.augment)
  rows, init_state = dict(grid.rows), jax.jit(partial(vamcei.init_state, config))

  def init(run: Run) -> State:
    _, init_key = run_keys(run)
    return init_state(init_key).replace(weights=row_weights(config, rows[run.row]))

  first = grid_runs(grid)[0]
  at_once = runs_at_once(step, draw, init(first), data, run_keys(first)[0], devices)
  advance = compile_grid(step, draw, devices, mapped=mapped)
  return GridProgram(config, devices, mapped, data, init, advance, at_once)


def train_grid(program: GridProgram, runs: Sequence[Run], workdir: Path) -> Iterator[tuple[Run, Networks]]:
  """Trains all runs, as many together as fit, and yields each run with its averaged parameters.

  Args:
    program: of the grid.
    runs: of the grid.
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
    part = Part(part_name(number), members_of_part, members_of_part + padding)
    for run, networks in zip(part.runs, train_part(program, part, len(runs), workdir), strict=True):
      yield run, jax.device_put(networks, devices[0])


def train_part(program: GridProgram, part: Part, total: int, workdir: Path) -> list[Networks]:
  """Trains the runs of a part to their last step, from the newest checkpoint if there is one.

  Args:
    program: of the grid.
    part: of the grid.
    total: number of runs of the grid.
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
    print(f"{part.name}: {len(part.runs)} of {total} runs, step {step} of {train.steps}", flush=True)
    grid = advance_part(program, part, grid, step, checkpoints, workdir)
    checkpoints.wait_until_finished()
  return [jax.device_get(state.ema_params) for state in members(grid)[: len(part.runs)]]


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
  workdir: Path,
) -> list[State] | State:
  """The grid after its last step; losses are logged and states are saved on the way.

  Args:
    program, part: of the grid.
    grid: of grid.make_grid; must not be used again.
    step: steps done.
    checkpoints: manager of the part.
    workdir: of the grid.
  """
  train = program.config.train
  keys = jnp.stack([run_keys(run)[0] for run in part.padded])
  skipped = [0] * len(part.padded)
  with open_log(workdir, part.name, step) as log, noted_signals() as signals:
    while step < train.steps:
      count = min(train.steps - step, *(every - step % every for every in (train.log_every, train.checkpoint_every)))
      started = time.perf_counter()
      grid, metrics = program.advance(grid, program.data, keys, count)
      step, rate = step + count, count / (time.perf_counter() - started)
      skipped = count_skipped(skipped, metrics["skipped"], count)
      stop_if_stuck(part, skipped, train.max_bad_steps)
      log(step, run_losses(part, metrics["loss"]), rate, train.steps)
      stopped = bool(signals)
      if step % train.checkpoint_every == 0 or step == train.steps or stopped:
        save(checkpoints, members(grid), step, None)
      if stopped:
        checkpoints.wait_until_finished()
        end(signals[0], f"{part.name} stopped at step {step}, which is saved; the same command resumes from there")
  return grid


def run_losses(part: Part, losses: Array) -> dict[str, float]:
  """The losses (runs,) of a part by their names in the log."""
  return {f"loss {run.row}, seed {run.seed}": float(losses[number]) for number, run in enumerate(part.runs)}


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


def score_runs(config: StageConfig, trained: Iterable[tuple[Run, Networks]], patients: Sequence[Patient]) -> Scores:
  """The mean Dice of patients by structure, of each run.

  Args:
    config: of the stage.
    trained: runs with their networks.
    patients: with masks.
  """
  predict, settings, scores = jax.jit(vamcei.make_predict(config)), preprocess_settings(config.data), {}
  for run, networks in trained:
    probs = [predict_volume(predict, networks, patient.image) for patient in patients]
    summary = summarise(score(patients, probs, settings))
    scores[run] = {structure: metrics["dice"]["mean"] for structure, metrics in summary.items()}
  return scores


def write_table(rows: Sequence[str], scores: Scores, workdir: Path) -> None:
  """Writes ablation.csv, .json, .md and .png, and prints the table: mean ± standard deviation over seeds."""
  columns = list(next(iter(scores.values())))
  means, stds = {}, {}
  for row in rows:
    values = {name: [by_name[name] for run, by_name in scores.items() if run.row == row] for name in columns}
    means[row] = {name: float(np.mean(numbers)) for name, numbers in values.items()}
    stds[row] = {name: sample_std(numbers) for name, numbers in values.items()}
  table = format_table(means, stds)
  write_text(workdir / "ablation.csv", format_csv(scores))
  write_text(workdir / "ablation.json", json.dumps({"mean": means, "std": stds}, indent=2) + "\n")
  write_text(workdir / "ablation.md", table)
  save_bars(workdir / "ablation.png", means, stds, "Dice, mean ± standard deviation over seeds")
  print(f"\n{table}Tables and picture: {workdir}")


def format_csv(scores: Scores) -> str:
  """Scores as CSV, a line a run."""
  text = io.StringIO()
  lines = csv.writer(text, lineterminator="\n")
  lines.writerow(["row", "seed", *next(iter(scores.values()))])
  lines.writerows([*run, *(f"{value:.4f}" for value in values.values())] for run, values in scores.items())
  return text.getvalue()


def format_table(means: Mapping[str, Mapping], stds: Mapping[str, Mapping]) -> str:
  """Means and standard deviations, row -> column -> value, as a Markdown table."""
  columns = list(next(iter(means.values())))
  lines = ["| Dice | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
  for row, values in means.items():
    lines.append(f"| {row} | " + " | ".join(format_mean(values[name], stds[row][name]) for name in columns) + " |")
  return "\n".join(lines) + "\n"
