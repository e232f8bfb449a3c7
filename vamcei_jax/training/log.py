"""The log of a run: a line in metrics.jsonl, TensorBoard events and a printed line, for each logged step."""

import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tensorboardX import SummaryWriter

from vamcei_jax.distributed import is_first_host
from vamcei_jax.errors import InputError
from vamcei_jax.files import write_text
from vamcei_jax.training.progress import Workload, progress_line, seconds_left

METRICS_FILE = "metrics.jsonl"
_RECENT = 10  # lines of a stage by which its speed is measured


def say(line: str) -> None:
  """Prints a line on the first host."""
  if is_first_host():
    print(line, flush=True)


@contextmanager
def open_log(
  workdir: Path, stage: str, step: int, workloads: Callable[[], Sequence[Workload]] = tuple
) -> Iterator[Callable[..., None]]:
  """Yields log(step, scalars, rate, steps), where `rate` is in steps a second, or None.

  The files get all scalars; the printed line has "loss" and the latest "dice".

  Lines of the stage after `step` are dropped first: a resumed run logs those steps again. Of several hosts, the first
  one logs.

  Args:
    workdir: of the run.
    stage: name of the stage.
    step: at which it starts.
    workloads: () -> those of all stages, for the time that is left of the run; by default of this one alone.
  """
  if not is_first_host():
    yield lambda *_: None
    return
  path = workdir / METRICS_FILE
  earlier = drop_later_lines(path, stage, step)
  seconds = _step_seconds(earlier)
  dice = next((line["dice"] for line in reversed(earlier) if line["stage"] == stage and "dice" in line), None)
  latest: tuple[int, float] | None = None  # step and time of the line before, in this session
  with path.open("a", encoding="utf-8") as lines, SummaryWriter(str(workdir / stage), purge_step=step + 1) as events:

    def log(step: int, scalars: Mapping[str, float], rate: float | None, steps: int) -> None:
      nonlocal dice, latest
      speed = {"steps_per_second": rate} if rate else {}
      lines.write(json.dumps({"stage": stage, "step": step, **scalars, **speed}) + "\n")
      lines.flush()
      for name, value in {**scalars, **speed}.items():
        events.add_scalar(name, value, step)
      now = time.monotonic()
      if latest is not None:  # with the evaluations, which `rate` leaves out
        seconds.setdefault(stage, deque(maxlen=_RECENT)).append((now - latest[1]) / (step - latest[0]))
      latest, dice = (step, now), scalars.get("dice", dice)
      current = Workload(stage, steps - step)
      ahead = [each if each.name != stage else current._replace(cost=each.cost) for each in workloads()] or [current]
      left = seconds_left(ahead, {name: statistics.mean(values) for name, values in seconds.items()})
      say(progress_line(stage, step, steps, loss=scalars.get("loss"), dice=dice, rate=rate, left=left))

    yield log


def drop_later_lines(path: Path, stage: str, step: int) -> list[dict]:
  """Removes the lines of a stage after `step` from metrics.jsonl; returns the others."""
  earlier = [line for line in read_log(path) if line["stage"] != stage or line["step"] <= step]
  write_text(path, "".join(json.dumps(line) + "\n" for line in earlier))
  return earlier


def _step_seconds(lines: Sequence[Mapping]) -> dict[str, deque[float]]:
  """Stage -> seconds of a step, by its latest lines that have a speed."""
  seconds: dict[str, deque[float]] = {}
  for line in lines:
    if line.get("steps_per_second"):
      seconds.setdefault(line["stage"], deque(maxlen=_RECENT)).append(1 / line["steps_per_second"])
  return seconds


def read_log(path: Path) -> list[dict]:
  """The lines of metrics.jsonl, without an incomplete last line; none where there is no file.

  Raises:
    InputError: a line is damaged.
  """
  if not path.exists():
    return []
  try:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
  except ValueError as error:
    raise InputError(f"{path}: a damaged line ({error}); restore the file or remove it") from None
