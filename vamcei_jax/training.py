"""The one loop that every stage shares: step, evaluate, log, checkpoint."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from vamcei_jax.checkpoints import open_checkpoints, restore_newest, save, set_aside
from vamcei_jax.data.loader import draw_batch
from vamcei_jax.errors import InputError
from vamcei_jax.files import write_text
from vamcei_jax.interruption import end, noted_signals
from vamcei_jax.methods.state import Params
from vamcei_jax.parallel import compile_step

METRICS_FILE = "metrics.jsonl"


def train(
  config: ConfigDict,
  stage: str,
  method: ModuleType,
  key: jax.Array,
  load: Callable[[], dict],
  evaluate: Callable[[dict[str, Params], int], Mapping[str, float]],
  workdir: Path,
) -> dict[str, Params]:
  """Trains one stage to its last step, from its newest checkpoint if there is one.

  Args:
    config: of the stage.
    stage: its name, and that of its folder in `workdir`.
    method: a module of vamcei_jax/methods.
    key: PRNG key of the stage.
    load: () -> domain -> slices; called if there is something left to train.
    evaluate: (networks, step) -> scores by name; called every `train.eval_every` steps. "dice", where it is among
      them, tells the best checkpoint.
    workdir: of the run; gets STAGE/checkpoints, STAGE/events.* and lines in metrics.jsonl.

  Returns:
    The moving averages of the networks' parameters.

  Raises:
    SystemExit: SIGTERM or SIGINT came; the state after the step that was under way is saved.
    InputError: there are checkpoints, and none is whole.
  """
  steps = config.train.steps
  draws, own = jax.random.split(key)
  with open_checkpoints(workdir / stage / "checkpoints", config.train.keep) as checkpoints:
    init = lambda: method.init_state(config, own)
    state, damaged = restore_newest(checkpoints, jax.eval_shape(init))
    set_aside(checkpoints, damaged)
    if state is None:
      state = jax.jit(init)()
    first = int(state.step)
    if first == steps:
      print(f"{stage}: finished at step {steps}", flush=True)
      return state.ema

    print(f"{stage}: {'resumes at' if first else 'starts,'} step {first} of {steps}; compiling", flush=True)
    run = compile_step(method.make_step(config), partial(draw_batch, config=config))
    data = jax.device_put(load())
    with open_log(workdir, stage, first) as log, noted_signals() as signals:
      pending, started = [], None
      for step in range(first + 1, steps + 1):
        state, metrics = run(state, data, draws)
        pending.append(metrics)
        due = lambda every, step=step: step % every == 0 or step == steps

        scores = {}
        if due(config.train.log_every) or due(config.train.eval_every) or step == 1:
          fetched = jax.device_get(pending)
          means = {name: float(np.mean([line[name] for line in fetched])) for name in metrics}
          # The first lines of a run take in the compilation: no rate.
          rate = len(pending) / (time.perf_counter() - started) if started else None
          if due(config.train.eval_every):
            scores = evaluate(state.ema, step)
          log(step, {**means, **scores}, rate, steps)
          pending, started = [], time.perf_counter()

        if due(config.train.checkpoint_every) or signals:
          save(checkpoints, state, step, scores.get("dice"))
          if signals:
            break
    checkpoints.wait_until_finished()
    if signals:
      end(signals[0], f"{stage} stopped at step {step}, which is saved; the same command goes on from there")
    return state.ema


@contextmanager
def open_log(workdir: Path, stage: str, step: int):
  """A function log(step, scalars, rate, steps): a line in metrics.jsonl, TensorBoard events and a printed line.

  What an interrupted run has logged after `step` is dropped first: it will be logged again.
  """
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
