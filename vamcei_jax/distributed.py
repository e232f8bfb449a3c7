"""How steps are spread over devices and hosts. No other file depends on their number.

A step is written once, for one device and one run. On one device it runs under `jax.jit`; on several under `jax.pmap`
over AXIS, each with its share of the batch and a replica of the state. How many steps go into a dispatch depends on the
backend. On the CPU a convolution's weight gradient runs some 20 times slower in a loop than in a plain call, so a step
is a call; elsewhere many steps are one `jax.lax.scan`. Grids of runs are in grid.py.

What this file relies on in `jax.pmap`, which is `jit` of `shard_map` since JAX 0.8:
- Arguments and results of axis None are replicated arrays, without an axis of devices. So a state looks the same on any
  number of devices, and so does its checkpoint.
- A replicated argument that lies on all devices already is not copied, and donation reuses its buffers; any other is
  copied at every call. Hence `replicate`, once, before the first call.
- At least one argument must be mapped. Here it is the devices' numbers, which the step does not read.
- On several hosts it takes and returns arrays of the host's own devices, and relabels them as global ones, copying none
  but PRNG keys. Devices are ordered by host, so a host's share of a batch is contiguous.
- It takes no compiler options: several CPU devices, virtual ones or of several hosts, use XLA's own kernels.
- Replicas are not compared (`check_vma=False`), and gradients are those of one replica until they are averaged, which
  methods/state.py does.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from vamcei_jax.environment import require_device
from vamcei_jax.errors import InputError
from vamcei_jax.methods.state import Metrics, State, skip_nonfinite

AXIS = "batch"
# XLA takes CPU kernels from YNNPACK or from Eigen. By default JAX 0.10.2 uses YNNPACK for sums, products and
# convolutions. Eigen's weight gradients of convolutions are up to four times as fast (experiments/results/notes.md).
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
Devices = Sequence[jax.Device]


def join_hosts(coordinator: str | None, hosts: int | None, host: int | None) -> None:
  """Joins the hosts of a job, before anything else of JAX is used.

  Args:
    coordinator, hosts, host: address and port of the first host, number of hosts, and number of this one; None on a
      cluster that JAX knows (TPU pods, SLURM, Open MPI, GKE).

  Raises:
    InputError: the cluster is not known to JAX, other hosts did not join, or this one has no device.
  """
  jax.config.update("jax_enable_preemption_service", False)  # training/shutdown.py handles SIGTERM
  try:
    jax.distributed.initialize(coordinator, hosts, host)
  except (RuntimeError, TypeError, ValueError) as error:
    way_out = "on a cluster that JAX does not know, give --coordinator=HOST:PORT --hosts=N --host=I on each host"
    raise InputError(f"no hosts to join ({error}); {way_out}") from None
  require_device()


def is_first_host() -> bool:
  """Whether this host is the one that writes logs, pictures and results."""
  return jax.process_index() == 0


def on_many_hosts() -> bool:
  """Whether there are other hosts."""
  return jax.process_count() > 1


def describe_devices() -> str:
  """Number and kind of the devices of all hosts: `2 x NVIDIA H200 (gpu)`."""
  kind, platform = jax.devices()[0].device_kind, jax.devices()[0].platform
  return f"{jax.device_count()} x {kind}" + ("" if kind == platform else f" ({platform})")


def wait_for_hosts(name: str) -> None:
  """Barrier: waits for all hosts."""
  if on_many_hosts():
    multihost_utils.sync_global_devices(name)


def first_host_first(make: Callable[[], Any]) -> Any:
  """make() on every host; the others call it after the first host, and find the files that it wrote.

  Raises:
    InputError: make() raised it on the first host.
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
    raise failure or InputError("the first host stopped; see its error")
  return made if is_first_host() else make()


def any_host(flag: bool) -> bool:
  """Whether the flag is set on any host. All hosts must call it."""
  return bool(np.any(multihost_utils.process_allgather(np.bool_(flag)))) if on_many_hosts() else flag


def devices_for(batch: int) -> Devices:
  """The devices over which a batch is split: as many as can have equal shares.

  Args:
    batch: images of each domain in the global batch.

  Raises:
    InputError: there are several hosts, and not all their devices can have equal shares.
  """
  count = max(number for number in range(1, jax.device_count() + 1) if batch % number == 0)
  if on_many_hosts() and count < jax.device_count():
    raise InputError(
      f"config.train.batch_size={batch}: must be a multiple of the {jax.device_count()} devices of "
      f"{jax.process_count()} hosts"
    )
  ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return ordered[:count]


def host_share(batch: int) -> slice:
  """The positions of a global batch that this host's devices compute."""
  share = batch // jax.process_count()
  return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def placement(devices: Devices) -> Sharding:
  """Sharding of a state: a replica on each device, of all hosts."""
  if len(devices) == 1:
    return SingleDeviceSharding(devices[0])
  return NamedSharding(Mesh(devices, AXIS), PartitionSpec())


def replicate(tree: Any, devices: Devices) -> Any:
  """A replica of arrays on each of this host's devices."""
  return jax.device_put(tree, placement(_local(devices)))


def replica(tree: Any) -> Any:
  """One replica, on a device of this host, without a copy."""
  return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def over_hosts(tree: Any, devices: Devices) -> Any:
  """This host's replicas as shards of global arrays, which Orbax saves, without a copy."""
  if not on_many_hosts():
    return tree
  everywhere = placement(devices)
  return jax.tree.map(lambda x: assemble(x.shape, everywhere, [shard.data for shard in x.addressable_shards]), tree)


def memory_of(device: jax.Device) -> int:
  """Bytes of memory of a device of this host; 0 where the device does not report them."""
  if device.platform == "cpu":
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return (device.memory_stats() or {}).get("bytes_limit", 0)


def compiler_options(devices: Devices) -> dict[str, str]:
  """Options of XLA for a step on these devices."""
  return _CPU_OPTIONS if devices[0].platform == "cpu" else {}


def steps_in_dispatch(steps: int, devices: Devices) -> int:
  """Number of steps that go into one dispatch on these devices, `steps` at most."""
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
    scanned: whether the steps of a dispatch are one program; by default, as is faster on the backend.

  Returns:
    run(state, data, key, count) -> (state, metrics) after `count` steps; metrics are a list, of () or (count,) values.
    Steps that are not finite are skipped, see skip_nonfinite. The state must not be used again: where steps are
    scanned, its buffers are donated. `key` is the key of the batches; as an argument, it lets runs of different seeds
    share a program. `data` are slices on all devices or, if streamed, a list with this host's share of the slices of
    each step. A program is compiled for each `count`, on the CPU for one step.
  """
  if scanned is None:
    scanned = devices[0].platform != "cpu"
  axis_name = AXIS if len(devices) > 1 else None
  step, local = make_step(axis_name), _local(devices)

  def one(state: State, data: Any, key: Array) -> tuple[State, Metrics]:
    # Where a step is a call, the host checks its metrics and returns to the earlier state, without a copy.
    return step(state, draw(data, key, state.step, axis_name=axis_name))

  @cache
  def program(count: int) -> Callable:
    function = scan_steps(step, draw, axis_name, count, streamed=streamed) if scanned else one
    axis = (1 if scanned else 0) if streamed else None
    # Where the host checks a step, it needs the state before it, so that state is not donated.
    jitted, leading = over_devices(function, devices, axis, donated=scanned)
    return partial(jitted, *leading)

  def shares(slices: dict) -> dict:
    """Slices (B, …) of a step by device: (devices, B / devices, …)."""
    return jax.tree.map(lambda x: x.reshape(len(local), -1, *x.shape[1:]) if axis_name else x, slices)

  def run(state: State, data: Any, key: Array, count: int) -> tuple[State, list[Metrics]]:
    if streamed:
      data = [shares(slices) for slices in data]
    if scanned:
      state, metrics = program(count)(state, jax.tree.map(lambda *x: np.stack(x), *data) if streamed else data, key)
      return state, [metrics]
    metrics = []
    for number in range(count):
      after, measured = program(1)(state, data[number] if streamed else data, key)
      finite = all(map(np.isfinite, measured.values()))
      state = after if finite else state.replace(step=after.step)
      metrics.append(measured | {"skipped": np.float32(not finite)})
    return state, metrics

  return run


def scan_steps(step: Callable, draw: Callable, axis_name: str | None, count: int, *, streamed: bool) -> Callable:
  """Function (state, data, key) -> (state, metrics) of `count` steps, see compile_steps; metrics are (count,)."""

  def one(state: State, data: Any, key: Array) -> tuple[State, Metrics]:
    return skip_nonfinite(state, *step(state, draw(data, key, state.step, axis_name=axis_name)))

  def many(state: State, data: Any, key: Array) -> tuple[State, Metrics]:
    slices = data if streamed else None
    return jax.lax.scan(lambda state, row: one(state, row if streamed else data, key), state, slices, length=count)

  return many


def over_devices(
  function: Callable, devices: Devices, data_axis: int | None, *, donated: bool
) -> tuple[Callable, tuple[Any, ...]]:
  """function(state, data, key) on all devices.

  Args:
    function: of one device, or of one replica under AXIS.
    devices: of devices_for.
    data_axis: the axis of devices in `data`, None for replicas.
    donated: whether the buffers of the state are donated.

  Returns:
    A jitted function, and the arguments that go before (state, data, key).
  """
  if len(devices) == 1:
    options = compiler_options(devices)
    return jax.jit(function, donate_argnums=0 if donated else (), compiler_options=options), ()
  mapped = jax.pmap(
    lambda number, *arguments: function(*arguments),
    axis_name=AXIS,
    in_axes=(0, None, data_axis, None),
    out_axes=None,
    devices=devices,
    donate_argnums=1 if donated else (),
  )
  return mapped, (np.arange(len(_local(devices))),)


def assemble(shape: tuple[int, ...], sharding: Sharding, shards: list[Array]) -> Array:
  """The global array of which this host's devices hold the shards, without a copy."""
  if jax.dtypes.issubdtype(shards[0].dtype, jax.dtypes.prng_key):
    numbers = [jax.random.key_data(shard) for shard in shards]
    data = assemble((*shape, numbers[0].shape[-1]), sharding, numbers)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(shards[0]))
  return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _local(devices: Devices) -> Devices:
  """The devices of this host."""
  return [device for device in devices if device.process_index == jax.process_index()]
