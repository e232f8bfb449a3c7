"""Orbax checkpoints of a stage: the newest few, written in the background.

A checkpoint holds the State: parameters, optimizers, moving averages, memory and the step, from which the position in
the data follows (see data/loader.py).
"""

import shutil
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TypeVar

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding

from vamcei_jax.errors import InputError
from vamcei_jax.methods.state import Params, State, digest

States = TypeVar("States", State, list[State])


def open_checkpoints(folder: Path, keep: int) -> ocp.CheckpointManager:
  """The manager of a stage's checkpoints; keeps the newest `keep`, and removes incomplete ones of a killed run."""
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
  return ocp.CheckpointManager(folder.resolve(), options=options)


def is_finished(folder: Path, steps: int) -> bool:
  """Whether a stage's folder of checkpoints holds the one of its last step, number `steps`."""
  return (folder / str(steps)).is_dir()


def save(checkpoints: ocp.CheckpointManager, state: State, step: int) -> None:
  """Saves the state after `step` steps in the background."""
  content = {"state": ocp.args.StandardSave(state), "digest": ocp.args.JsonSave({"sha256": digest(state)})}
  checkpoints.save(step, args=ocp.args.Composite(**content))


def restore_newest(
  checkpoints: ocp.CheckpointManager,
  abstract_state: States,
  placement: Sharding | list[Sharding] | None = None,
) -> tuple[States | None, list[int]]:
  """The newest intact checkpoint, and the steps of damaged checkpoints after it.

  A checkpoint is intact if its arrays have the digest that was saved with them: Orbax does not detect every flipped
  bit.

  Args:
    checkpoints: manager of the stage.
    abstract_state: shapes and types, of one state or of a list of states.
    placement: sharding of the restored state, or one for each of a list; by default on one device of this host. It does
      not depend on the devices from which the state was saved.

  Returns:
    The state, or None where nothing is saved yet, and the damaged steps.

  Raises:
    InputError: there are checkpoints, and none is intact.
  """
  damaged: list[int] = []
  for step in sorted(checkpoints.all_steps(), reverse=True):
    try:
      return _restore(checkpoints, step, abstract_state, placement), damaged
    except (MemoryError, PermissionError):  # not damage
      raise
    except Exception as error:  # a damaged file can raise errors of JSON, TensorStore, Orbax and the system
      reason = " ".join(str(error).split())[:200]
      print(f"{checkpoints.directory / str(step)}: cannot be used ({reason})", file=sys.stderr, flush=True)
      damaged.append(step)
  if damaged:
    raise InputError(
      f"{checkpoints.directory}: no checkpoint in it is intact and of this version; "
      "retrain: --stages=STAGE or another --workdir"
    )
  return None, []


def set_aside(checkpoints: ocp.CheckpointManager, steps: Collection[int]) -> None:
  """Moves checkpoints to STAGE/damaged, because Orbax does not overwrite the checkpoint of a step."""
  for step in steps:
    damaged = Path(checkpoints.directory) / str(step)
    if not damaged.exists():  # another host moved it
      continue
    destination = damaged.parent.parent / "damaged" / str(step)
    shutil.rmtree(destination, ignore_errors=True)
    destination.parent.mkdir(exist_ok=True)
    shutil.move(damaged, destination)
  if steps:
    checkpoints.reload()


def restore_networks(folder: Path, abstract_state: State) -> dict[str, Params]:
  """The averaged parameters of a stage's newest checkpoint, which evaluation and prediction use.

  Raises:
    InputError: there is no checkpoint.
  """
  if not folder.is_dir():
    raise InputError(f"{folder}: no checkpoints; train first, or name the --workdir of a run")
  state, _ = _restore_to_read(folder, abstract_state)
  if state is None:
    raise InputError(f"{folder}: no checkpoint yet; let the run reach its first one")
  return state.ema_params


def restore_last(folder: Path, steps: int, abstract_state: State) -> dict[str, Params] | None:
  """The averaged parameters after the last step, number `steps`; None where that checkpoint is missing or damaged."""
  if not is_finished(folder, steps):
    return None
  try:
    state, damaged = _restore_to_read(folder, abstract_state)
  except InputError:
    return None
  return None if damaged or state is None else state.ema_params


def _restore_to_read(folder: Path, abstract_state: State) -> tuple[State | None, list[int]]:
  """restore_newest without writing into the folder."""
  with ocp.CheckpointManager(folder.resolve(), options=ocp.CheckpointManagerOptions(read_only=True)) as checkpoints:
    return restore_newest(checkpoints, abstract_state)


def _restore(
  checkpoints: ocp.CheckpointManager,
  step: int,
  abstract_state: States,
  placement: Sharding | list[Sharding] | None,
) -> States:
  placement = placement or SingleDeviceSharding(jax.local_devices()[0])
  place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  place_state = lambda sharding, state: jax.tree.map(partial(place, sharding=sharding), state)
  placed = jax.tree.map(place_state, placement, abstract_state)
  content = {"state": ocp.args.StandardRestore(placed), "digest": ocp.args.JsonRestore()}
  saved = checkpoints.restore(step, args=ocp.args.Composite(**content))
  if digest(saved["state"]) != saved["digest"]["sha256"]:
    raise ValueError("its arrays differ from those that were saved")
  return saved["state"]
