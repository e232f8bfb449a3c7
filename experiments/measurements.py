"""What the benchmark measures: a generator of rows for each section; the command line is benchmark.py."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import ablation, uda, vamcei_paper
from experiments.grid_training import STAGE, grid_runs, make_program, run_keys
from vamcei_jax import distributed
from vamcei_jax.config.schema import StageConfig
from vamcei_jax.data.loader import make_draw
from vamcei_jax.errors import InputError
from vamcei_jax.grid import make_grid
from vamcei_jax.losses import global_alignment, pairwise_gaussian_kl
from vamcei_jax.methods import vamcei
from vamcei_jax.methods.distillation import make_student
from vamcei_jax.pipeline.record import session
from vamcei_jax.pipeline.resolve import resolve

Row = dict[str, object]
Runs = dict[str, Callable[[], None]]  # contender -> run()
TWINS = {"eager": {}, "channels_last": {"channels_last": True}, "compiled": {"compile": True}}
STEPS = 50  # of a training, where whole trainings are compared
GRID_STEPS = 5  # of each run of a grid
OPERATIONS = 20  # that a profile lists
INTERPRETER = "ThunkExecutor::Execute"  # of XLA for CPUs
VIRTUAL_DEVICES = 8  # into which a CPU is divided


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the benchmark.

  rounds: turns of each contender.
  dtypes: of the published step.
  torch: keys of TWINS.
  """

  rounds: int = 5
  dtypes: tuple[str, ...] = ("float32",)
  torch: tuple[str, ...] = ()


def measure(sections: Sequence[str], settings: Settings) -> Iterator[Row]:
  """The rows of some sections, each with the name of its section.

  Raises:
    InputError: PyTorch is to be measured and is not installed.
  """
  if settings.torch:
    try:
      import torch  # noqa: F401
    except ImportError:
      raise InputError("PyTorch is not installed: .venv/bin/python -m pip install -e '.[bench]'") from None
  jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache takes no time to compile
  for section in sections:
    for row in SECTIONS[section](settings):
      yield {"section": section, **row}


def machine(settings: Settings) -> Row:
  """The date, and the hardware and software of the measurements."""
  torch = {"torch": metadata.version("torch")} if settings.torch else {}
  tunables = os.environ.get("GLIBC_TUNABLES", "")
  return {"date": time.strftime("%Y-%m-%d"), **session(), "glibc_tunables": tunables, **torch}


def measure_steps(settings: Settings) -> Iterator[Row]:
  """VAMCEI's step of the demo and of the published size, and a plain U-Net of that size; and their twins."""
  peaks = {dtype: matmul_peak(dtype) for dtype in ("float32", *settings.dtypes)}
  for dtype, peak in peaks.items():
    yield {"what": f"matrix product, {dtype}", "by": "JAX", "GFLOP/s": peak / 1e9}
  for name, dtypes in (("demo", ("float32",)), ("published", settings.dtypes)):
    for dtype in dtypes:
      config = step_config(name, dtype)
      run, facts = jax_step(config)
      runs = {"JAX": run} | torch_steps(config, settings.torch)
      yield from compare(f"step, {name}, {dtype}", runs, facts, config, settings.rounds, peaks[dtype])
  for dtype in settings.dtypes:
    config = step_config("published", dtype)
    run, facts = jax_unet(config)
    runs = {"JAX": run} | torch_unets(config, settings.torch)
    yield from compare(f"bare U-Net, published, {dtype}", runs, facts, config, settings.rounds, peaks[dtype])


def compare(
  what: str, runs: Runs, facts: Mapping[str, float], config: StageConfig, rounds: int, peak: float
) -> Iterator[Row]:
  """A row for each contender: its median and, for JAX's program, the facts of compile_timed.

  Args:
    what: first column of the rows.
    runs: contenders, "JAX" among them.
    facts: of compile_timed.
    config: of the stage.
    rounds: turns of each contender.
    peak: of matmul_peak.
  """
  medians = interleave(runs, rounds)
  for name, seconds in medians.items():
    row = {"what": what, "by": name, "ms": 1e3 * seconds, "images/s": 2 * config.train.batch_size / seconds}
    if name == "JAX":
      rate = facts["flops"] / seconds
      row |= {"GFLOP/s": rate / 1e9, "of the peak": rate / peak}
      row |= {"compile s": facts["compile s"], "memory MB": facts["memory MB"]}
    else:
      row["times JAX"] = seconds / medians["JAX"]
    yield row


def interleave(runs: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
  """Median seconds of each contender. They take turns of two runs, of which the second counts."""
  seconds = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      run()
      started = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - started)
  return {name: statistics.median(values) for name, values in seconds.items()}


def step_config(name: str, dtype: str = "float32") -> StageConfig:
  """The configuration of the stage vamcei: "demo" is configs/uda.py, "published" is configs/vamcei_paper.py."""
  config = {"demo": uda, "published": vamcei_paper}[name].get_config()
  config.model.dtype = dtype
  return resolve(config).stages[STAGE]


def random_slices(config: StageConfig, count: int = 32) -> dict[str, dict[str, np.ndarray]]:
  """Domain -> `count` slices of noise."""
  rng, shape = np.random.default_rng(0), (count, *config.data.size)
  image = lambda: rng.uniform(size=shape).astype(np.float32)
  label = rng.integers(0, len(config.data.label_values), shape).astype(np.uint8)
  return {"source": {"image": image(), "label": label}, "target": {"image": image()}}


def random_batch(config: StageConfig) -> dict:
  """A batch of noise."""
  draw = make_draw(config)
  return jax.jit(lambda data: draw(data, jax.random.key(0), 0))(random_slices(config))


def jax_step(config: StageConfig) -> tuple[Callable[[], None], Mapping[str, float]]:
  """run(), which makes one VAMCEI step, and the facts of compile_timed."""
  state, batch = jax.jit(lambda: vamcei.init_state(config, jax.random.key(0)))(), random_batch(config)
  donated = () if jax.default_backend() == "cpu" else 0  # as distributed.compile_steps does
  compiled, facts = compile_timed(jax.jit(vamcei.make_step(config), donate_argnums=donated).lower(state, batch))

  def run() -> None:
    nonlocal state
    state, _ = compiled(state, batch)
    jax.block_until_ready(state)

  run()
  return run, facts


def jax_unet(config: StageConfig) -> tuple[Callable[[], None], Mapping[str, float]]:
  """run(), which makes a forward and a backward pass of the plain U-Net, and the facts of compile_timed."""
  unet, batch = make_student(config), random_batch(config)
  images = jnp.concatenate([batch["source"]["image"], batch["target"]["image"]])
  params = jax.jit(unet.init)(jax.random.key(0), images[:1])
  loss = lambda params, images: (unet.apply(params, images) ** 2).mean()
  compiled, facts = compile_timed(jax.jit(jax.value_and_grad(loss)).lower(params, images))
  run = partial(call_and_wait, compiled, (params, images))
  run()
  return run, facts


def call_and_wait(program: Callable, arguments: Sequence) -> None:
  """Calls a program and waits for its results."""
  jax.block_until_ready(program(*arguments))


def compile_timed(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, Mapping[str, float]]:
  """Compiles a program with the options of distributed.py.

  Returns:
    The program; and "compile s", the seconds of the compilation, "memory MB", the memory that it occupies at once, and
    "flops", its operations.
  """
  started = time.perf_counter()
  compiled = lowered.compile(compiler_options=distributed.compiler_options(jax.devices()))
  seconds = time.perf_counter() - started
  needs = compiled.memory_analysis()
  memory = needs.temp_size_in_bytes + needs.argument_size_in_bytes + needs.output_size_in_bytes
  memory -= needs.alias_size_in_bytes
  return compiled, {"compile s": seconds, "memory MB": memory / 1e6, "flops": lowered.cost_analysis()["flops"]}


def matmul_peak(dtype: str, size: int = 4096) -> float:
  """Operations a second of a large matrix product, the best of five runs."""
  a, product = jnp.ones((size, size), dtype), jax.jit(lambda a: a @ a)
  run = partial(call_and_wait, product, (a,))
  run()
  return 2 * size**3 / min(interleave({"product": run}, 1)["product"] for _ in range(5))


def torch_steps(config: StageConfig, twins: Sequence[str]) -> Runs:
  """The steps of the PyTorch twins, keys of TWINS."""
  if not twins:
    return {}
  import torch

  from experiments.torch_twin import make_twin

  batch, device = random_batch(config), torch_device()
  images = [torch_images(batch[domain]["image"], device) for domain in ("source", "target")]
  labels = torch.tensor(np.asarray(batch["source"]["label"], np.int64), device=device)
  step = lambda twin: torch_run(lambda: twin(images[0], labels, images[1]))
  return {f"PyTorch, {name}": step(make_twin(config, device, **TWINS[name])) for name in twins}


def torch_unets(config: StageConfig, twins: Sequence[str]) -> Runs:
  """Forward and backward passes of PyTorch's plain U-Net, run as the twins, keys of TWINS."""
  if not twins:
    return {}
  from experiments.torch_twin import make_bare_unet

  batch, device = random_batch(config), torch_device()
  images = torch_images(np.concatenate([batch["source"]["image"], batch["target"]["image"]]), device)
  step = lambda unet: torch_run(lambda: unet(images))
  return {f"PyTorch, {name}": step(make_bare_unet(config, device, **TWINS[name])) for name in twins}


def torch_device() -> str:
  """The device that PyTorch computes on."""
  import torch

  torch.backends.cudnn.benchmark = True
  return "cuda" if torch.cuda.is_available() else "cpu"


def torch_images(values, device: str):
  """An array (B, H, W, 1) as a tensor (B, 1, H, W) on a device of PyTorch."""
  import torch

  return torch.tensor(np.moveaxis(np.asarray(values), -1, 1).copy(), device=device)


def torch_run(function: Callable[[], object]) -> Callable[[], None]:
  """run(), which calls a function and waits for the device. It was called twice, so that it is compiled."""
  import torch

  def run() -> None:
    function()
    if torch.cuda.is_available():
      torch.cuda.synchronize()

  run()
  run()
  return run


def measure_alignment(settings: Settings) -> Iterator[Row]:
  """Eqs. 5-8 (pairwise) and their gradient on M + M images: by the matrix of all pairs, and in linear time."""

  def by_matrix(mu_s, logvar_s, mu_t, logvar_t):
    st = pairwise_gaussian_kl(mu_s, logvar_s, mu_t, logvar_t)
    ts = pairwise_gaussian_kl(mu_t, logvar_t, mu_s, logvar_s)
    return st.mean() + ts.mean()

  losses = {"matrix": by_matrix, "linear": partial(global_alignment, estimator="pairwise")}
  dims, rng = 40 * 40 * 16, np.random.default_rng(0)
  for images in (4, 16, 64, 256):
    latents = [jnp.asarray(0.3 * rng.normal(size=(images, dims)), jnp.float32) for _ in range(4)]
    gradient = lambda loss: jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))
    programs = {name: gradient(loss).lower(*latents).compile() for name, loss in losses.items()}
    runs = {name: partial(call_and_wait, program, latents) for name, program in programs.items()}
    medians = interleave(runs, settings.rounds)
    for name, seconds in medians.items():
      memory = programs[name].memory_analysis().temp_size_in_bytes / 1e6
      row = {"what": f"alignment, M = {images}", "by": name, "ms": 1e3 * seconds, "memory MB": memory}
      yield row | ({"times linear": seconds / medians["linear"]} if name == "matrix" else {})


def measure_dispatch(settings: Settings) -> Iterator[Row]:
  """The demo's step by the number of steps in a dispatch, and the share of time in which the program runs."""
  config, devices = step_config("demo"), jax.devices()[:1]
  lengths = sorted({distributed.steps_in_dispatch(length, devices) for length in (1, 10, STEPS)})
  runs = {length: training_run(config, devices, length) for length in lengths}
  for length, seconds in interleave(runs, settings.rounds).items():
    row = {"what": f"step, demo, with its batch, {length} in a dispatch", "by": "JAX", "ms": 1e3 * seconds / STEPS}
    yield row | {"in the program": busy_share(runs[length])}


def training_run(config: StageConfig, devices: distributed.Devices, length: int) -> Callable[[], None]:
  """run(), which trains STEPS steps, `length` in a dispatch, and waits for the last one. It was called once."""
  make_step = partial(vamcei.make_step, config)
  advance = distributed.compile_steps(make_step, make_draw(config), devices, streamed=False)
  state = distributed.replicate(jax.jit(lambda: vamcei.init_state(config, jax.random.key(0)))(), devices)
  data, key = distributed.replicate(random_slices(config), devices), jax.random.key(1)

  def run() -> None:
    nonlocal state
    for _ in range(STEPS // length):
      state, _ = advance(state, data, key, length)
    jax.block_until_ready(state)

  run()
  return run


def measure_profile(settings: Settings) -> Iterator[Row]:
  """The operations of the published step that take most time, by JAX's profiler."""
  for dtype in settings.dtypes:
    run, _ = jax_step(step_config("published", dtype))
    profile, _ = traced(run)
    milliseconds: Counter[str] = Counter()
    for event in program_events(profile):
      if not event.name.startswith(INTERPRETER):
        milliseconds[event.name] += event.duration_ns / 1e6
    for name, duration in milliseconds.most_common(OPERATIONS):
      yield {"what": f"step, published, {dtype}: {name}", "by": "JAX", "ms": duration}


def busy_share(run: Callable[[], None]) -> float:
  """The share of a run's time in which a program is under way, by JAX's profiler; waiting in the program counts."""
  profile, seconds = traced(run)
  spans = [(event.start_ns, event.start_ns + event.duration_ns) for event in program_events(profile)]
  return covered_time(spans) / 1e9 / seconds


def traced(run: Callable[[], None]) -> tuple[jax.profiler.ProfileData, float]:
  """The profile of a run, and its seconds."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # tracing the calls of Python would take time itself
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      started = time.perf_counter()
      run()
      seconds = time.perf_counter() - started
    (path,) = Path(folder).rglob("*.xplane.pb")
    return jax.profiler.ProfileData.from_file(str(path)), seconds


def program_events(profile: jax.profiler.ProfileData) -> Iterator[jax.profiler.ProfileEvent]:
  """The events of a profile that belong to programs."""

  def in_program(event: jax.profiler.ProfileEvent) -> bool:
    # On the CPU, the interpreter, too: some of its operations have no event.
    return event.name.startswith(INTERPRETER) or any(name == "hlo_op" for name, _ in event.stats)

  events = (event for plane in profile.planes for line in plane.lines for event in line.events)
  return filter(in_program, events)


def covered_time(spans: Sequence[tuple[float, float]]) -> float:
  """The length of the union of spans (start, end), which may overlap."""
  total, end = 0.0, float("-inf")
  for start, stop in sorted(spans):
    total, end = total + max(0.0, stop - max(start, end)), max(end, stop)
  return total


def measure_grid(settings: Settings) -> Iterator[Row]:
  """The demo's ablation, six rows and two seeds, as one program, and the same runs one by one."""
  resolved, devices = resolve(ablation.get_config()), jax.devices()[:1]
  config, runs = resolved.stages[STAGE], grid_runs(resolved.grid)
  program = make_program(config, resolved.grid, random_slices(config), devices)
  alone = distributed.compile_steps(
    lambda axis_name: vamcei.make_step(config), make_draw(config), devices, streamed=False
  )
  initial = lambda: [program.init(run) for run in runs]
  keys = jnp.stack([run_keys(run)[0] for run in runs])
  grid, states = make_grid(initial(), devices, mapped=program.mapped), initial()

  def run_grid() -> None:
    nonlocal grid
    grid, _ = program.advance(grid, program.data, keys, GRID_STEPS)

  def run_alone() -> None:
    for number, key in enumerate(keys):
      states[number], metrics = alone(states[number], program.data, key, GRID_STEPS)
      jax.device_get(metrics)

  medians = interleave({"grid": run_grid, "one by one": run_alone}, settings.rounds)
  for name, seconds in medians.items():
    row = {"what": f"{len(runs)} runs of the demo, a step of each", "by": name, "ms": 1e3 * seconds / GRID_STEPS}
    yield row | ({"times one by one": seconds / medians["one by one"]} if name == "grid" else {})


def measure_devices(settings: Settings) -> Iterator[Row]:
  """The demo's step on 1, 2, 4, … devices, the batch split over them; a CPU is divided into virtual devices."""
  on_cpu = jax.default_backend() == "cpu"
  if on_cpu and jax.device_count() < VIRTUAL_DEVICES:
    # Under pmap XLA chooses the kernels; here all of them get those that distributed.py chooses for one device.
    kernels = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
    virtual = f"--xla_force_host_platform_device_count={VIRTUAL_DEVICES}"
    yield from measure_in_process("devices", f"{virtual} {kernels}", settings)
    return
  config, counts = step_config("demo"), [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
  runs = {count: training_run(config, jax.devices()[:count], STEPS) for count in counts}
  kind = "virtual CPUs" if on_cpu else "devices"
  medians = interleave(runs, settings.rounds)
  for count, seconds in medians.items():
    row = {"what": f"step, demo, with its batch, {kind}: {count}", "by": "JAX", "ms": 1e3 * seconds / STEPS}
    yield row | {"times one": seconds / medians[1]}


def measure_in_process(section: str, xla_flags: str, settings: Settings) -> Iterator[Row]:
  """The rows of a section that needs other flags of XLA, which a process reads once."""
  with tempfile.TemporaryDirectory() as folder:
    output = Path(folder) / "rows.json"
    arguments = [f"--output={output}", f"--sections={section}", f"--rounds={settings.rounds}"]
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}"}
    command = [sys.executable, "-m", "experiments.benchmark", *arguments]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    for row in json.loads(output.read_text(encoding="utf-8"))["rows"]:
      yield {name: value for name, value in row.items() if name != "section"}


SECTIONS = {
  "steps": measure_steps,
  "alignment": measure_alignment,
  "dispatch": measure_dispatch,
  "grid": measure_grid,
  "devices": measure_devices,
  "profile": measure_profile,
}
