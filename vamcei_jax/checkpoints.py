"""Orbax checkpoints of a stage: the newest few and the best one, written while training goes on.

A checkpoint holds the whole State: parameters, optimizers, moving averages, memory and the step, from which the
position in the data follows (see data/loader.py).
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from vamcei_jax.errors import InputError
from vamcei_jax.methods.state import Params, State


def open_checkpoints(folder: Path, keep: int) -> ocp.CheckpointManager:
  """The manager of a stage's checkpoints; keeps the newest `keep` and the one of the best validation Dice.

  What a killed run was about to write is removed.
  """
  policies = ocp.checkpoint_managers
  best = policies.BestN(get_metric_fn=lambda metrics: metrics["dice"], n=1, keep_checkpoints_without_metrics=False)
  policy = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
  options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
  return ocp.CheckpointManager(folder.resolve(), options=options)


def is_finished(folder: Path, config: ConfigDict) -> bool:
  """Whether a stage's folder of checkpoints holds that of its last step."""
  return (folder / str(config.train.steps)).is_dir()


def save(checkpoints: ocp.CheckpointManager, state: State, step: int, dice: float | None) -> None:
  """Saves the state after `step` steps in the background; `dice`, where it was measured, ranks it."""
  metrics = None if dice is None else {"dice": dice}
  checkpoints.save(step, args=ocp.args.StandardSave(state), metrics=metrics)


def restore_newest(checkpoints: ocp.CheckpointManager, abstract_state: State) -> State | None:
  """The newest saved state, shaped and placed as `abstract_state`; None where nothing is saved yet."""
  if checkpoints.latest_step() is None:
    return None
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  placed = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
  abstract = jax.tree.map(placed, abstract_state)
  return checkpoints.restore(checkpoints.latest_step(), args=ocp.args.StandardRestore(abstract))


def restore_networks(folder: Path, abstract_state: State) -> dict[str, Params]:
  """The moving averages of the newest checkpoint of a stage's folder: what evaluation and prediction use.

  Raises:
    InputError: there is no checkpoint.
  """
  if not folder.is_dir():
    raise InputError(f"{folder}: no checkpoints; train first, or name the --workdir of a run")
  with ocp.CheckpointManager(folder.resolve(), options=ocp.CheckpointManagerOptions(read_only=True)) as checkpoints:
    state = restore_newest(checkpoints, abstract_state)
  if state is None:
    raise InputError(f"{folder}: no checkpoint yet; let the run reach its first one")
  return state.ema
