"""Which term of VAMCEI brings what? Rows of loss weights times seeds, trained as one program.

python -m experiments.ablation_grid --config=configs/ablation.py --workdir=runs/ablation

With the same seed, every row starts from the same parameters and sees the same batches; a row is the run that
vamcei_jax.main makes with its weights. As many runs as fit into memory are trained at once, the others after them. The
same command resumes. Ends with ablation.csv, .json, .md and .png: Dice on the target's test patients, mean ± standard
deviation over seeds.
"""

import csv
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from vamcei_jax import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/ with a `grid`; --config.FIELD=VALUE.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/ablation", "Folder of the grid.")
flags.mark_flag_as_required("config")

STAGE = "vamcei"
Run = tuple[str, int]  # row, seed


def main() -> None:
  from vamcei_jax.config import changed_field, write_config
  from vamcei_jax.errors import InputError
  from vamcei_jax.files import locked
  from vamcei_jax.pipeline import load_stage, name_datasets, prepare_datasets, scored_patients
  from vamcei_jax.provenance import begin_record, read_record
  from vamcei_jax.stages import stage_configs

  config, workdir = _CONFIG.value, Path(_WORKDIR.value)
  if "grid" not in config:
    raise InputError(f"{command_line.config_path()}: has no `grid` of rows and seeds; see configs/ablation.py")
  own = stage_configs(config)[STAGE]
  names = [(row, seed) for row, _ in config.grid.rows for seed in config.grid.seeds]
  configs = {(row, seed): run_config(own, row, seed) for row, seed in names}
  datasets = prepare_datasets(own, workdir)
  name_datasets([own], datasets)
  _, patients = scored_patients(datasets["target"])
  if patients[0].truth is None:
    raise InputError(f"{config.data.name}/{config.data.target}: no mask to score the rows by")
  if field := changed_field(workdir, own):
    raise InputError(f"{workdir}: made with another configuration: {field}; use another --workdir")

  with locked(workdir):
    before = read_record(workdir)
    write_config(workdir, own)
    begin_record(workdir, own, datasets, before)
    slices = {domain: stored.load() for domain, stored in load_stage(STAGE, own, datasets, {}, {}).items()}
    scores = judge(configs, train_grid(configs, slices, workdir), patients)
    write_table([row for row, _ in config.grid.rows], scores, workdir)


def run_config(config: ConfigDict, row: str, seed: int) -> ConfigDict:
  """The configuration of one run: the weights of the terms that its row does not keep are 0."""
  own = config.copy_and_resolve_references()
  kept = {"segmentation", *dict(config.grid.rows)[row]}
  for term, weight in config.loss.weights.items():
    if term not in kept:
      own.loss.weights[term] = tuple(0.0 for _ in weight) if isinstance(weight, tuple) else 0.0
  own.seed = seed
  return own


def train_grid(configs: Mapping[Run, ConfigDict], slices: Mapping, workdir: Path) -> Iterator[tuple[Run, dict]]:
  """Trains all runs, as many at once as fit, and yields each one with the moving averages of its networks.

  Args:
    configs: of each run; they differ in seed and loss weights alone.
    slices: domain -> slices.
    workdir: of the grid; what it holds is gone on with.

  Raises:
    InputError: a run made no finite step between as many lines of the log as hold `train.max_bad_steps` steps.
  """
  import jax

  from vamcei_jax import parallel
  from vamcei_jax.checkpoints import open_checkpoints, restore_newest, save, set_aside
  from vamcei_jax.data.loader import draw_batch
  from vamcei_jax.errors import InputError
  from vamcei_jax.interruption import end, noted_signals
  from vamcei_jax.methods import vamcei
  from vamcei_jax.methods.state import loss_weights
  from vamcei_jax.stages import stage_key
  from vamcei_jax.training import open_log

  runs, config = list(configs), next(iter(configs.values()))
  settings, steps = config.train, config.train.steps
  devices = jax.local_devices()
  mapped = parallel.maps_grids(devices)
  devices = devices if mapped else devices[:1]
  data = parallel.replicate(dict(slices), devices)
  step = vamcei.make_step(config)
  draw = partial(draw_batch, batch_size=config.train.batch_size, crop=config.data.crop, strengths=config.augment)
  keys = {run: jax.random.split(stage_key(run[1], STAGE)) for run in runs}  # of its batches, of its own
  begin = jax.jit(partial(vamcei.init_state, config))
  init = lambda run: begin(keys[run][1]).replace(weights=loss_weights(configs[run]))

  one = init(runs[0])
  at_once = min(len(runs), parallel.runs_at_once(step, draw, one, data, keys[runs[0]][0], devices))
  advance = parallel.compile_grid(step, draw, devices, mapped=mapped)
  for number, first in enumerate(range(0, len(runs), at_once)):
    part, name = runs[first : first + at_once], f"part{number}"
    padded = part + [part[-1]] * (-len(part) % len(devices))
    draws = jax.numpy.stack([keys[run][0] for run in padded])
    with open_checkpoints(workdir / name / "checkpoints", settings.keep) as checkpoints:
      places = parallel.grid_placement(len(padded), devices)
      states, damaged = restore_newest(checkpoints, [jax.eval_shape(lambda: one)] * len(padded), places)
      set_aside(checkpoints, damaged)
      if states is None:
        states = [jax.device_put(init(run), place) for run, place in zip(padded, places, strict=True)]
      done, bad = int(states[0].step), [0] * len(padded)
      grid = parallel.make_grid(states, devices, mapped=mapped)
      del states  # for which there is no memory beside the grid
      print(f"{name}: {len(part)} of {len(runs)} runs, step {done} of {steps}", flush=True)
      with open_log(workdir, name, done) as log, noted_signals() as signals:
        stopped = False
        while done < steps and not stopped:
          every = (settings.log_every, settings.checkpoint_every)
          count, started = min(steps - done, *(n - done % n for n in every)), time.perf_counter()
          grid, metrics = advance(grid, data, draws, count)
          done, rate = done + count, count / (time.perf_counter() - started)
          bad = [lasted + count if share == 1.0 else 0 for lasted, share in zip(bad, metrics["skipped"], strict=True)]
          if max(bad) >= settings.max_bad_steps:
            row, seed = padded[bad.index(max(bad))]
            reason = f"{max(bad)} steps in a row were not finite; checkpoints hold what was learned before"
            raise InputError(f"{row}, seed {seed}: {reason}; lower config.optimizer.rates, in another --workdir")
          losses = {f"loss {row}, seed {seed}": float(metrics["loss"][i]) for i, (row, seed) in enumerate(part)}
          log(done, losses, rate, steps)
          stopped = bool(signals)
          if done % settings.checkpoint_every == 0 or done == steps or stopped:
            save(checkpoints, parallel.members(grid), done, None)
      checkpoints.wait_until_finished()
      if stopped:
        end(signals[0], f"{name} stopped at step {done}, which is saved; the same command goes on from there")
    trained = [jax.device_get(state.ema) for state in parallel.members(grid)]
    del grid  # before that of the next part is made
    yield from ((run, jax.device_put(networks, devices[0])) for run, networks in zip(part, trained, strict=False))


def judge(
  configs: Mapping[Run, ConfigDict], trained: Iterator[tuple[Run, dict]], patients: Sequence
) -> dict[Run, dict[str, float]]:
  """Mean Dice of patients by structure, of every run."""
  import jax

  from vamcei_jax.config import preprocess_settings
  from vamcei_jax.evaluation.inference import predict_volume
  from vamcei_jax.evaluation.statistics import summarise
  from vamcei_jax.evaluation.watch import score
  from vamcei_jax.methods import vamcei

  config, scores = next(iter(configs.values())), {}
  predict = jax.jit(vamcei.make_predict(config))
  for run, networks in trained:
    probs = [predict_volume(predict, networks, patient.image) for patient in patients]
    summary = summarise(score(patients, probs, preprocess_settings(config)))
    scores[run] = {structure: own["dice"]["mean"] for structure, own in summary.items()}
  return scores


def write_table(rows: Sequence[str], scores: Mapping[Run, Mapping[str, float]], workdir: Path) -> None:
  """Writes ablation.csv, .json, .md and .png, and prints the table: mean ± standard deviation over seeds."""
  import numpy as np

  from vamcei_jax.evaluation.pictures import save_bars
  from vamcei_jax.files import write_text

  columns = list(next(iter(scores.values())))
  seeds = {row: [own for (name, _), own in scores.items() if name == row] for row in rows}
  means = {row: {c: float(np.mean([own[c] for own in seeds[row]])) for c in columns} for row in rows}
  stds = {row: {c: float(np.std([own[c] for own in seeds[row]])) for c in columns} for row in rows}

  text = io.StringIO()
  lines = csv.writer(text, lineterminator="\n")
  lines.writerow(["row", "seed", *columns])
  lines.writerows([row, seed, *(f"{own[c]:.4f}" for c in columns)] for (row, seed), own in scores.items())
  write_text(workdir / "ablation.csv", text.getvalue())
  write_text(workdir / "ablation.json", json.dumps({"mean": means, "std": stds}, indent=2) + "\n")
  table = ["| Dice | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
  for row in rows:
    table.append(f"| {row} | " + " | ".join(f"{means[row][c]:.3f} ± {stds[row][c]:.3f}" for c in columns) + " |")
  write_text(workdir / "ablation.md", "\n".join(table) + "\n")
  save_bars(workdir / "ablation.png", means, stds, "Dice, mean ± standard deviation over seeds")
  print("\n" + "\n".join(table) + f"\nTables and picture: {workdir}")


if __name__ == "__main__":
  command_line.run(main)
