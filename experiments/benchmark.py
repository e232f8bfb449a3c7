"""How fast is it here? Steps, losses, dispatches, grids and devices of this machine, in one table.

python -m experiments.benchmark --output=experiments/results/NAME.json

Contenders take turns and medians are compared, so that what else the machine does falls on all of them. A turn is two
runs, of which the second counts: the first may wait for memory that another contender has left. With
--torch=eager, a PyTorch twin of the published step and a bare U-Net take their turns, too (extra `bench`). Operations
are counted by XLA in the program as it is written.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from vamcei_jax import command_line

SECTIONS = ("steps", "alignment", "dispatch", "grid", "devices")

_OUTPUT = flags.DEFINE_string("output", None, "Where the numbers go, as .json; the table goes beside them, as .md.")
_TORCH = flags.DEFINE_list("torch", [], "Also PyTorch's twins: eager, channels_last (eager, too) and compiled.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], "Of the published step: float32, bfloat16.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How many turns each contender has.", 1)
_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), f"Some of {', '.join(SECTIONS)}.")
flags.mark_flag_as_required("output")

Row = dict[str, object]
TWINS = {"eager": {}, "channels_last": {"channels_last": True}, "compiled": {"compile": True}}
STEPS = 50  # of a run, where whole runs are compared
VIRTUAL_DEVICES = 8  # that a CPU is divided into


def main() -> None:
  import jax

  from vamcei_jax.errors import InputError
  from vamcei_jax.files import write_text

  sections = {
    "steps": measure_steps,
    "alignment": measure_alignment,
    "dispatch": measure_dispatch,
    "grid": measure_grid,
    "devices": measure_devices,
  }
  if unknown := set(_SECTIONS.value) - set(sections):
    raise InputError(f"--sections={min(unknown)}: choose from {', '.join(SECTIONS)}")
  if unknown := set(_TORCH.value) - set(TWINS):
    raise InputError(f"--torch={min(unknown)}: choose from {', '.join(TWINS)}")
  if _TORCH.value:
    try:
      import torch  # noqa: F401
    except ImportError:
      raise InputError("PyTorch is not installed: .venv/bin/python -m pip install -e '.[bench]'") from None
  jax.config.update("jax_enable_compilation_cache", False)  # what has been compiled before would take no time
  output, rows = Path(_OUTPUT.value), []
  for section in _SECTIONS.value:
    for row in sections[section](_ROUNDS.value):
      rows.append({"section": section, **row})
      print(json.dumps(rows[-1]), flush=True)
  write_text(output, json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
  write_text(output.with_suffix(".md"), format_rows(rows))
  print(f"\n{format_rows(rows)}\nNumbers and table: {output.parent}")


def measure_steps(rounds: int) -> Iterator[Row]:
  """The whole VAMCEI step of the demo and of the published config, and the bare published U-Net; and their twins."""
  peaks = {dtype: matmul_peak(dtype) for dtype in ("float32", *_DTYPES.value)}
  for dtype, peak in peaks.items():
    yield {"what": f"matrix product, {dtype}", "by": "JAX", "GFLOP/s": peak / 1e9}
  for name, dtypes in (("demo", ["float32"]), ("published", _DTYPES.value)):
    for dtype in dtypes:
      config = step_config(name, dtype)
      step, facts = jax_step(config)
      twins = torch_steps(config) if _TORCH.value else {}
      yield from compared(f"step, {name}, {dtype}", {"JAX": step} | twins, facts, config, rounds, peaks[dtype])
  for dtype in _DTYPES.value:
    config = step_config("published", dtype)
    step, facts = jax_unet(config)
    twins = torch_unets(config) if _TORCH.value else {}
    yield from compared(f"bare U-Net, published, {dtype}", {"JAX": step} | twins, facts, config, rounds, peaks[dtype])


def compared(
  what: str, contenders: Mapping[str, Callable], facts: Row, config: ConfigDict, rounds: int, peak: float
) -> Iterator[Row]:
  """A row a contender: the median, how many times JAX's it is, and what is known of JAX's program."""
  medians = interleave(contenders, rounds)
  for name, seconds in medians.items():
    yield {"what": what, "by": name, "ms": 1e3 * seconds, "images/s": 2 * config.train.batch_size / seconds} | (
      {
        "GFLOP/s": facts["flops"] / seconds / 1e9,
        "of the peak": facts["flops"] / seconds / peak,
        "compile s": facts["compile s"],
        "memory MB": facts["memory MB"],
      }
      if name == "JAX"
      else {"times JAX": seconds / medians["JAX"]}
    )


def interleave(contenders: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
  """Median seconds of each contender. They take turns of two runs, of which the second counts."""
  seconds = {name: [] for name in contenders}
  for _ in range(rounds):
    for name, run in contenders.items():
      run()
      started = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - started)
  return {name: statistics.median(own) for name, own in seconds.items()}


def step_config(name: str, dtype: str = "float32") -> ConfigDict:
  """The configuration of the stage vamcei: "demo" or "published"."""
  from configs import uda, vamcei_paper
  from vamcei_jax.stages import stage_configs

  config = {"demo": uda, "published": vamcei_paper}[name].get_config()
  config.model.dtype = dtype
  return stage_configs(config)["vamcei"]


def random_slices(config: ConfigDict, count: int = 32) -> dict:
  """As many slices a domain as `count`, of noise."""
  import numpy as np

  rng, size = np.random.default_rng(0), (count, *config.data.size)
  image = lambda: rng.uniform(size=size).astype(np.float32)
  label = rng.integers(0, len(config.data.label_values), size).astype(np.uint8)
  return {"source": {"image": image(), "label": label}, "target": {"image": image()}}


def random_batch(config: ConfigDict) -> dict:
  """A batch of noise, as a step takes it."""
  import jax

  from vamcei_jax.data.loader import draw_batch

  draw = partial(draw_batch, batch_size=config.train.batch_size, crop=config.data.crop, strengths=config.augment)
  return jax.jit(lambda data: draw(data, jax.random.key(0), 0))(random_slices(config))


def jax_step(config: ConfigDict) -> tuple[Callable, Row]:
  """run() makes one VAMCEI step; and what is known of the program."""
  import jax

  from vamcei_jax.methods import vamcei

  held, batch = [jax.jit(lambda: vamcei.init_state(config, jax.random.key(0)))()], random_batch(config)
  donated = () if jax.default_backend() == "cpu" else 0  # as parallel.py has it
  compiled, facts = compile_timed(jax.jit(vamcei.make_step(config), donate_argnums=donated).lower(held[0], batch))

  def run() -> None:
    held[0], _ = compiled(held[0], batch)
    jax.block_until_ready(held[0])

  run()
  return run, facts


def jax_unet(config: ConfigDict) -> tuple[Callable, Row]:
  """run() makes a forward and a backward pass of the plain U-Net; and what is known of the program."""
  import jax
  import jax.numpy as jnp

  from vamcei_jax.methods.distillation import make_student

  unet, batch = make_student(config), random_batch(config)
  images = jnp.concatenate([batch["source"]["image"], batch["target"]["image"]])
  params = jax.jit(unet.init)(jax.random.key(0), images[:1])
  loss = lambda params, images: (unet.apply(params, images) ** 2).mean()
  compiled, facts = compile_timed(jax.jit(jax.value_and_grad(loss)).lower(params, images))
  run = lambda: jax.block_until_ready(compiled(params, images))
  run()
  return run, facts


def compile_timed(lowered) -> tuple[Callable, Row]:
  """The program, compiled as parallel.py does; the time that took, its operations, and the memory it has at once."""
  import jax

  from vamcei_jax import parallel

  started = time.perf_counter()
  compiled = lowered.compile(compiler_options=parallel.compiler_options(jax.devices()))
  seconds = time.perf_counter() - started
  needs = compiled.memory_analysis()
  memory = needs.temp_size_in_bytes + needs.argument_size_in_bytes + needs.output_size_in_bytes
  memory -= needs.alias_size_in_bytes
  return compiled, {"compile s": seconds, "memory MB": memory / 1e6, "flops": lowered.cost_analysis()["flops"]}


def matmul_peak(dtype: str, size: int = 4096) -> float:
  """Operations a second of a large matrix product, the best of five: what the machine can give."""
  import jax
  import jax.numpy as jnp

  a, product = jnp.ones((size, size), dtype), jax.jit(lambda a: a @ a)
  run = lambda: jax.block_until_ready(product(a))
  run()
  return 2 * size**3 / min(interleave({"": run}, 1)[""] for _ in range(5))


def torch_steps(config: ConfigDict) -> dict[str, Callable]:
  """The twin's step, by name of the way it is run."""
  import numpy as np
  import torch

  from experiments.torch_twin import make_twin

  batch, device = random_batch(config), torch_device()
  images = [torch_images(batch[domain]["image"], device) for domain in ("source", "target")]
  labels = torch.tensor(np.asarray(batch["source"]["label"], np.int64), device=device)
  step = lambda twin: torch_run(lambda: twin(images[0], labels, images[1]))
  return {f"PyTorch, {name}": step(make_twin(config, device, **TWINS[name])) for name in _TORCH.value}


def torch_unets(config: ConfigDict) -> dict[str, Callable]:
  """PyTorch's plain U-Net, by name of the way it is run."""
  import numpy as np

  from experiments.torch_twin import make_bare_unet

  batch, device = random_batch(config), torch_device()
  images = torch_images(np.concatenate([batch["source"]["image"], batch["target"]["image"]]), device)
  step = lambda unet: torch_run(lambda: unet(images))
  return {f"PyTorch, {name}": step(make_bare_unet(config, device, **TWINS[name])) for name in _TORCH.value}


def torch_device() -> str:
  """Where PyTorch computes."""
  import torch

  torch.backends.cudnn.benchmark = True
  return "cuda" if torch.cuda.is_available() else "cpu"


def torch_images(values, device: str):
  """(B, H, W, 1) -> (B, 1, H, W) in PyTorch."""
  import numpy as np
  import torch

  return torch.tensor(np.moveaxis(np.asarray(values), -1, 1).copy(), device=device)


def torch_run(function: Callable) -> Callable:
  """run() calls a function and waits for the device. It has been called twice, compiled if that is to be."""
  import torch

  def run() -> None:
    function()
    if torch.cuda.is_available():
      torch.cuda.synchronize()

  run()
  run()
  return run


def measure_alignment(rounds: int) -> Iterator[Row]:
  """Eqs. 5-8 (pairwise) and their gradient on M + M images: from the matrix of all pairs, and in linear time."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vamcei_jax.losses import global_alignment, pairwise_gaussian_kl

  def by_matrix(mu_s, logvar_s, mu_t, logvar_t):
    there = pairwise_gaussian_kl(mu_s, logvar_s, mu_t, logvar_t)
    return there.mean() + pairwise_gaussian_kl(mu_t, logvar_t, mu_s, logvar_s).mean()

  losses = {"matrix": by_matrix, "linear": partial(global_alignment, estimator="pairwise")}
  dims, rng = 40 * 40 * 16, np.random.default_rng(0)
  for images in (4, 16, 64, 256):
    latents = [jnp.asarray(0.3 * rng.normal(size=(images, dims)), jnp.float32) for _ in range(4)]
    programs = {
      name: jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3))).lower(*latents).compile()
      for name, loss in losses.items()
    }
    contenders = {name: partial(call_and_wait, program, latents) for name, program in programs.items()}
    medians = interleave(contenders, rounds)
    for name, seconds in medians.items():
      memory = programs[name].memory_analysis().temp_size_in_bytes / 1e6
      row = {"what": f"alignment, M = {images}", "by": name, "ms": 1e3 * seconds, "memory MB": memory}
      yield row | ({"times linear": seconds / medians["linear"]} if name == "matrix" else {})


def call_and_wait(program: Callable, arguments: Sequence) -> None:
  """Calls a program and waits for what it returns."""
  import jax

  jax.block_until_ready(program(*arguments))


def measure_dispatch(rounds: int) -> Iterator[Row]:
  """The demo's steps, with data on the device, by their number in a dispatch; and the share of the programs."""
  import jax

  from vamcei_jax import parallel

  config, devices = step_config("demo"), jax.devices()[:1]
  lengths = sorted({parallel.steps_in_dispatch(length, devices) for length in (1, 10, STEPS)})
  runs = {length: training_run(config, devices, length) for length in lengths}
  for length, seconds in interleave(runs, rounds).items():
    row = {"what": f"step, demo, with its batch, {length} in a dispatch", "by": "JAX", "ms": 1e3 * seconds / STEPS}
    yield row | {"in the program": busy_share(runs[length])}


def training_run(config: ConfigDict, devices: Sequence, length: int) -> Callable:
  """run() trains STEPS steps, `length` to a dispatch, and waits for the last one. It has run before."""
  import jax

  from vamcei_jax import parallel
  from vamcei_jax.data.loader import draw_batch
  from vamcei_jax.methods import vamcei

  make_step = partial(vamcei.make_step, config)
  draw = partial(draw_batch, batch_size=config.train.batch_size, crop=config.data.crop, strengths=config.augment)
  advance = parallel.compile_steps(make_step, draw, devices, streamed=False)
  held = [parallel.replicate(jax.jit(lambda: vamcei.init_state(config, jax.random.key(0)))(), devices)]
  data, key = parallel.replicate(random_slices(config), devices), jax.random.key(1)

  def run() -> None:
    for _ in range(STEPS // length):
      held[0], _ = advance(held[0], data, key, length)
    jax.block_until_ready(held[0])

  run()
  return run


def busy_share(run: Callable) -> float:
  """The share of a run's time in which a program is under way, waits within it included; by JAX's profiler."""
  import jax

  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # tracing every call of Python takes time itself
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      started = time.perf_counter()
      run()
      seconds = time.perf_counter() - started
    (path,) = Path(folder).rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(path))
  spans = sorted(
    (event.start_ns, event.start_ns + event.duration_ns)
    for plane in profile.planes
    for line in plane.lines
    for event in line.events
    # XLA's interpreter on the CPU, which has operations that it does not tell; elsewhere the operations.
    if event.name.startswith("ThunkExecutor::Execute") or any(name == "hlo_op" for name, _ in event.stats)
  )
  busy, end = 0.0, 0.0
  for start, stop in spans:  # threads overlap
    busy, end = busy + max(0.0, stop - max(start, end)), max(end, stop)
  return busy / 1e9 / seconds


def measure_grid(rounds: int) -> Iterator[Row]:
  """The demo's ablation, six rows and two seeds, as one program; against the same runs one by one."""
  import jax
  import jax.numpy as jnp

  from configs import ablation
  from experiments.ablation_grid import STAGE, run_config
  from vamcei_jax import parallel
  from vamcei_jax.data.loader import draw_batch
  from vamcei_jax.methods import vamcei
  from vamcei_jax.methods.state import loss_weights
  from vamcei_jax.stages import stage_configs

  config, steps, devices = ablation.get_config(), 5, jax.devices()[:1]
  own = stage_configs(config)[STAGE]
  runs = [run_config(own, row, seed) for row, _ in config.grid.rows for seed in config.grid.seeds]
  begin = jax.jit(partial(vamcei.init_state, own))
  init = lambda: [begin(jax.random.key(run.seed)).replace(weights=loss_weights(run)) for run in runs]
  keys = jnp.stack([jax.random.key(run.seed) for run in runs])
  data, mapped = parallel.replicate(random_slices(own), devices), parallel.maps_grids(devices)
  step = vamcei.make_step(own)
  draw = partial(draw_batch, batch_size=own.train.batch_size, crop=own.data.crop, strengths=own.augment)
  grid = parallel.compile_grid(step, draw, devices, mapped=mapped)
  alone = parallel.compile_steps(lambda axis_name: step, draw, devices, streamed=False)
  held = {"grid": parallel.make_grid(init(), devices, mapped=mapped), "one by one": init()}

  def run_grid() -> None:
    held["grid"], _ = grid(held["grid"], data, keys, steps)

  def run_alone() -> None:
    for number, key in enumerate(keys):
      held["one by one"][number], metrics = alone(held["one by one"][number], data, key, steps)
      jax.device_get(metrics)

  contenders = {"grid": run_grid, "one by one": run_alone}
  medians = interleave(contenders, rounds)
  for name, seconds in medians.items():
    row = {"what": f"{len(runs)} runs of the demo, a step of each", "by": name, "ms": 1e3 * seconds / steps}
    yield row | ({"times one by one": seconds / medians["one by one"]} if name == "grid" else {})


def measure_devices(rounds: int) -> Iterator[Row]:
  """The demo's step on 1, 2, 4, … devices, the batch split over them; a CPU is divided into virtual ones."""
  import jax

  if jax.default_backend() == "cpu" and jax.device_count() < VIRTUAL_DEVICES:
    # Under pmap the kernels are XLA's choice: here it is made for all of them, as parallel.py makes it for one device.
    kernels = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
    virtual = f"--xla_force_host_platform_device_count={VIRTUAL_DEVICES}"
    yield from measure_in_process("devices", f"{virtual} {kernels}", rounds)
    return
  config, counts = step_config("demo"), [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
  runs = {count: training_run(config, jax.devices()[:count], STEPS) for count in counts}
  kind = "virtual CPUs" if jax.default_backend() == "cpu" else "devices"
  medians = interleave(runs, rounds)
  for count, seconds in medians.items():
    row = {"what": f"step, demo, with its batch, {kind}: {count}", "by": "JAX", "ms": 1e3 * seconds / STEPS}
    yield row | {"times one": seconds / medians[1]}


def measure_in_process(section: str, xla_flags: str, rounds: int) -> Iterator[Row]:
  """The rows of a section that needs other flags of XLA, which are read once."""
  with tempfile.TemporaryDirectory() as folder:
    output = Path(folder) / "rows.json"
    arguments = [f"--output={output}", f"--sections={section}", f"--rounds={rounds}"]
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}"}
    command = [sys.executable, "-m", "experiments.benchmark", *arguments]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    for row in json.loads(output.read_text(encoding="utf-8"))["rows"]:
      yield {name: value for name, value in row.items() if name != "section"}


def machine() -> Row:
  """What the numbers were measured on, and with."""
  from vamcei_jax.provenance import session

  torch = {"torch": metadata.version("torch")} if _TORCH.value else {}
  return {"date": time.strftime("%Y-%m-%d"), **session(), **torch}


def format_rows(rows: Sequence[Row]) -> str:
  """Rows as a Markdown table: what, by whom, and all that was measured of any."""
  columns = list(dict.fromkeys(name for row in rows for name in row if name != "section"))
  cell = lambda value: f"{value:.3g}" if isinstance(value, float) else str(value)
  large = lambda value: f"{value:.0f}" if isinstance(value, float) and value >= 100 else cell(value)
  lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
  lines += ["| " + " | ".join(large(row.get(name, "")) for name in columns) + " |" for row in rows]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  command_line.run(main)
