"""Measures this machine: steps, losses, dispatches, grids and devices, in one table.

python -m experiments.benchmark --output=experiments/results/NAME.json

The contenders of a comparison take turns, and medians are compared, so that other work of the machine affects all of
them. A turn is two runs, of which the second counts: the first may wait for memory that another contender has released.
--torch=eager adds a PyTorch twin of the published step and a plain U-Net (extra `bench`). XLA counts the operations, in
the program before it is optimised.

The measurements run in a process of their own, with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 unless the environment sets
this tunable: glibc reads it when a process starts, and a step on the CPU is faster with memory in huge pages.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from vamcei_jax import cli
from vamcei_jax.errors import InputError
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS
SECTIONS = ("steps", "alignment", "dispatch", "grid", "devices", "profile")
TWINS = ("eager", "channels_last", "compiled")
DTYPES = ("float32", "bfloat16")
HUGE_PAGES = "glibc.malloc.hugetlb"


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("output", None, "FILE: For the numbers, ending in .json; the table goes beside it, as .md.")
  twins = f"NAME,NAME: PyTorch twins to measure: {', '.join(TWINS)}; all but eager are eager as well."
  flags.DEFINE_list("torch", [], twins)
  flags.DEFINE_list("dtypes", ["float32"], f"NAME,NAME: Types of the published step: {', '.join(DTYPES)}.")
  flags.DEFINE_integer("rounds", 5, "Turns of each contender.", 1)
  flags.DEFINE_list("sections", list(SECTIONS), "NAME,NAME: Sections to measure.")


def main() -> None:
  """Runs the command."""
  for name, known in (("sections", SECTIONS), ("torch", TWINS), ("dtypes", DTYPES)):
    if unknown := set(FLAGS[name].value) - set(known):
      raise InputError(f"--{name}={min(unknown)}: choose from {', '.join(known)}")
  output, environment = cli.required_path("output"), with_huge_pages(os.environ)
  if environment != os.environ:
    measuring = [sys.executable, "-m", "experiments.benchmark", *sys.argv[1:]]
    sys.exit(subprocess.run(measuring, env=environment).returncode)

  from experiments.measurements import Settings, machine, measure
  from vamcei_jax.files import write_text

  settings, rows = Settings(FLAGS.rounds, tuple(FLAGS.dtypes), tuple(FLAGS.torch)), []
  for row in measure(FLAGS.sections, settings):
    rows.append(row)
    print(json.dumps(row), flush=True)
  table = format_rows(rows)
  write_text(output, json.dumps({"machine": machine(settings), "rows": rows}, indent=2) + "\n")
  write_text(output.with_suffix(".md"), table)
  print(f"\n{table}\nNumbers and table: {output.parent}")


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
  """An environment in which glibc asks for huge pages; the same if it already has a value of this tunable."""
  tunables = environment.get("GLIBC_TUNABLES", "")
  if HUGE_PAGES in tunables:
    return dict(environment)
  return {**environment, "GLIBC_TUNABLES": ":".join(filter(None, (tunables, f"{HUGE_PAGES}=1")))}


def format_rows(rows: Sequence[Mapping[str, object]]) -> str:
  """Rows as a Markdown table, with a column for each quantity that a row has."""
  columns = list(dict.fromkeys(name for row in rows for name in row if name != "section"))
  lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
  lines += ["| " + " | ".join(format_value(row.get(name, "")) for name in columns) + " |" for row in rows]
  return "\n".join(lines) + "\n"


def format_value(value: object) -> str:
  """A number with three digits or, if it is larger than 100, without decimals; anything else as it is."""
  if not isinstance(value, float):
    return str(value)
  return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
