"""The line that a run prints for each logged step, and the estimate of the time that is left of the run."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

WIDTH = 100  # characters of a line, at most


class Workload(NamedTuple):
  """A stage of a run, for the estimate of the time that is left.

  name: of the stage.
  steps: that are left to train; 0 for a finished stage.
  cost: of a step, relative to that of the other stages.
  compilation: expected seconds of the compilation of a stage that has not started, if they are known; else 0.
  """

  name: str
  steps: int
  cost: float = 1.0
  compilation: float = 0.0


def seconds_left(workloads: Sequence[Workload], seconds: Mapping[str, float]) -> float | None:
  """Estimated seconds to the end of training, of all stages; None while no stage is measured.

  A stage that is not measured yet is estimated from the measured ones, in proportion to the cost of its steps.

  Args:
    workloads: of all stages.
    seconds: stage -> measured seconds of a step, with its share of the evaluations.
  """
  scales = [seconds[each.name] / each.cost for each in workloads if each.name in seconds]
  if not scales:
    return None
  scale = statistics.median(scales)
  return sum(each.compilation + each.steps * seconds.get(each.name, scale * each.cost) for each in workloads)


def progress_line(
  stage: str,
  step: int,
  steps: int,
  *,
  loss: float | None = None,
  dice: float | None = None,
  rate: float | None = None,
  left: float | None = None,
) -> str:
  """The line of a logged step, of WIDTH characters at most; a long name of a stage is cut.

  Args:
    stage, step, steps: name of the stage, number of the step, and steps of the stage.
    loss: of the step.
    dice: latest validation Dice of the stage.
    rate: steps a second.
    left: seconds to the end of the run; not printed where they are unknown or 0.
  """
  parts = [
    f"{step:>5}/{steps}",
    "loss –" if loss is None else f"loss {_three_digits(loss)}",
    "validation Dice –    " if dice is None else f"validation Dice {dice:.3f}",
  ]
  if rate is not None:
    parts.append(f"{_three_digits(rate)} steps/s")
  if left:
    parts.append(f"run ends in {format_duration(left)}")
  rest = " " + "  ".join(parts).rstrip()
  room = max(WIDTH - len(rest), 1)
  return ((stage if len(stage) <= room else f"{stage[: room - 1]}…") + rest)[:WIDTH]


def format_duration(seconds: float) -> str:
  """`45 s`, `12 min`, `2 h 05 min` or `3 d 04 h`."""
  if seconds < 59.5:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  if minutes < 60:
    return f"{minutes} min"
  if minutes < 24 * 60:
    return f"{minutes // 60} h {minutes % 60:02d} min"
  hours = round(minutes / 60)
  return f"{hours // 24} d {hours % 24:02d} h"


def _three_digits(value: float) -> str:
  return f"{value:#.3g}".rstrip(".")
