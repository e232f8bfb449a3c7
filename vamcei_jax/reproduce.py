"""A run made again from its run.json, and compared with what came of it then."""

from collections.abc import Collection
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from vamcei_jax import parallel
from vamcei_jax.checkpoints import digest
from vamcei_jax.config import add_earlier
from vamcei_jax.errors import InputError
from vamcei_jax.pipeline import run
from vamcei_jax.provenance import RUN_FILE, differences, read_record
from vamcei_jax.restore import Networks, restore_final
from vamcei_jax.stages import stage_configs


def reproduce(origin: Path, workdir: Path, again: Collection[str] = ()) -> bool:
  """Makes a run again and says what differs: first between then and now, at the end between the parameters.

  The same call goes on with what was interrupted. On several hosts, all of them call it alike, and the first
  one compares digests.

  Args:
    origin: workdir of the finished run; it is only read, and may lack its checkpoints.
    workdir: of the new run.
    again: stages to train anew in `workdir`.

  Returns:
    Whether the parameters of all stages are those of then, bit for bit.

  Raises:
    InputError: `origin` has no run.json of a finished run or is `workdir` itself, and what pipeline.run raises.
  """
  path = origin / RUN_FILE
  then = read_record(origin)
  if then is None:
    raise InputError(f"{path}: not found; --reproduce must name a run's workdir, and the run's command writes the file")
  if "grid" in then["config"]:
    raise InputError(f"{path}: of a grid of runs; give its own command, experiments.ablation_grid, another --workdir")
  if workdir.resolve() == origin.resolve():
    raise InputError(f"{workdir}: the run that is to be made again; use another --workdir")
  try:
    config = ConfigDict(_with_tuples(then["config"]))
    add_earlier(config)
    configs = stage_configs(config)
  except (AttributeError, InputError, KeyError, TypeError, ValueError) as error:
    raise InputError(f"{path}: a damaged config ({error}); restore the file") from None
  if unfinished := [stage for stage in configs if stage not in then["stages"]]:
    raise InputError(f"{path}: {unfinished[0]} was not finished; finish the run first, by its own command")

  print(f"{origin}: made again in {workdir}", flush=True)
  run(config, workdir, again, begun=lambda now: _tell_differences(then, now))
  if not parallel.is_first_host():
    return True
  now = read_record(workdir)
  print(f"\n{origin} and {workdir}:")
  return all([_compare(stage, configs[stage], origin, workdir, then, now) for stage in configs])


def _tell_differences(then: dict, now: dict) -> None:
  """Prints what differs between each session of then and this one, or that nothing does."""
  ours = {**now["sessions"][-1], "data": now["data"]}
  for number, session in enumerate(then["sessions"], 1):
    lines = differences({**session, "data": then["data"]}, ours) or ["versions, commit, devices and data are the same"]
    if session["git"].get("dirty"):
      lines.append("git: files had been changed since that commit, and how is not recorded")
    for line in lines:
      print(line if len(then["sessions"]) == 1 else f"session {number}: {line}", flush=True)


def _compare(stage: str, config: ConfigDict, origin: Path, workdir: Path, then: dict, now: dict) -> bool:
  """Prints whether a stage's parameters agree, and how far apart they are where checkpoints tell."""
  agree, checkpoints = then["stages"][stage] == now["stages"][stage], origin / stage / "checkpoints"
  theirs = None if parallel.on_many_hosts() else restore_final(origin / stage, config)
  changed = theirs is not None and digest(theirs) != then["stages"][stage]
  if agree and not changed:
    print(f"{stage}: parameters agree bit for bit")
    return True
  if theirs is None:
    print(f"{stage}: parameters differ; how far, only those of {checkpoints} could tell")
    return False
  gap = f"{_largest_difference(theirs, restore_final(workdir / stage, config)):.3g}"
  if changed:
    print(f"{stage}: {checkpoints} holds other parameters than {RUN_FILE} tells of; the new ones differ by up to {gap}")
  else:
    print(f"{stage}: parameters differ by up to {gap}")
  return False


def _largest_difference(a: Networks, b: Networks) -> float:
  """The largest absolute difference of a parameter; NaN where one is."""
  gap = lambda x, y: np.max(np.abs(np.asarray(x) - np.asarray(y)))
  return float(np.max(jax.tree.leaves(jax.tree.map(gap, a, b))))


def _with_tuples(value):
  """What JSON holds, with tuples for lists, as in configs."""
  if isinstance(value, dict):
    return {name: _with_tuples(own) for name, own in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
