"""A grid of runs that differ in arrays alone (seeds, loss weights, ramp, learning rates) as one program.

Where the backend favours it, the runs are mapped by `jax.vmap` and spread over the devices. On the CPU the program of
one run is called for each: under vmap over kernels, convolutions become grouped ones, which are slow there.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from vamcei_jax.distributed import AXIS, Devices, assemble, compile_steps, compiler_options, memory_of
from vamcei_jax.methods.state import Metrics, Params, State, skip_nonfinite

_USABLE = 0.8  # share of a device's memory that a grid may take


def compile_grid(
  step: Callable, draw: Callable, devices: Devices, *, mapped: bool
) -> Callable[..., tuple[Any, dict[str, np.ndarray]]]:
  """Compiles a step for a grid of runs.

  Args:
    step: (state, batch) -> (state, metrics), of vamcei_jax/methods, without an axis.
    draw: (data, key, step number, axis_name = None) -> batch, as draw_batch.
    devices: over which the runs are spread, without communication; one unless `mapped`.
    mapped: of maps_grids.

  Returns:
    run(grid, data, keys, count) -> (grid, metrics) after `count` steps of every run. Metrics are (runs,), means over
    the steps that were not skipped; "skipped" is the share of the others. The grid, of make_grid, must not be used
    again: it is donated or, where runs are called one by one, changed. `keys` are (runs,), `data` slices on all
    devices.
  """
  alone = compile_steps(lambda axis_name: step, draw, devices[:1], streamed=False, scanned=False)

  @cache
  def program(count: int) -> Callable:
    return grid_program(step, draw, devices, count)

  def call_each(states: list[State], data: Any, keys: Array, count: int) -> tuple[list[State], dict[str, np.ndarray]]:
    measured = []
    for number, key in enumerate(keys):
      states[number], metrics = alone(states[number], data, key, count)
      measured.append(mean_metrics(jax.tree.map(lambda *x: np.asarray(x), *jax.device_get(metrics)), np))
    return states, jax.tree.map(lambda *x: np.stack(x), *measured)

  def call_all(states: State, data: Any, keys: Array, count: int) -> tuple[State, dict[str, np.ndarray]]:
    states, metrics = program(count)(states, data, keys)
    return states, jax.device_get(metrics)

  return call_all if mapped else call_each


def mean_metrics(metrics: Mapping[str, Any], xp: ModuleType) -> dict[str, Any]:
  """Means of metrics (steps, ...) over the steps that were not skipped, NaN if all were; "skipped": share of these.

  Args:
    metrics: of skip_nonfinite.
    xp: numpy or jax.numpy, as the arrays.
  """
  taken = metrics["skipped"] == 0
  count = taken.sum(0)
  total = lambda values: xp.where(taken, values, 0).sum(0)
  means = {name: xp.where(count > 0, total(x) / xp.maximum(count, 1), xp.nan) for name, x in metrics.items()}
  return means | {"skipped": 1 - taken.mean(0)}


def grid_program(step: Callable, draw: Callable, devices: Devices, count: int) -> Callable:
  """A jitted function (states, data, keys) -> (states, metrics) of `count` steps of mapped runs; see compile_grid."""

  def one(state: State, data: Any, key: Array) -> tuple[State, Metrics]:
    return skip_nonfinite(state, *step(state, draw(data, key, state.step)))

  def over_runs(states: State, data: Any, keys: Array) -> tuple[State, Metrics]:
    every = lambda states, _: jax.vmap(one, in_axes=(0, None, 0))(states, data, keys)
    states, metrics = jax.lax.scan(every, states, length=count)
    return states, mean_metrics(metrics, jnp)

  rows, everywhere = PartitionSpec(AXIS), PartitionSpec()
  spread = jax.shard_map(
    over_runs,
    mesh=Mesh(devices, AXIS),
    in_specs=(rows, everywhere, rows),
    out_specs=rows,
    check_vma=False,
  )
  return jax.jit(spread, donate_argnums=0, compiler_options=compiler_options(devices))


def maps_grids(devices: Devices) -> bool:
  """Whether the runs of a grid are mapped by vmap on these devices; else the program is called for each."""
  return devices[0].platform != "cpu"


def grid_placement(runs: int, devices: Devices) -> list[Sharding]:
  """Sharding of the state of each run of a grid: equally many successive runs on each device.

  Raises:
    ValueError: the runs cannot be spread equally.
  """
  if runs % len(devices):
    raise ValueError(f"{runs} runs; expected a multiple of the {len(devices)} devices.")
  return [SingleDeviceSharding(devices[run // (runs // len(devices))]) for run in range(runs)]


def make_grid(states: Sequence[State], devices: Devices, *, mapped: bool) -> list[State] | State:
  """The states of several runs as compile_grid takes them: a list or, if mapped, stacked on the device of each.

  No device holds the states of all runs, if the given states are placed by grid_placement.
  """
  states = [jax.device_put(*one) for one in zip(states, grid_placement(len(states), devices), strict=True)]
  if not mapped:
    return states
  spread, share = NamedSharding(Mesh(devices, AXIS), PartitionSpec(AXIS)), len(states) // len(devices)

  def stack(*rows: Array) -> Array:
    shards = [jnp.stack(rows[first : first + share]) for first in range(0, len(rows), share)]
    return assemble((len(rows), *rows[0].shape), spread, shards)

  return jax.tree.map(stack, *states)


def members(grid: list[State] | State) -> list[State]:
  """The states of the runs of a grid, each on its device."""
  return grid if isinstance(grid, list) else [_member(grid, number) for number in range(len(grid.step))]


def averages(grid: list[State] | State) -> Iterator[dict[str, Params]]:
  """The averaged parameters of each run of a grid, on its device, without a copy of the rest of its state."""
  if isinstance(grid, list):
    yield from (state.ema_params for state in grid)
  else:
    yield from (_member(grid.ema_params, number) for number in range(len(grid.step)))


def runs_at_once(step: Callable, draw: Callable, state: State, data: Any, key: Array, devices: Devices) -> int:
  """How many runs of a grid fit into the devices' memory at once, estimated from the program of one run."""
  if devices[0].platform == "cpu":
    return sys.maxsize  # runs are called one by one; only their states are in memory at once
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  one = lambda state, data, key: skip_nonfinite(state, *step(state, draw(data, key, state.step)))
  needs: Any = jax.jit(one).lower(state, data, key).compile().memory_analysis()
  # The state before a step is in memory until the end of the step.
  bytes_of_run = size(state) + needs.temp_size_in_bytes + needs.output_size_in_bytes
  return len(devices) * max(1, int((_USABLE * memory_of(devices[0]) - size(data)) // bytes_of_run))


def _member(stacked: Any, number: int) -> Any:
  """The arrays of one run of stacked ones."""

  def row(x: Array) -> Array:
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return shards[number * len(shards) // len(x)].data[number % (len(x) // len(shards))]

  return jax.tree.map(row, stacked)
