"""Trains a run again from its run.json, and compares the parameters."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vamcei_jax import distributed
from vamcei_jax.config.schema import StageConfig
from vamcei_jax.environment import jax_settings
from vamcei_jax.errors import InputError
from vamcei_jax.inference.load import restore_final
from vamcei_jax.methods.state import Params, digest
from vamcei_jax.pipeline.record import RUN_FILE, differences, read_record
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.run import run


@jax_settings()
def reproduce(origin: Path, workdir: Path, retrain: Collection[str] = ()) -> bool:
  """Trains a run again; prints what differs between the two, first in their circumstances, then in their parameters.

  The same call resumes it after an interruption. On several hosts, all of them call it alike, and the first one
  compares.

  Args:
    origin: workdir of the finished run. It is only read, and its checkpoints are not needed.
    workdir: of the new run.
    retrain: stages to train from the start in `workdir`.

  Returns:
    Whether the parameters of all stages agree bit for bit.

  Raises:
    InputError: `origin` has no run.json of a finished run or is `workdir` itself; and the errors of pipeline.run.
  """
  path = origin / RUN_FILE
  record = read_record(origin)
  if record is None:
    raise InputError(f"{path}: not found; --reproduce must name a run's workdir, and the run's command writes the file")
  if "grid" in record["config"]:
    raise InputError(f"{path}: of a grid of runs; give its command, experiments.ablation_grid, another --workdir")
  if workdir.resolve() == origin.resolve():
    raise InputError(f"{workdir}: the run that is to be reproduced; use another --workdir")
  try:
    config = ConfigDict(_with_tuples(record["config"]))
    configs = resolve(config).stages
  except (AttributeError, InputError, KeyError, TypeError, ValueError) as error:
    raise InputError(f"{path}: a damaged config ({error}); restore the file") from None
  if unfinished := [stage for stage in configs if stage not in record["stages"]]:
    raise InputError(f"{path}: {unfinished[0]} was not finished; finish the run first, by its own command")

  print(f"{origin}: trained again in {workdir}", flush=True)
  run(config, workdir, retrain, on_start=lambda current: _print_differences(record, current))
  if not distributed.is_first_host():
    return True
  current = read_record(workdir) or {}
  print(f"\n{origin} and {workdir}:")
  return all([_compare(stage, configs[stage], origin, workdir, record, current) for stage in configs])


def _print_differences(then: dict, now: dict) -> None:
  """Prints what differs between each session of the first run and the current session."""
  current = {**now["sessions"][-1], "data": now["data"]}
  for number, session in enumerate(then["sessions"], 1):
    lines = differences({**session, "data": then["data"]}, current)
    lines = lines or ["versions, commit, devices and data are the same"]
    if session["git"].get("dirty"):
      lines.append("git: files had been changed since that commit, and the changes are not recorded")
    for line in lines:
      print(line if len(then["sessions"]) == 1 else f"session {number}: {line}", flush=True)


def _compare(stage: str, config: StageConfig, origin: Path, workdir: Path, then: dict, now: dict) -> bool:
  """Prints whether a stage's parameters agree and, if there are checkpoints, how much they differ."""
  agree, checkpoints = then["stages"][stage] == now["stages"][stage], origin / stage / "checkpoints"
  theirs = None if distributed.on_many_hosts() else restore_final(origin / stage, config)
  changed = theirs is not None and digest(theirs) != then["stages"][stage]
  if agree and not changed:
    print(f"{stage}: parameters agree bit for bit")
    return True
  ours = None if theirs is None else restore_final(workdir / stage, config)
  if theirs is None or ours is None:
    print(f"{stage}: parameters differ; without {checkpoints} it is not known by how much")
    return False
  gap = f"{_largest_difference(theirs, ours):.3g}"
  if changed:
    print(f"{stage}: {checkpoints} has other parameters than {RUN_FILE} records; the new ones differ by up to {gap}")
  else:
    print(f"{stage}: parameters differ by up to {gap}")
  return False


def _largest_difference(a: dict[str, Params], b: dict[str, Params]) -> float:
  """The largest absolute difference of a parameter; NaN if one is NaN."""
  gap = lambda x, y: np.max(np.abs(np.asarray(x) - np.asarray(y)))
  return float(np.max(jax.tree.leaves(jax.tree.map(gap, a, b))))


def _with_tuples(value: Any) -> Any:
  """Lists of JSON as tuples, as in configs."""
  if isinstance(value, dict):
    return {name: _with_tuples(item) for name, item in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
