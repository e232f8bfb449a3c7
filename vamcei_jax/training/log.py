"""The log of a run: a line in metrics.jsonl, TensorBoard events and a printed line, for each logged step."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tensorboardX import SummaryWriter

from vamcei_jax.distributed import is_first_host
from vamcei_jax.errors import InputError
from vamcei_jax.files import write_text

METRICS_FILE = "metrics.jsonl"


@contextmanager
def open_log(workdir: Path, stage: str, step: int) -> Iterator[Callable[..., None]]:
  """Yields log(step, scalars, rate, steps), where `rate` is in steps a second, or None.

  Lines of the stage after `step` are dropped first: a resumed run logs those steps again. Of several hosts, the first
  one logs.
  """
  if not is_first_host():
    yield lambda *_: None
    return
  path = workdir / METRICS_FILE
  earlier = [line for line in read_log(path) if line["stage"] != stage or line["step"] <= step]
  write_text(path, "".join(json.dumps(line) + "\n" for line in earlier))
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
