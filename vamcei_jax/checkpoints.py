"""Orbax checkpoints of a stage: the newest few and the best one, written while training goes on.

A checkpoint holds the whole State: parameters, optimizers, moving averages, memory and the step, from which the
position in the data follows (see data/loader.py).
"""

import hashlib
import math
import shutil
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding
from ml_collections import ConfigDict

from vamcei_jax.errors import InputError
from vamcei_jax.methods.state import Params, State


def open_checkpoints(folder: Path, keep: int) -> ocp.CheckpointManager:
  """The manager of a stage's checkpoints; keeps the newest `keep` and the one of the best validation Dice.

  What a killed run was about to write is removed.
  """
  policies = ocp.checkpoint_managers
  dice = lambda metrics: metrics["dice"]
  best = policies.BestN(get_metric_fn=dice, n=1, keep_checkpoints_without_metrics=False)
  policy = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
  # With best_fn, though the policy decides, metrics are written: a resumed run knows the best one, too.
  options = ocp.CheckpointManagerOptions(preservation_policy=policy, best_fn=dice, cleanup_tmp_directories=True)
  return ocp.CheckpointManager(folder.resolve(), options=options)


def is_finished(folder: Path, config: ConfigDict) -> bool:
  """Whether a stage's folder of checkpoints holds that of its last step."""
  return (folder / str(config.train.steps)).is_dir()


def save(checkpoints: ocp.CheckpointManager, state: State, step: int, dice: float | None) -> None:
  """Saves the state after `step` steps in the background; `dice`, where it was measured, ranks it."""
  metrics = None if dice is None or math.isnan(dice) else {"dice": dice}
  content = {"state": ocp.args.StandardSave(state), "digest": ocp.args.JsonSave({"sha256": digest(state)})}
  checkpoints.save(step, args=ocp.args.Composite(**content), metrics=metrics)


def restore_newest(
  checkpoints: ocp.CheckpointManager,
  abstract_state: State | list[State],
  placement: Sharding | list[Sharding] | None = None,
) -> tuple[State | list[State] | None, list[int]]:
  """The newest saved state that is whole and shaped as `abstract_state`, and the damaged steps after it.

  What is read must have the digest that was saved with it: Orbax itself does not see every flipped bit. None where
  nothing is saved yet. The state is placed as told, whatever devices it was saved from; by default on one of this host.
  A list of states may have a list of placements.

  Raises:
    InputError: there are checkpoints, and none is whole.
  """
  damaged = []
  for step in sorted(checkpoints.all_steps(), reverse=True):
    try:
      return _restore(checkpoints, step, abstract_state, placement), damaged
    except (MemoryError, PermissionError):  # no damage
      raise
    except Exception as error:  # damage has many faces, of JSON, TensorStore, Orbax and the system
      reason = " ".join(str(error).split())[:200]
      print(f"{checkpoints.directory / str(step)}: cannot be used ({reason})", file=sys.stderr, flush=True)
      damaged.append(step)
  if damaged:
    raise InputError(
      f"{checkpoints.directory}: no checkpoint in it is whole and of this version; "
      "train anew: --stages=STAGE or another --workdir"
    )
  return None, []


def set_aside(checkpoints: ocp.CheckpointManager, steps: Collection[int]) -> None:
  """Moves checkpoints to STAGE/damaged: they are going to be made again, and Orbax saves no step that is there."""
  for step in steps:
    damaged = Path(checkpoints.directory) / str(step)
    if not damaged.exists():  # another host has moved it
      continue
    aside = damaged.parent.parent / "damaged" / str(step)
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    shutil.move(damaged, aside)
  if steps:
    checkpoints.reload()


def digest(state: State | dict[str, Params]) -> str:
  """SHA-256 of all arrays of a state, or of networks, with their names, shapes and types."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.ascontiguousarray(jax.random.key_data(leaf) if is_key else leaf)
    sha.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
    sha.update(array.view(np.uint8))
  return sha.hexdigest()


def restore_networks(folder: Path, abstract_state: State) -> dict[str, Params]:
  """The moving averages of the newest checkpoint of a stage's folder: what evaluation and prediction use.

  Raises:
    InputError: there is no checkpoint.
  """
  if not folder.is_dir():
    raise InputError(f"{folder}: no checkpoints; train first, or name the --workdir of a run")
  state, _ = _restore_to_read(folder, abstract_state)
  if state is None:
    raise InputError(f"{folder}: no checkpoint yet; let the run reach its first one")
  return state.ema


def restore_last(folder: Path, config: ConfigDict, abstract_state: State) -> dict[str, Params] | None:
  """The moving averages after the last step of a stage; None where that checkpoint cannot be had."""
  if not is_finished(folder, config):
    return None
  try:
    state, damaged = _restore_to_read(folder, abstract_state)
  except InputError:
    return None
  return None if damaged else state.ema


def _restore_to_read(folder: Path, abstract_state: State) -> tuple[State | None, list[int]]:
  """restore_newest of a stage's folder that nothing is written to."""
  with ocp.CheckpointManager(folder.resolve(), options=ocp.CheckpointManagerOptions(read_only=True)) as checkpoints:
    return restore_newest(checkpoints, abstract_state)


def _restore(
  checkpoints: ocp.CheckpointManager,
  step: int,
  abstract_state: State | list[State],
  placement: Sharding | list[Sharding] | None,
) -> State | list[State]:
  placement = placement or SingleDeviceSharding(jax.local_devices()[0])
  place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  own = lambda sharding, state: jax.tree.map(partial(place, sharding=sharding), state)
  placed = jax.tree.map(own, placement, abstract_state)
  content = {"state": ocp.args.StandardRestore(placed), "digest": ocp.args.JsonRestore()}
  saved = checkpoints.restore(step, args=ocp.args.Composite(**content))
  if digest(saved["state"]) != saved["digest"]["sha256"]:
    raise ValueError("its arrays are not those that were saved")
  return saved["state"]
