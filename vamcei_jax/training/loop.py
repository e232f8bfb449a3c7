"""The training loop, which all stages share: step, log, evaluate, checkpoint."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax import Array

from vamcei_jax import distributed
from vamcei_jax.config.schema import StageConfig, TrainConfig
from vamcei_jax.data.loader import augment_batch, make_draw
from vamcei_jax.data.stream import StoredSlices, stream_batches
from vamcei_jax.errors import InputError
from vamcei_jax.methods.state import Params, State, start_from
from vamcei_jax.training.checkpoints import open_checkpoints, restore_newest, save, set_aside
from vamcei_jax.training.log import open_log, say
from vamcei_jax.training.progress import Workload, format_duration
from vamcei_jax.training.shutdown import end, noted_signals


def train(
  config: StageConfig,
  method: ModuleType,
  key: Array,
  load: Callable[[], dict[str, StoredSlices]],
  evaluate: Callable[[dict[str, Params], int], Mapping[str, float]],
  workdir: Path,
  trained: Mapping[str, Params] | None = None,
  workloads: Callable[[], Sequence[Workload]] = tuple,
  on_compiled: Callable[[float], None] = lambda seconds: None,
) -> dict[str, Params]:
  """Trains one stage to its last step, from its newest checkpoint if it has one.

  On several hosts, all of them call it alike, and the first one evaluates and logs.

  Args:
    config: of the stage.
    method: a module of vamcei_jax/methods.
    key: PRNG key of the stage.
    load: () -> domain -> slices on disk; called if steps are left to train.
    evaluate: (averaged parameters by network, step) -> scores by name; called every `train.eval_every` steps, for
      the log. The scores choose nothing.
    workdir: of the run; gets STAGE/checkpoints, STAGE/events.* and lines in metrics.jsonl.
    trained: network name -> parameters from which the networks start, see start_from; None for random ones.
    workloads: () -> those of all stages of the run, for the time that is left; by default of this one alone.
    on_compiled: called with the seconds that the compilation took.

  Returns:
    Network name -> averaged parameters, on one device.

  Raises:
    SystemExit: SIGTERM or SIGINT was received; the state after the current step is saved.
    InputError: no checkpoint is intact; the hosts cannot share a batch; `train.max_bad_steps` successive steps were not
      finite.
  """
  stage, settings, steps = config.name, config.train, config.train.steps
  draw_key, init_key = jax.random.split(key)
  devices = distributed.devices_for(settings.batch_size)
  with open_checkpoints(workdir / stage / "checkpoints", settings.keep) as checkpoints:
    init = lambda: method.init_state(config, init_key)
    state, damaged = restore_newest(checkpoints, jax.eval_shape(init), distributed.placement(devices))
    distributed.first_host_first(lambda: set_aside(checkpoints, damaged))
    first = 0 if state is None else int(state.step)
    if state is not None and first == steps:
      say(f"{stage}: finished at step {steps}")
      return distributed.replica(state.ema_params)

    spread = f" on {len(devices)} devices" if len(devices) > 1 else ""
    say(f"{stage}: {f'resumes at step {first} of' if first else 'starts,'} {steps} steps{spread}")
    expected = sum(each.compilation for each in workloads() if each.name == stage)
    say(f"{stage}: compiling" + (f", about {format_duration(expected)}" if expected else ""))
    called = time.perf_counter()
    if state is None:
      state = distributed.replicate(initial_state(config, jax.jit(init)(), trained), devices)
    compiled = time.perf_counter() - called
    run, next_data = prepare_steps(config, method, load(), draw_key, first, devices)

    with open_log(workdir, stage, first, workloads) as log, noted_signals() as signals:
      started: float | None = None
      step, pending, stopped, bad = first, [], False, 0
      while step < steps and not stopped:
        count = steps_to_go(step, settings, devices)
        data, called = next_data(count), time.perf_counter()
        state, metrics = run(state, data, draw_key, count)
        if step == first:
          compiled += time.perf_counter() - called
          say(f"{stage}: compiled in {format_duration(compiled)}")
          on_compiled(compiled)
        is_first, step = step == 0, step + count
        pending += metrics
        due = lambda every, step=step: step % every == 0 or step == steps

        logged = due(settings.log_every) or due(settings.eval_every) or is_first
        if logged:
          fetched = jax.device_get(distributed.replica(pending))
          scores: Mapping[str, float] = {}
          values = {name: np.concatenate([np.ravel(line[name]) for line in fetched]) for name in fetched[0]}
          bad = stop_if_stuck(values, bad, settings.max_bad_steps, stage)
          # The first line of a session includes the compilation, so it has no rate.
          rate = None if started is None else len(values["loss"]) / (time.perf_counter() - started)
          if due(settings.eval_every) and distributed.is_first_host():
            scores = evaluate(distributed.replica(state.ema_params), step)
          log(step, {**mean_metrics(values), **scores}, rate, steps)
          pending, started = [], time.perf_counter()

        # Hosts ask each other only when they wait for the device anyway.
        stopped = distributed.any_host(bool(signals)) if logged or not distributed.on_many_hosts() else False
        if due(settings.checkpoint_every) or stopped:
          save(checkpoints, distributed.over_hosts(state, devices), step)
    checkpoints.wait_until_finished()
    if stopped:
      number = signals[0] if signals else signal.SIGTERM
      end(number, f"{stage} stopped at step {step}, which is saved; the same command resumes from there")
    return distributed.replica(state.ema_params)


def initial_state(config: StageConfig, state: State, trained: Mapping[str, Params] | None) -> State:
  """The state before the first step, from random parameters or, where they fit, from those of trained networks."""
  if trained is None:
    return state
  state, taken = start_from(state, trained)
  say(f"{config.name}: {taken} of {len(jax.tree.leaves(state.params))} arrays start from {config.init}")
  return state


def prepare_steps(
  config: StageConfig,
  method: ModuleType,
  slices: Mapping[str, StoredSlices],
  key: Array,
  first: int,
  devices: distributed.Devices,
) -> tuple[Callable, Callable[[int], Any]]:
  """Compiled steps, and their data: on the device, or read from disk where it does not fit.

  Args:
    config, method: of the stage.
    slices: domain -> slices on disk.
    key: of the batches.
    first: the first step to train.
    devices: of distributed.devices_for.

  Returns:
    run: (state, data, key, count) -> (state, metrics); see distributed.compile_steps.
    next_data: count -> the data of the next `count` steps.
  """
  settings, batch = config.train, config.train.batch_size
  # Hosts may differ in memory, and must decide alike.
  streamed = distributed.any_host(not fits(slices, jax.local_devices()[0], config.data.resident))
  of_slices = partial(augment_batch, crop=config.data.crop, strengths=config.augment)
  draw = of_slices if streamed else make_draw(config)
  run = distributed.compile_steps(partial(method.make_step, config), draw, devices, streamed=streamed)
  if not streamed:
    data = distributed.replicate({domain: stored.load() for domain, stored in slices.items()}, devices)
    return run, lambda count: data
  say(f"{config.name}: slices are read from disk")
  ahead = 2 * distributed.steps_in_dispatch(settings.steps_per_call, devices)
  share = distributed.host_share(batch)
  batches: Iterator = stream_batches(slices, key, range(first, settings.steps), batch, share, ahead)
  return run, lambda count: list(islice(batches, count))


def mean_metrics(values: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Means of metrics (steps,) over the steps that were not skipped; "skipped" is their number, if some were."""
  skipped = values["skipped"] > 0
  means = {name: float(np.mean(x[~skipped])) if not skipped.all() else np.nan for name, x in values.items()}
  del means["skipped"]
  return means | ({"skipped": float(skipped.sum())} if skipped.any() else {})


def stop_if_stuck(values: Mapping[str, np.ndarray], before: int, most: int, stage: str) -> int:
  """The number of steps that were skipped in a row up to the last one.

  Args:
    values: metric -> (steps,).
    before: number of steps skipped in a row before these.
    most: number of steps skipped in a row at which training stops.
    stage: name of the stage.

  Raises:
    InputError: `most` is reached; it names the terms that were not finite.
  """
  for number, skipped in enumerate(values["skipped"]):
    before = before + 1 if skipped else 0
    if before == most:
      terms = [name for name, x in values.items() if not np.isfinite(x[number])]
      raise InputError(
        f"{stage}: {most} steps in a row were skipped because of non-finite {', '.join(terms)}; the checkpoints hold "
        "the state before them: lower config.optimizer.rates or config.loss.weights, in another --workdir"
      )
  return before


def fits(slices: Mapping[str, StoredSlices], device: jax.Device, resident: float) -> bool:
  """Whether slices take at most the share `resident` of a device's memory."""
  return sum(stored.nbytes for stored in slices.values()) <= resident * distributed.memory_of(device)


def steps_to_go(step: int, settings: TrainConfig, devices: distributed.Devices) -> int:
  """Number of steps to dispatch after `step`: up to the next one after which the loop logs, evaluates or saves."""
  every = (settings.log_every, settings.eval_every, settings.checkpoint_every)
  wanted = distributed.steps_in_dispatch(settings.steps_per_call, devices)
  return min(wanted, settings.steps - step, *(n - step % n for n in every))
