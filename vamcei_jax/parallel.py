"""How steps are spread over devices, hosts and runs: the only file that knows how many of them there are.

A step is written once, for one device and one run. On one device it goes under `jax.jit`; on several under `jax.pmap`
over AXIS, each with its share of the batch and a replica of the state; for a grid of runs under `jax.vmap`. How many
steps a dispatch takes depends on the backend. On the CPU a convolution's weight gradient runs some 20 times slower in a
loop than in a plain call: there a step is a call, and elsewhere many are one `jax.lax.scan`. A grid on one CPU is one
program called run by run: mapped over kernels, convolutions become grouped ones, which are slow there.

What is relied on of `jax.pmap`, which is `jit` of `shard_map` since JAX 0.8:
- Arguments and results of axis None are replicated arrays, without an axis of devices. So a state looks the same on any
  number of devices, and so does its checkpoint.
- A replicated argument that lies on all devices already is not copied, and donation reuses its buffers; any other is
  copied at every call. Hence `replicate`, once, before the first call.
- At least one argument must be mapped. Here it is the devices' numbers, which nobody reads.
- On several hosts it takes and returns arrays of the host's own devices, and relabels them as global ones, copying none
  but PRNG keys. Devices are ordered by host, so a host's share of a batch is contiguous.
- It takes no options of the compiler: several CPU devices, virtual ones or of several hosts, have XLA's own kernels.
- Replicas are not compared (`check_vma=False`), and gradients are those of one replica until they are averaged, which
  methods/state.py does.
"""

import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from vamcei_jax.errors import InputError
from vamcei_jax.methods.state import Metrics, State, keep_finite

AXIS = "batch"
# XLA takes CPU kernels from YNNPACK or from Eigen. JAX 0.10.2 has sums, products and convolutions in YNNPACK; here
# convolutions go to Eigen, whose gradients to kernels are up to four times as fast (experiments/results/notes.md).
_CPU_OPTIONS = {
  "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}
_USABLE = 0.8  # part of a device's memory that a grid may take
Devices = Sequence[jax.Device]


def join_hosts(coordinator: str | None, hosts: int | None, host: int | None) -> None:
  """Joins the hosts of a job, before anything else of JAX is used.

  Args:
    coordinator, hosts, host: address and port of the first host, how many there are, and which one this is; None where
      the cluster tells (TPU pods, SLURM, Open MPI, GKE).

  Raises:
    InputError: nothing tells, or the others did not come.
  """
  jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is heard by vamcei_jax/interruption.py
  try:
    jax.distributed.initialize(coordinator, hosts, host)
  except (RuntimeError, TypeError, ValueError) as error:
    way_out = "on a cluster that JAX does not know, give --coordinator=HOST:PORT --hosts=N --host=I on each host"
    raise InputError(f"no hosts to join ({error}); {way_out}") from None


def is_first_host() -> bool:
  """Whether this host is the one that writes logs, pictures and results."""
  return jax.process_index() == 0


def on_many_hosts() -> bool:
  """Whether there are other hosts."""
  return jax.process_count() > 1


def wait_for_hosts(name: str) -> None:
  """Waits until every host has come here."""
  if on_many_hosts():
    multihost_utils.sync_global_devices(name)


def first_host_first(make: Callable[[], Any]) -> Any:
  """make() on every host, on the others after the first one, whose files they find.

  Raises:
    InputError: on the first host, what make() raises there, and then on the others.
  """
  if not on_many_hosts():
    return make()
  made = failure = None
  if is_first_host():
    try:
      made = make()
    except InputError as error:
      failure = error
  if any_host(failure is not None):
    raise failure or InputError("the first host has stopped; its error tells why")
  return made if is_first_host() else make()


def from_first_host(value: float) -> float:
  """What the first host says, on all of them."""
  return float(multihost_utils.broadcast_one_to_all(np.float32(value))) if on_many_hosts() else value


def any_host(flag: bool) -> bool:
  """Whether it is so on any host. All of them must ask."""
  return bool(np.any(multihost_utils.process_allgather(np.bool_(flag)))) if on_many_hosts() else flag


def devices_for(batch: int) -> Devices:
  """The devices over which batches of so many images a domain are split: as many as give each the same number.

  Raises:
    InputError: not all devices of all hosts can have the same number.
  """
  count = math.gcd(batch, jax.device_count())
  if on_many_hosts() and count < jax.device_count():
    raise InputError(
      f"config.train.batch_size={batch}: must be a multiple of the {jax.device_count()} devices of "
      f"{jax.process_count()} hosts"
    )
  ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return ordered[:count]


def host_share(batch: int) -> slice:
  """The positions in a global batch that this host's devices have."""
  own = batch // jax.process_count()
  return slice(jax.process_index() * own, (jax.process_index() + 1) * own)


def placement(devices: Devices) -> Sharding:
  """Where a state lies: a replica on each device, of all hosts."""
  if len(devices) == 1:
    return SingleDeviceSharding(devices[0])
  return NamedSharding(Mesh(devices, AXIS), PartitionSpec())


def replicate(tree: Any, devices: Devices) -> Any:
  """A replica of arrays on each of this host's devices."""
  return jax.device_put(tree, placement(_own(devices)))


def replica(tree: Any) -> Any:
  """One of the replicas, on a device of this host, for what only one device computes. Nothing is copied."""
  return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def over_hosts(tree: Any, devices: Devices) -> Any:
  """This host's replicas, as parts of arrays that all hosts share: what Orbax saves. Nothing is copied."""
  if not on_many_hosts():
    return tree
  everywhere = placement(devices)
  return jax.tree.map(lambda x: _assembled(x.shape, everywhere, [own.data for own in x.addressable_shards]), tree)


def memory_of(device: jax.Device) -> int:
  """Bytes that programs on a device of this host can use; 0 where it does not tell."""
  if device.platform == "cpu":
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return (device.memory_stats() or {}).get("bytes_limit", 0)


def compiler_options(devices: Devices) -> dict[str, str]:
  """What XLA is told when it compiles a step for these devices."""
  return _CPU_OPTIONS if devices[0].platform == "cpu" else {}


def steps_in_dispatch(steps: int, devices: Devices) -> int:
  """How many of `steps` wanted steps go into one dispatch on these devices."""
  return 1 if devices[0].platform == "cpu" else steps


def compile_steps(
  make_step: Callable, draw: Callable, devices: Devices, *, streamed: bool, scanned: bool | None = None
) -> Callable[[State, Any, Array, int], tuple[State, list[Metrics]]]:
  """Compiles steps for devices.

  Args:
    make_step: axis name -> step(state, batch) -> (state, metrics), of vamcei_jax/methods.
    draw: (data, key, step number, axis_name) -> batch: draw_batch or, for streamed data, augment_batch.
    devices: of devices_for.
    streamed: whether data is read from disk.
    scanned: whether the steps of a dispatch are one program; by default, as the backend favours.

  Returns:
    run(state, data, key, count) -> (state, metrics) after `count` steps: a list of metrics, of a step () or of many
    (count,). Steps that are not finite are skipped, see keep_finite. The state is not to be used again: where steps
    are scanned it is donated, and its buffers are reused for the new one. The key of the batches is an argument, so
    that runs of different seeds share a program. `data` are slices on all devices or, if streamed, the list of this
    host's share of the slices of each step. A program is compiled for each `count` that is used, on the CPU for one.
  """
  if scanned is None:
    scanned = devices[0].platform != "cpu"
  axis_name = AXIS if len(devices) > 1 else None
  step, own = make_step(axis_name), _own(devices)

  def one(state: State, data: Any, key: Array) -> tuple[State, Metrics]:
    after, metrics = step(state, draw(data, key, state.step, axis_name=axis_name))
    # Where a step is a call, the host looks at its metrics and keeps the state before it, which takes no copy.
    return keep_finite(state, after, metrics) if scanned else (after, metrics)

  def many(state: State, data: Any, key: Array, count: int) -> tuple[State, Metrics]:
    slices = data if streamed else None
    return jax.lax.scan(lambda state, own: one(state, own if streamed else data, key), state, slices, length=count)

  @cache
  def program(count: int) -> Callable:
    function = (lambda *arguments: many(*arguments, count)) if scanned else one
    axis = (1 if scanned else 0) if streamed else None
    # Where the host looks at what came of a step, the state before it stays: a copy would cost a dispatch of its own.
    return _over_devices(function, devices, axis, donated=scanned)

  def shares(slices: dict) -> dict:
    """Slices (B, …) of a step as those of each device: (devices, B / devices, …)."""
    return jax.tree.map(lambda x: x.reshape(len(own), -1, *x.shape[1:]) if axis_name else x, slices)

  def run(state: State, data: Any, key: Array, count: int) -> tuple[State, list[Metrics]]:
    if streamed:
      data = [shares(slices) for slices in data]
    if scanned:
      state, metrics = program(count)(state, jax.tree.map(lambda *x: np.stack(x), *data) if streamed else data, key)
      return state, [metrics]
    metrics = []
    for number in range(count):
      after, measured = program(1)(state, data[number] if streamed else data, key)
      good = all(map(np.isfinite, measured.values()))
      state = after if good else state.replace(step=after.step)
      metrics.append(measured | {"skipped": np.float32(not good)})
    return state, metrics

  return run


def compile_grid(
  step: Callable, draw: Callable, devices: Devices, *, mapped: bool
) -> Callable[[list[State] | State, Any, Array, int], tuple[list[State] | State, dict[str, np.ndarray]]]:
  """Compiles a step for a grid of runs that differ in arrays alone: seeds, weights, rates. One program serves them all.

  Args:
    step: (state, batch) -> (state, metrics), of vamcei_jax/methods, without an axis.
    draw: (data, key, step number, axis_name = None) -> batch, as draw_batch.
    devices: over which the runs are spread, without a word between them; one unless `mapped`.
    mapped: of maps_grids.

  Returns:
    run(grid, data, keys, count) -> (grid, metrics) after `count` steps of every run. Metrics are (runs,), the means of
    what is a number in them. The grid, of make_grid, is not to be used again: it is donated or, where runs are called
    one by one, changed. `keys` are (runs,), `data` slices on all devices.
  """
  alone = compile_steps(lambda axis_name: step, draw, devices[:1], streamed=False, scanned=False)

  def one(state: State, data: Any, key: Array) -> tuple[State, Metrics]:
    return keep_finite(state, *step(state, draw(data, key, state.step)))

  def over_runs(states: State, data: Any, keys: Array, count: int) -> tuple[State, Metrics]:
    every = lambda states, _: jax.vmap(one, in_axes=(0, None, 0))(states, data, keys)
    states, metrics = jax.lax.scan(every, states, length=count)
    return states, jax.tree.map(lambda x: jnp.nanmean(x, 0), metrics)

  @cache
  def program(count: int) -> Callable:
    rows, everywhere = PartitionSpec(AXIS), PartitionSpec()
    spread = jax.shard_map(
      partial(over_runs, count=count),
      mesh=Mesh(devices, AXIS), in_specs=(rows, everywhere, rows), out_specs=rows, check_vma=False,
    )
    return jax.jit(spread, donate_argnums=0, compiler_options=compiler_options(devices))

  def call_each(states: list[State], data: Any, keys: Array, count: int) -> tuple[list[State], dict[str, np.ndarray]]:
    measured = []
    for number, key in enumerate(keys):
      states[number], metrics = alone(states[number], data, key, count)
      measured.append(jax.tree.map(lambda *x: np.nanmean(x), *jax.device_get(metrics)))
    return states, jax.tree.map(lambda *x: np.stack(x), *measured)

  def call_all(states: State, data: Any, keys: Array, count: int) -> tuple[State, dict[str, np.ndarray]]:
    states, metrics = program(count)(states, data, keys)
    return states, jax.device_get(metrics)

  return call_all if mapped else call_each


def maps_grids(devices: Devices) -> bool:
  """Whether runs of a grid are mapped by vmap on these devices; else the program is called for each."""
  return devices[0].platform != "cpu"


def grid_placement(runs: int, devices: Devices) -> list[Sharding]:
  """Where the state of each run of a grid lies: as many runs on each device, one after the other.

  Raises:
    ValueError: not all devices can have the same number.
  """
  if runs % len(devices):
    raise ValueError(f"{runs} runs; expected a multiple of the {len(devices)} devices.")
  return [SingleDeviceSharding(devices[run // (runs // len(devices))]) for run in range(runs)]


def make_grid(states: Sequence[State], devices: Devices, *, mapped: bool) -> list[State] | State:
  """The states of several runs as compile_grid takes them: a list or, if mapped, stacked on the device of each.

  No device ever holds the states of all runs, if those given lie where grid_placement says.
  """
  states = [jax.device_put(*one) for one in zip(states, grid_placement(len(states), devices), strict=True)]
  if not mapped:
    return states
  spread, own = NamedSharding(Mesh(devices, AXIS), PartitionSpec(AXIS)), len(states) // len(devices)

  def stack(*rows: Array) -> Array:
    shards = [jnp.stack(rows[first : first + own]) for first in range(0, len(rows), own)]
    return _assembled((len(rows), *rows[0].shape), spread, shards)

  return jax.tree.map(stack, *states)


def members(grid: list[State] | State) -> list[State]:
  """The states of the runs of a grid, each on the device that has it."""
  if isinstance(grid, list):
    return grid

  def row(x: Array, number: int) -> Array:
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return shards[number * len(shards) // len(x)].data[number % (len(x) // len(shards))]

  return [jax.tree.map(partial(row, number=number), grid) for number in range(len(grid.step))]


def runs_at_once(step: Callable, draw: Callable, state: State, data: Any, key: Array, devices: Devices) -> int:
  """How many runs of a grid fit into the devices' memory at the same time, by what the program of one takes."""
  if devices[0].platform == "cpu":
    return sys.maxsize  # one after the other; their states alone are there at once
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  one = lambda state, data, key: keep_finite(state, *step(state, draw(data, key, state.step)))
  needs = jax.jit(one).lower(state, data, key).compile().memory_analysis()
  own = size(state) + needs.temp_size_in_bytes + needs.output_size_in_bytes  # the state before is kept till the end
  shared = size(data)
  return len(devices) * max(1, int((_USABLE * memory_of(devices[0]) - shared) // own))


def _over_devices(function: Callable, devices: Devices, data_axis: int | None, *, donated: bool) -> Callable:
  """function(state, data, key) on all devices; `data_axis` is that of the devices in `data`, None for replicas."""
  if len(devices) == 1:
    return jax.jit(function, donate_argnums=0 if donated else (), compiler_options=compiler_options(devices))
  numbers = np.arange(len(_own(devices)))
  mapped = jax.pmap(
    lambda number, *arguments: function(*arguments),
    axis_name=AXIS, in_axes=(0, None, data_axis, None), out_axes=None, devices=devices,
    donate_argnums=1 if donated else (),
  )
  return lambda *arguments: mapped(numbers, *arguments)


def _assembled(shape: tuple[int, ...], sharding: Sharding, shards: list[Array]) -> Array:
  """The array that this host's devices have the shards of. Nothing is copied."""
  if jax.dtypes.issubdtype(shards[0].dtype, jax.dtypes.prng_key):
    numbers = [jax.random.key_data(shard) for shard in shards]
    data = _assembled((*shape, numbers[0].shape[-1]), sharding, numbers)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(shards[0]))
  return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _own(devices: Devices) -> Devices:
  """Those of this host."""
  return [device for device in devices if device.process_index == jax.process_index()]
