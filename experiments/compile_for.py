"""Compiles the training steps of a configuration for TPUs that are not there, and says what bounds their speed.

python -m experiments.compile_for --config=configs/uda.py --output=runs/tpu.json
python -m experiments.compile_for --config=configs/vamcei_paper.py --stages=vamcei --output=runs/tpu.json

The extra `tpu` brings the compiler, and it needs no TPU. Each stage is compiled in each type as four programs: one step
on one chip; one step on all chips, each with the batch of one; ten steps as a scan; and one step of a grid of runs.

The table has the operations, the memory and the collectives of a program, and two counts of bytes. "GB accessed" is the
compiler's own count. It includes the vector memory of the chip, where many arrays stay. "GB of HBM" is what the program
reads from and writes to the main memory. "Mcycles" is the compiler's estimate of the time. The bound is the shortest
time for the operations and for the bytes of HBM, and "arithmetic" is the share of the operations in it. Of a scan, the
numbers are those of one step.

A compilation takes minutes. Rows that the output has already are kept.
"""

import dataclasses
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from vamcei_jax import cli
from vamcei_jax.errors import InputError
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS
PROGRAMS = ("step", "all chips", "scan", "grid")
DTYPES = ("float32", "bfloat16")
SCANNED = 10  # steps of the program "scan"
RUNS = 6  # of the program "grid"
SLICES = 400  # of each domain on a chip
# Operations a second in bfloat16, and bytes a second of the memory: cloud.google.com/tpu/docs/system-architecture.
CHIPS = {"v4": (275e12, 1228e9), "v5e": (197e12, 819e9), "v5p": (459e12, 2765e9), "v6e": (918e12, 1640e9)}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
INSTRUCTION = re.compile(r"^  (?:ROOT )?%([\w.-]+) = (.*?) ([a-z][a-z-]*)\((.*)$", re.MULTILINE)
ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+))\[([\d,]*)\](?:\{([^}]*)\})?")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# Instructions that move no bytes themselves.
FREE = ("bitcast", "call", "conditional", "constant", "get-tuple-element", "parameter", "tuple", "while")


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    config_flags.DEFINE_config_file("config", None, "FILE: Configuration to compile. --config.FIELD=VALUE changes it.")
    flags.DEFINE_string("output", None, "FILE: For the numbers, ending in .json; the table goes beside it, as .md.")
  flags.DEFINE_string("topology", "v5e:2x4", f"NAME: Kind ({', '.join(CHIPS)}) and arrangement of the chips.")
  flags.DEFINE_list("stages", [], "NAME,NAME: Stages to compile. Default: all.")
  flags.DEFINE_list("programs", list(PROGRAMS), "NAME,NAME: Programs to compile.")
  flags.DEFINE_list("dtypes", list(DTYPES), "NAME,NAME: Types to compile.")


def main() -> None:
  """Runs the command."""
  for name, known in (("programs", PROGRAMS), ("dtypes", DTYPES)):
    if unknown := set(FLAGS[name].value) - set(known):
      raise InputError(f"--{name}={min(unknown)}: choose from {', '.join(known)}")
  from experiments.benchmark import format_rows
  from vamcei_jax.files import write_text

  output, name = Path(FLAGS.output), cli.config_path().stem
  rows = json.loads(output.read_text(encoding="utf-8")) if output.exists() else []
  chips = describe_chips(FLAGS.topology)
  peaks = CHIPS[FLAGS.topology.partition(":")[0]]
  for dtype in FLAGS.dtypes:
    stages = resolve_stages(FLAGS.config, dtype, FLAGS.stages)
    for stage, config in stages.items():
      for program in FLAGS.programs:
        what = {"config": name, "stage": stage, "type": dtype, "program": program, "chips": FLAGS.topology}
        if program == "grid" and stage != "vamcei" or any(row.items() >= what.items() for row in rows):
          continue
        rows.append(what | compile_row(config, program, chips, peaks))
        print(json.dumps(rows[-1]), flush=True)
        write_text(output, json.dumps(rows, indent=2) + "\n")
  table = format_rows(rows)
  write_text(output.with_suffix(".md"), table)
  print(f"\n{table}\nNumbers and table: {output.parent}")


def resolve_stages(config: Any, dtype: str, chosen: Sequence[str]) -> Mapping[str, Any]:
  """Stage -> its configuration, in a type; only the chosen stages, unless none is.

  Raises:
    InputError: the configuration has no such stage.
  """
  from vamcei_jax.pipeline.resolve import resolve

  config.model.dtype = dtype
  stages = resolve(config).stages
  if unknown := set(chosen) - set(stages):
    raise InputError(f"--stages={min(unknown)}: choose from {', '.join(stages)}")
  return {name: stage for name, stage in stages.items() if not chosen or name in chosen}


def describe_chips(topology: str) -> Sequence[Any]:
  """The chips of a topology, of one host, as devices for which JAX compiles.

  Raises:
    InputError: the compiler is not installed, or does not know the topology.
  """
  kind, _, shape = topology.partition(":")
  if kind not in CHIPS:
    raise InputError(f"--topology={topology}: begin with {', '.join(CHIPS)}, as in v5e:2x4")
  # Without these, the compiler asks the cloud for its machine.
  os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}
  from jax.experimental import topologies

  bounds = (*map(int, shape.split("x")), 1)[:3] if re.fullmatch(r"\d+x\d+(x\d+)?", shape) else ()
  try:
    return topologies.get_topology_desc(topology, "tpu", chips_per_host_bounds=bounds).devices
  except Exception as error:  # the compiler's errors have no common type
    reason = " ".join(str(error).split())[:160]
    way_out = "install the compiler by .venv/bin/python -m pip install -e '.[tpu]'; one program at a time can use it"
    raise InputError(f"--topology={topology}: cannot be compiled for ({reason}); {way_out}") from None


def compile_row(config: Any, program: str, chips: Sequence[Any], peaks: tuple[float, float]) -> dict[str, object]:
  """What the compiler says about a program of a stage.

  Args:
    config: of the stage.
    program: one of PROGRAMS.
    chips: of describe_chips.
    peaks: of CHIPS.
  """
  import jax

  jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache takes no time to compile
  lowered = lower(config, program, chips)
  started = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - started
  costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
  text = compiled.as_text()
  collectives, hbm = collective_bytes(text), memory_bytes(text)
  arithmetic, traffic = costs["flops"] / peaks[0], hbm / peaks[1]
  return {
    "compile s": seconds,
    "TFLOP": costs["flops"] / 1e12,
    "GB accessed": costs["bytes accessed"] / 1e9,
    "GB of HBM": hbm / 1e9,
    "Mcycles": sum(map(int, CYCLES.findall("".join(executed(text))))) / 1e6,
    "temporary GB": memory.temp_size_in_bytes / 1e9,
    "arguments GB": memory.argument_size_in_bytes / 1e9,
    "collectives": len(collectives),
    "collectives MB": sum(collectives) / 1e6,
    "bound ms": 1e3 * max(arithmetic, traffic),
    "arithmetic": arithmetic / max(arithmetic, traffic),
  }


def lower(config: Any, program: str, chips: Sequence[Any]) -> Any:
  """A program of PROGRAMS, lowered for the chips; see compile_row."""
  import jax
  from jax.sharding import SingleDeviceSharding

  from vamcei_jax.distributed import AXIS, over_devices, scan_steps
  from vamcei_jax.grid import grid_program
  from vamcei_jax.pipeline.stages import STAGES

  devices = chips if program == "all chips" else chips[:1]
  config = dataclasses.replace(
    config, train=dataclasses.replace(config.train, batch_size=len(devices) * config.train.batch_size)
  )
  method, draw = STAGES[config.name].method, make_draw(config)
  if program == "grid":
    stacked = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct((RUNS, *x.shape), x.dtype), tree)
    state, data, key = abstract_arguments(config)
    return grid_program(method.make_step(config), draw, devices, 1).lower(stacked(state), data, stacked(key))
  axis_name = AXIS if len(devices) > 1 else None
  count = SCANNED if program == "scan" else 1
  function = scan_steps(method.make_step(config, axis_name), draw, axis_name, count, streamed=False)
  compiled, numbers = over_devices(function, devices, None, donated=True)
  arguments = abstract_arguments(config)
  if len(devices) == 1:
    placed = partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(devices[0]))
    arguments = jax.tree.map(lambda x: placed(x.shape, x.dtype), arguments)
  return compiled.lower(*numbers, *arguments)


def make_draw(config: Any) -> Any:
  """draw_batch with the settings of a stage."""
  from vamcei_jax.data.loader import draw_batch

  return partial(draw_batch, batch_size=config.train.batch_size, crop=config.data.crop, strengths=config.augment)


def abstract_arguments(config: Any) -> tuple[Any, Any, Any]:
  """Shapes and types of the state of a stage, its data on the device, and its key."""
  import jax
  import jax.numpy as jnp

  from vamcei_jax.pipeline.stages import STAGES

  key = jax.eval_shape(lambda: jax.random.key(0))
  slices = partial(jax.ShapeDtypeStruct, (SLICES, *config.data.size))
  source = {"image": slices(jnp.float32), "label": slices(jnp.uint8)}
  target = {"image": slices(jnp.float32)}
  if config.name == "distill":
    classes = len(config.data.label_values)
    target["teacher"] = jax.ShapeDtypeStruct((SLICES, *config.data.size, classes), jnp.float32)
  state = jax.eval_shape(partial(STAGES[config.name].method.init_state, config), key)
  return state, {"source": source, "target": target}, key


def collective_bytes(program: str) -> list[int]:
  """Bytes of the result of each collective in the text of a compiled program."""
  found = (match.group(2, 3) for match in INSTRUCTION.finditer(program))
  return [sum(size for size, _ in arrays(result)) for result, op in found if op.removesuffix("-start") in COLLECTIVES]


def memory_bytes(program: str) -> int:
  """Bytes that a compiled program reads from and writes to the main memory of a chip.

  An instruction reads its operands and writes its result, whole. The body of a loop counts once.

  Args:
    program: text of a compiled program.
  """
  total = 0
  for computation in executed(program):
    results: dict[str, str] = {}
    for name, result, op, rest in INSTRUCTION.findall(computation):
      results[name] = result
      if op in FREE or op.endswith("-done"):
        continue
      if op in ("copy-start", "slice-start"):  # The result has both sides of the copy.
        sides = arrays(result)[:2]
        total += min(size for size, _ in sides) * sum(in_hbm for _, in_hbm in sides)
        continue
      operands = re.findall(r"%([\w.-]+)", rest.partition("), ")[0])
      read = "".join(results.get(operand, "") for operand in operands)
      total += sum(size for size, in_hbm in arrays(result + read) if in_hbm)
  return total


def executed(program: str) -> list[str]:
  """The computations of a program that are not parts of fusions: the entry and the bodies of loops."""
  bodies = set(re.findall(r"\bbody=%([\w.-]+)", program))
  computations = re.split(r"\n(?=%|ENTRY )", program)
  return [text for text in computations if text.startswith("ENTRY ") or text[1:].split(" ", 1)[0] in bodies]


def arrays(text: str) -> list[tuple[int, bool]]:
  """Bytes of each array in a type, and whether it is in the main memory: other memories have a number, as in S(1)."""
  found = []
  for bits, shape, layout in ARRAY.findall(text):
    size = int(bits) // 8 if bits else 1
    for length in filter(None, shape.split(",")):
      size *= int(length)
    found.append((size, "S(" not in layout))
  return found


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
