"""The one loop that every stage shares: step, evaluate, log, checkpoint."""

import json
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from vamcei_jax import parallel
from vamcei_jax.checkpoints import open_checkpoints, restore_newest, save, set_aside
from vamcei_jax.data.loader import augment_batch, draw_batch
from vamcei_jax.data.stream import StoredSlices, stream_batches
from vamcei_jax.errors import InputError
from vamcei_jax.files import write_text
from vamcei_jax.interruption import end, noted_signals
from vamcei_jax.methods.state import Params

METRICS_FILE = "metrics.jsonl"


def train(
  config: ConfigDict,
  stage: str,
  method: ModuleType,
  key: jax.Array,
  load: Callable[[], dict[str, StoredSlices]],
  evaluate: Callable[[dict[str, Params], int], Mapping[str, float]],
  workdir: Path,
) -> dict[str, Params]:
  """Trains one stage to its last step, from its newest checkpoint if there is one.

  Args:
    config: of the stage.
    stage: its name, and that of its folder in `workdir`.
    method: a module of vamcei_jax/methods.
    key: PRNG key of the stage.
    load: () -> domain -> slices on disk; called if there is something left to train.
    evaluate: (networks, step) -> scores by name; called every `train.eval_every` steps. "dice", where it is among
      them, tells the best checkpoint.
    workdir: of the run; gets STAGE/checkpoints, STAGE/events.* and lines in metrics.jsonl.

  On several hosts, all of them call it alike, and the first one evaluates and logs.

  Returns:
    The moving averages of the networks' parameters, on one device.

  Raises:
    SystemExit: SIGTERM or SIGINT came; the state after the step that was under way is saved.
    InputError: there are checkpoints, and none is whole; a batch that the hosts cannot share; `train.max_bad_steps` in
      a row were not finite.
  """
  settings, steps = config.train, config.train.steps
  draws, own = jax.random.split(key)
  devices = parallel.devices_for(settings.batch_size)
  with open_checkpoints(workdir / stage / "checkpoints", settings.keep) as checkpoints:
    init = lambda: method.init_state(config, own)
    state, damaged = restore_newest(checkpoints, jax.eval_shape(init), parallel.placement(devices))
    parallel.first_host_first(lambda: set_aside(checkpoints, damaged))
    if state is None:
      state = parallel.replicate(jax.jit(init)(), devices)
    first = int(state.step)
    if first == steps:
      print(f"{stage}: finished at step {steps}", flush=True)
      return parallel.replica(state.ema)

    spread = f" on {len(devices)} devices" if len(devices) > 1 else ""
    print(f"{stage}: {'resumes at' if first else 'starts,'} step {first} of {steps}{spread}; compiling", flush=True)
    slices = load()
    # All hosts must do the same, and some may have less memory.
    streamed = parallel.any_host(not fits(slices, jax.local_devices()[0], config.data.resident))
    draw = augment_batch if streamed else partial(draw_batch, batch_size=settings.batch_size)
    draw = partial(draw, crop=config.data.crop, strengths=config.augment)
    run = parallel.compile_steps(partial(method.make_step, config), draw, devices, streamed=streamed)
    if streamed:
      batch, share = settings.batch_size, parallel.host_share(settings.batch_size)
      ahead = 2 * parallel.steps_in_dispatch(settings.steps_per_call, devices)
      batches = stream_batches(slices, draws, range(first, steps), batch, share, ahead)
      print(f"{stage}: slices are read from disk", flush=True)
    else:
      data = parallel.replicate({domain: stored.load() for domain, stored in slices.items()}, devices)

    with open_log(workdir, stage, first) as log, noted_signals() as signals:
      step, pending, started, stopped, bad = first, [], None, False, 0
      while step < steps and not stopped:
        count = steps_to_go(step, config, devices)
        state, metrics = run(state, list(islice(batches, count)) if streamed else data, draws, count)
        begun, step = step == 0, step + count
        pending += metrics
        due = lambda every, step=step: step % every == 0 or step == steps

        dice, logged = None, due(settings.log_every) or due(settings.eval_every) or begun
        if logged:
          fetched, scores = jax.device_get(parallel.replica(pending)), {}
          values = {name: np.concatenate([np.ravel(line[name]) for line in fetched]) for name in fetched[0]}
          bad = stop_if_stuck(values, bad, settings.max_bad_steps, stage)
          means = mean_metrics(values)
          # The first lines of a run take in the compilation: no rate.
          rate = len(values["loss"]) / (time.perf_counter() - started) if started else None
          if due(settings.eval_every):
            if parallel.is_first_host():
              scores = evaluate(parallel.replica(state.ema), step)
            dice = parallel.from_first_host(scores.get("dice", np.nan))
          log(step, {**means, **scores}, rate, steps)
          pending, started = [], time.perf_counter()

        # Hosts ask each other when they wait for the device anyway.
        stopped = parallel.any_host(bool(signals)) if logged or not parallel.on_many_hosts() else False
        if due(settings.checkpoint_every) or stopped:
          save(checkpoints, parallel.over_hosts(state, devices), step, dice)
    checkpoints.wait_until_finished()
    if stopped:
      number = signals[0] if signals else signal.SIGTERM
      end(number, f"{stage} stopped at step {step}, which is saved; the same command goes on from there")
    return parallel.replica(state.ema)


def mean_metrics(values: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Means of metrics (steps,) over the steps that were not skipped; if some were, "skipped" is their number."""
  skipped = values["skipped"] > 0
  means = {name: float(np.mean(own[~skipped])) if not skipped.all() else np.nan for name, own in values.items()}
  del means["skipped"]
  return means | ({"skipped": float(skipped.sum())} if skipped.any() else {})


def stop_if_stuck(values: Mapping[str, np.ndarray], before: int, most: int, stage: str) -> int:
  """How many of the last steps in a row were skipped, of metrics (steps,) and as many as `before` ahead of them.

  Raises:
    InputError: `most`; it names the terms that were not finite.
  """
  for number, skipped in enumerate(values["skipped"]):
    before = before + 1 if skipped else 0
    if before == most:
      terms = [name for name, own in values.items() if not np.isfinite(own[number])]
      raise InputError(
        f"{stage}: {most} steps in a row were skipped, for {', '.join(terms)} not being finite; checkpoints hold "
        f"what was learned before: lower config.optimizer.rates or config.loss.weights, in another --workdir"
      )
  return before


def fits(slices: Mapping[str, StoredSlices], device: jax.Device, resident: float) -> bool:
  """Whether slices may be kept on a device: they take at most the part `resident` of its memory."""
  return sum(stored.nbytes for stored in slices.values()) <= resident * parallel.memory_of(device)


def steps_to_go(step: int, config: ConfigDict, devices: parallel.Devices) -> int:
  """How many steps to dispatch after `step`: no more than there are until something is to be done between them."""
  settings = config.train
  every = (settings.log_every, settings.eval_every, settings.checkpoint_every)
  wanted = parallel.steps_in_dispatch(settings.steps_per_call, devices)
  return min(wanted, settings.steps - step, *(n - step % n for n in every))


@contextmanager
def open_log(workdir: Path, stage: str, step: int):
  """A function log(step, scalars, rate, steps): a line in metrics.jsonl, TensorBoard events and a printed line.

  What an interrupted run has logged after `step` is dropped first: it will be logged again. Of several hosts, the first
  one logs.
  """
  if not parallel.is_first_host():
    yield lambda *_: None
    return
  path = workdir / METRICS_FILE
  kept = [line for line in read_log(path) if line["stage"] != stage or line["step"] <= step]
  write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
  with path.open("a", encoding="utf-8") as lines, SummaryWriter(str(workdir / stage), purge_step=step + 1) as events:

    def log(step: int, scalars: Mapping[str, float], rate: float | None, steps: int) -> None:
      speed = {"steps_per_second": rate} if rate else {}
      lines.write(json.dumps({"stage": stage, "step": step, **scalars, **speed}) + "\n")
      lines.flush()
      for name, value in {**scalars, **speed}.items():
        events.add_scalar(name, value, step)
      left = f"{rate:6.2f} steps/s  ETA {(steps - step) / rate / 60:5.1f} min" if rate else ""
      terms = "  ".join(f"{name} {value:.3g}" for name, value in scalars.items())
      print(f"{stage} {step:>5}/{steps}  {left}  {terms}", flush=True)

    yield log


def read_log(path: Path) -> list[dict]:
  """The lines of metrics.jsonl; none where there is no file. A last line that was cut off is left out.

  Raises:
    InputError: a line is damaged.
  """
  if not path.exists():
    return []
  try:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
  except ValueError as error:
    raise InputError(f"{path}: a damaged line ({error}); restore the file or remove it") from None
