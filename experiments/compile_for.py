"""Compiles the training steps of a configuration for TPUs, on a machine without one, and counts what they do.

python -m experiments.compile_for --config=configs/uda.py --output=runs/tpu.json
python -m experiments.compile_for --config=configs/vamcei_paper.py --stages=vamcei --output=runs/tpu.json

The extra `tpu` brings the compiler. Each stage is compiled in each type as several programs: one step on one chip; one
step on all chips, each with the batch of one; ten steps as a loop; and, for the stage vamcei, one step of a grid of six
runs. A compilation takes minutes. The files are written after each, so those of an interrupted run lack rows.

The table has what the compiler says about a program: operations, bytes that its instructions access, cycles, memory,
and the results of its collectives. The bytes accessed include the memory inside the chip, and count an asynchronous
slice of an array as the whole array. The cycles do not include waiting for memory. The bytes of the main memory are
counted here, in the text of the program; see main_memory_bytes. The bound is the longer of two times: that of the
operations at the chip's peak, and that of these bytes at the rate of the main memory. "arithmetic" is the time of the
operations, divided by the bound. The body of a loop counts once, so the numbers of ten steps are about those of one.
"""

import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from absl import flags
from ml_collections import config_flags

from vamcei_jax import cli
from vamcei_jax.errors import InputError
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS
PROGRAMS = ("step", "all chips", "loop", "grid")
DTYPES = ("float32", "bfloat16")
LOOP = 10  # steps of the program "loop"
RUNS = 6  # of the program "grid"
SLICES = 400  # of each domain on a chip
# Operations a second in bfloat16, and bytes a second of the memory: cloud.google.com/tpu/docs/v5e and v6e.
CHIPS = {"v5e": (197e12, 819e9), "v6e": (918e12, 1640e9)}
SHAPES = ("1x1", "2x2", "2x4")  # of the chips of one host
COLLECTIVE = re.compile(
  r" = (\S+|\(.*?\)) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+))\[([\d,]*)\](?:\{([\d,]*)(?::(?:T\(([\d,]+)\))?([^}]*))?\})?")
COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) .*\{$")
INSTRUCTION = re.compile(r"^  (?:ROOT )?%(\S+) = (.*?) ([a-z-]+)\((.*?)\)(?:, |$)")
# They move nothing: they name arrays, or run computations whose instructions count.
UNMOVED = ("bitcast", "conditional", "constant", "get-tuple-element", "parameter", "tuple", "while")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    config_flags.DEFINE_config_file("config", None, "FILE: Configuration to compile. --config.FIELD=VALUE changes it.")
    flags.DEFINE_string("output", None, "FILE: For the numbers, ending in .json; the table goes beside it, as .md.")
  topologies = ", ".join(f"{kind}:{shape}" for kind in CHIPS for shape in SHAPES)
  flags.DEFINE_string("topology", "v5e:2x4", f"NAME: Kind and arrangement of the chips: {topologies}.")
  flags.DEFINE_list("stages", [], "NAME,NAME: Stages to compile. Default: all.")
  flags.DEFINE_list("programs", list(PROGRAMS), "NAME,NAME: Programs to compile.")
  flags.DEFINE_list("dtypes", list(DTYPES), "NAME,NAME: Types to compile.")


def main() -> None:
  """Runs the command."""
  for name, known in (("programs", PROGRAMS), ("dtypes", DTYPES)):
    if unknown := set(FLAGS[name].value) - set(known):
      raise InputError(f"--{name}={min(unknown)}: choose from {', '.join(known)}")
  output = cli.required_path("output")
  if output.suffix != ".json":
    raise InputError(f"--output={output}: must end in .json")
  from experiments.benchmark import format_rows
  from vamcei_jax.files import write_text

  chips, stages = describe_chips(FLAGS.topology), choose_stages(FLAGS.config, FLAGS.stages)
  peaks, rows = CHIPS[FLAGS.topology.partition(":")[0]], []
  content = {"config": str(cli.config_path()), "topology": FLAGS.topology, **versions()}
  for name, config in stages.items():
    for dtype in FLAGS.dtypes:
      for program in FLAGS.programs:
        if program != "grid" or name == "vamcei":
          row = {"stage": name, "type": dtype, "program": program}
          rows.append(row | compile_row(with_dtype(config, dtype), program, chips, peaks))
          print(json.dumps(rows[-1]), flush=True)
          write_text(output, json.dumps(content | {"rows": rows}, indent=2) + "\n")
          write_text(output.with_suffix(".md"), format_rows(rows))
  if not rows:
    raise InputError("nothing to compile: the program grid is of the stage vamcei alone")
  print(f"\n{format_rows(rows)}\nNumbers and table: {output.parent}")


def choose_stages(config: Any, chosen: Sequence[str]) -> Mapping[str, Any]:
  """Stage -> its configuration; only the chosen stages, unless none is.

  Raises:
    InputError: the configuration has no such stage.
  """
  from vamcei_jax.pipeline.resolve import resolve

  stages = resolve(config).stages
  if unknown := set(chosen) - set(stages):
    raise InputError(f"--stages={min(unknown)}: choose from {', '.join(stages)}")
  return {name: stage for name, stage in stages.items() if not chosen or name in chosen}


def with_dtype(config: Any, dtype: str) -> Any:
  """The configuration of a stage with another type of the computation."""
  return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))


def describe_chips(topology: str) -> Sequence[Any]:
  """The chips of a host, as devices for which JAX compiles.

  Args:
    topology: kind and arrangement, as "v5e:2x4".

  Raises:
    InputError: there is no such host, or the compiler is not installed or in use.
  """
  kind, _, shape = topology.partition(":")
  if kind not in CHIPS or shape not in SHAPES:
    raise InputError(f"--topology={topology}: must be {' or '.join(CHIPS)} with {', '.join(SHAPES)}, as v5e:2x4")
  # Without these, the compiler asks the cloud for its machine.
  for name, value in (("SKIP_MDS_QUERY", "1"), ("WORKER_HOSTNAMES", "localhost"), ("ACCELERATOR_TYPE", "v5litepod-8")):
    os.environ.setdefault(f"TPU_{name}", value)
  from jax.experimental import topologies

  try:
    return topologies.get_topology_desc(topology, "tpu", chips_per_host_bounds=(*map(int, shape.split("x")), 1)).devices
  except Exception as error:  # the compiler's errors have no common type
    reason = " ".join(str(error).split())[:160]
    way_out = "install the compiler by .venv/bin/python -m pip install -e '.[tpu]'; one program at a time can use it"
    raise InputError(f"--topology={topology}: cannot be compiled for ({reason}); {way_out}") from None


def versions() -> dict[str, str]:
  """Versions of JAX and the compiler, and the compiler's flags."""
  from importlib import metadata

  return {name: metadata.version(name) for name in ("jax", "libtpu")} | {"flags": os.environ["LIBTPU_INIT_ARGS"]}


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
  costs, memory, text = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
  moved = main_memory_bytes(text)
  arithmetic, traffic = costs["flops"] / peaks[0], moved / peaks[1]
  collectives = collective_bytes(text)
  return {
    "compile s": seconds,
    "TFLOP": costs["flops"] / 1e12,
    "GB accessed": costs["bytes accessed"] / 1e9,
    "GB main memory": moved / 1e9,
    "Mcycles": sum(map(int, CYCLES.findall(text))) / 1e6,
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

  from vamcei_jax.data.loader import make_draw
  from vamcei_jax.distributed import AXIS, over_devices, scan_steps
  from vamcei_jax.grid import grid_program
  from vamcei_jax.pipeline.stages import STAGES

  devices = chips if program == "all chips" else chips[:1]
  batch_size = len(devices) * config.train.batch_size
  config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=batch_size))
  method, (state, data, key) = STAGES[config.name].method, abstract_arguments(config)
  if program == "grid":
    stacked = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct((RUNS, *x.shape), x.dtype), tree)
    grid = grid_program(method.make_step(config), make_draw(config), devices, 1)
    return grid.lower(stacked(state), data, stacked(key))
  axis_name, count = AXIS if len(devices) > 1 else None, LOOP if program == "loop" else 1
  function = scan_steps(method.make_step(config, axis_name), make_draw(config), axis_name, count, streamed=False)
  jitted, leading = over_devices(function, devices, None, donated=True)
  arguments = (state, data, key)
  if len(devices) == 1:
    placed = partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(devices[0]))
    arguments = jax.tree.map(lambda x: placed(x.shape, x.dtype), arguments)
  return jitted.lower(*leading, *arguments)


def abstract_arguments(config: Any) -> tuple[Any, Any, Any]:
  """Shapes and types of the state of a stage, its data on the device, and its key."""
  import jax
  import jax.numpy as jnp

  from vamcei_jax.methods import distillation
  from vamcei_jax.pipeline.stages import STAGES

  method, key = STAGES[config.name].method, jax.eval_shape(lambda: jax.random.key(0))
  slices = partial(jax.ShapeDtypeStruct, (SLICES, *config.data.size))
  data = {"target": {"image": slices(jnp.float32)}}
  if config.data.source is not None:
    data["source"] = {"image": slices(jnp.float32), "label": slices(jnp.uint8)}
  if method is distillation:
    shape = (SLICES, *config.data.size, len(config.data.label_values))
    data["target"]["teacher"] = jax.ShapeDtypeStruct(shape, jnp.float16)
  return jax.eval_shape(partial(method.init_state, config), key), data, key


def collective_bytes(program: str) -> list[int]:
  """Bytes of the result of each collective in the text of a compiled program."""
  return [sum(count_bytes(array) for array in ARRAY.finditer(result)) for result in COLLECTIVE.findall(program)]


def main_memory_bytes(program: str) -> int:
  """Bytes that the instructions of a compiled program read from main memory and write to it, with padding.

  An instruction reads each of its operands once, and writes its results. Arrays in another memory space, S(1) inside
  the chip, do not count. Instructions within a fusion move nothing. An asynchronous slice counts as it is. A fusion
  that reads or changes a part of an array counts as the whole array, so the number can be too large. All branches of
  a conditional count.

  Args:
    program: the text of the program, after layouts and memory spaces are assigned.
  """
  inner = {*re.findall(r"(?:calls|to_apply|select|scatter)=%([^\s,}]+)", program)}
  types: dict[str, str] = {}
  moved, counted = 0, False
  for line in program.splitlines():
    if found := COMPUTATION.match(line):
      counted = found[1] not in inner
    elif counted and (found := INSTRUCTION.match(line)):
      name, result, operation, operands = found.groups()
      types[name] = result
      if operation == "slice-start":  # an array, of which a part is copied
        source, part, *_ = ARRAY.finditer(result)
        moved += count_bytes(part, padded=True) * (in_main_memory(source) + in_main_memory(part))
      elif operation.endswith("-start") and operation != "all-reduce-start":  # its result has its operands, too
        moved += sum(count_bytes(array, padded=True) for array in ARRAY.finditer(result) if in_main_memory(array))
      elif operation not in UNMOVED and not operation.endswith("-done"):
        read = [types[operand] for operand in re.findall(r"%([^\s,]+)", operands)]
        arrays = ARRAY.finditer(" ".join([result, *read]))
        moved += sum(count_bytes(array, padded=True) for array in arrays if in_main_memory(array))
  return moved


def in_main_memory(array: re.Match[str]) -> bool:
  """Whether an array of ARRAY is in memory space 0."""
  return "S(" not in (array[5] or "")


def count_bytes(array: re.Match[str], *, padded: bool = False) -> int:
  """Bytes of an array of ARRAY; with padding, its last axes, in the order of its layout, have whole tiles."""
  bits, shape, layout, tile = (text.split(",") if text else [] for text in array.group(1, 2, 3, 4))
  lengths = [int(shape[int(axis)]) for axis in layout] or [int(length) for length in shape]  # the fastest axis first
  for number, whole in enumerate(map(int, tile[::-1][: len(lengths)] if padded else [])):
    lengths[number] += -lengths[number] % whole
  return math.prod(lengths) * (int(bits[0]) // 8 if bits else 1)


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
