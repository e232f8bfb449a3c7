"""How fast is it here? Steps, losses, grids and dispatches, on this machine, in one table.

python -m experiments.benchmark --output=experiments/results/NAME.json

Contenders take turns and medians are compared, so that what else the machine does falls on all of them. With --torch,
the PyTorch twin of the published step and a bare U-Net run in the same rounds (`pip install -e '.[bench]'`). Counts of
floating-point operations are XLA's, of the program before it is optimised.
"""

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from absl import flags

from vamcei_jax import command_line

SECTIONS = ("steps", "alignment", "dispatch", "grid", "devices")

_OUTPUT = flags.DEFINE_string("output", None, "Where the numbers go, as JSON; the table, as Markdown, goes beside them.")
_TORCH = flags.DEFINE_bool("torch", False, "Also the PyTorch twin, where PyTorch is installed.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], "Of the published step: float32, bfloat16.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each contender runs.", 1)
_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), f"Some of {', '.join(SECTIONS)}.")
flags.mark_flag_as_required("output")

Row = dict[str, object]


def main() -> None:
  import jax

  from vamcei_jax.errors import InputError
  from vamcei_jax.files import write_text

  if unknown := set(_SECTIONS.value) - set(SECTIONS):
    raise InputError(f"--sections={min(unknown)}: choose from {', '.join(SECTIONS)}")
  if _TORCH.value:
    try:
      import torch  # noqa: F401
    except ImportError:
      raise InputError("PyTorch is not installed: .venv/bin/python -m pip install -e '.[bench]'") from None
  measure = {
    "steps": measure_steps, "alignment": measure_alignment, "dispatch": measure_dispatch, "grid": measure_grid,
    "devices": measure_devices,
  }
  rows = []
  for section in _SECTIONS.value:
    for row in measure[section]():
      rows.append({"section": section, **row})
      print(json.dumps(rows[-1]), flush=True)
  output = Path(_OUTPUT.value)
  write_text(output, json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
  write_text(output.with_suffix(".md"), table(rows))
  print(f"\n{table(rows)}\n{jax.devices()[0].device_kind}; {output}")


def measure_steps() -> Iterator[Row]:
  """The whole VAMCEI step of the demo and of the published config, and the bare published U-Net; and their twins."""
  peaks = {dtype: matmul_peak(dtype) for dtype in _DTYPES.value}
  for dtype, peak in peaks.items():
    yield {"what": f"matrix product, {dtype}", "GFLOP/s": peak / 1e9}
  for name, dtype in [("demo", "float32")] + [("published", dtype) for dtype in _DTYPES.value]:
    config = step_config(name, dtype)
    contenders, facts = {"JAX": None}, {}
    contenders["JAX"], facts["JAX"] = jax_step(config)
    if _TORCH.value:
      contenders |= torch_steps(config)
    yield from compared(f"step, {name}, {dtype}", contenders, facts, 2 * config.train.batch_size, peaks.get(dtype))
  for dtype in _DTYPES.value:
    config = step_config("published", dtype)
    contenders, facts = {}, {}
    contenders["JAX"], facts["JAX"] = jax_unet(config)
    if _TORCH.value:
      contenders |= torch_unets(config)
    yield from compared(f"bare U-Net, published, {dtype}", contenders, facts, 2 * config.train.batch_size, peaks[dtype])


def compared(
  what: str, contenders: Mapping[str, Callable], facts: Mapping[str, Row], images: int, peak: float | None
) -> Iterator[Row]:
  """A row a contender: medians, ratio to JAX, and what is known of the program."""
  medians = interleave(contenders, _ROUNDS.value)
  for name, seconds in medians.items():
    row = {"what": what, "by": name, "ms": 1e3 * seconds, "images/s": images / seconds, "times JAX": seconds / medians["JAX"]}
    own = dict(facts.get(name, {}))
    if flops := own.pop("flops", None):
      own["GFLOP/s"] = flops / seconds / 1e9
      own |= {"of peak": flops / seconds / peak} if peak else {}
    yield row | own


def interleave(contenders: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
  """Median seconds of each contender, which take turns; each has run once before."""
  seconds = {name: [] for name in contenders}
  for _ in range(rounds):
    for name, run in contenders.items():
      started = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - started)
  return {name: statistics.median(own) for name, own in seconds.items()}


def step_config(name: str, dtype: str = "float32"):
  """The configuration of a VAMCEI step: "demo" or "published"."""
  from configs import uda, vamcei_paper
  from vamcei_jax.stages import stage_configs

  config = {"demo": uda, "published": vamcei_paper}[name].get_config()
  config.model.dtype = dtype
  return stage_configs(config)["vamcei"]


def random_slices(config, count: int = 32) -> dict:
  """Slices like a dataset's, of noise."""
  import numpy as np

  rng, (height, width) = np.random.default_rng(0), config.data.size
  image = lambda: rng.uniform(size=(count, height, width)).astype(np.float32)
  label = rng.integers(0, len(config.data.label_values), (count, height, width)).astype(np.uint8)
  return {"source": {"image": image(), "label": label}, "target": {"image": image()}}


def random_batch(config) -> dict:
  """A batch of noise, as a step takes it."""
  import jax

  from vamcei_jax.data.loader import draw_batch

  return jax.jit(lambda data: draw_batch(data, jax.random.key(0), 0, config))(random_slices(config))


def jax_step(config) -> tuple[Callable, Row]:
  """run() makes one VAMCEI step; and compile time, operations, and the memory of the program."""
  import jax

  from vamcei_jax.methods import vamcei

  state = jax.jit(lambda: vamcei.init_state(config, jax.random.key(0)))()
  batch = random_batch(config)
  lowered = jax.jit(vamcei.make_step(config), donate_argnums=0).lower(state, batch)
  compiled, facts = compile_timed(lowered)
  held = [state]

  def run() -> None:
    held[0], _ = compiled(held[0], batch)
    jax.block_until_ready(held[0])

  run()
  return run, facts


def jax_unet(config) -> tuple[Callable, Row]:
  """run() makes one forward and backward pass of the plain U-Net."""
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
  """The compiled program, and what it took and takes."""
  import jax

  # What an earlier benchmark has compiled would take no time.
  jax.config.update("jax_enable_compilation_cache", False)
  started = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - started
  jax.config.update("jax_enable_compilation_cache", True)
  needs = compiled.memory_analysis()
  memory = needs.temp_size_in_bytes + needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
  return compiled, {"compile s": seconds, "peak MB": memory / 1e6, "flops": lowered.cost_analysis()["flops"]}


def torch_steps(config) -> dict[str, Callable]:
  """The twin's step, eager and compiled."""
  import numpy as np

  from experiments.torch_twin import make_twin

  batch, device = random_batch(config), torch_device()
  images_s, images_t = (torch_images(batch[domain]["image"], device) for domain in ("source", "target"))
  labels = torch_array(np.asarray(batch["source"]["label"], np.int64), device)
  return {
    name: torch_run(make_twin(config, device, **options), images_s, labels, images_t) for name, options in TWINS.items()
  }


def torch_unets(config) -> dict[str, Callable]:
  """The plain U-Net in PyTorch, eager and compiled."""
  import numpy as np

  from experiments.torch_twin import make_bare_unet

  batch, device = random_batch(config), torch_device()
  images = torch_images(np.concatenate([batch["source"]["image"], batch["target"]["image"]]), device)
  return {name: torch_run(make_bare_unet(config, device, **options), images) for name, options in TWINS.items()}


TWINS = {
  "PyTorch": {},
  "PyTorch, channels last": {"channels_last": True},
  "PyTorch, compiled": {"compile": True},
}


def torch_device() -> str:
  import torch

  torch.backends.cudnn.benchmark = True
  return "cuda" if torch.cuda.is_available() else "cpu"


def torch_array(values, device: str):
  import torch

  return torch.tensor(values, device=device)


def torch_images(values, device: str):
  """(B, H, W, 1) -> (B, 1, H, W)."""
  import numpy as np

  return torch_array(np.moveaxis(np.asarray(values), -1, 1).copy(), device)


def torch_run(function: Callable, *arguments) -> Callable:
  """run() calls a function and waits for the device; it has been called once."""
  import torch

  def run() -> None:
    function(*arguments)
    if torch.cuda.is_available():
      torch.cuda.synchronize()

  run()
  return run


def matmul_peak(dtype: str, size: int = 4096) -> float:
  """Operations a second of a large matrix product: what the machine gives at best."""
  import jax
  import jax.numpy as jnp

  a = jnp.ones((size, size), dtype)
  product = jax.jit(lambda a: a @ a)
  run = lambda: jax.block_until_ready(product(a))
  run()
  return 2 * size**3 / min(interleave({"": run}, 1)[""] for _ in range(5))


def measure_alignment() -> Iterator[Row]:
  """Eqs. 5-8 with their gradient for M + M images: from all pairs, and in linear time."""
  import jax
  import numpy as np

  from vamcei_jax.losses import global_alignment, pairwise_gaussian_kl

  def by_pairs(mu_s, logvar_s, mu_t, logvar_t):
    return pairwise_gaussian_kl(mu_s, logvar_s, mu_t, logvar_t).mean() + pairwise_gaussian_kl(
      mu_t, logvar_t, mu_s, logvar_s
    ).mean()

  in_linear_time = lambda *latents: global_alignment(*latents, estimator="pairwise")
  dims, rng = 40 * 40 * 16, np.random.default_rng(0)
  for images in (4, 16, 64, 256):
    latents = [jax.numpy.asarray(0.3 * rng.normal(size=(images, dims)), "float32") for _ in range(4)]
    contenders, memory = {}, {}
    for name, loss in (("pairs", by_pairs), ("linear", in_linear_time)):
      compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3))).lower(*latents).compile()
      memory[name] = compiled.memory_analysis().temp_size_in_bytes
      contenders[name] = lambda compiled=compiled: jax.block_until_ready(compiled(*latents))
      contenders[name]()
    medians = interleave(contenders, _ROUNDS.value)
    for name, seconds in medians.items():
      yield {
        "what": f"alignment, M = {images}", "by": name, "ms": 1e3 * seconds, "temporary MB": memory[name] / 1e6,
        "times linear": seconds / medians["linear"],
      }


def measure_dispatch() -> Iterator[Row]:
  """Steps of the demo, drawn from data on the device: how many to a dispatch, and what Python takes of the time."""
  import jax

  from vamcei_jax import parallel

  config, steps = step_config("demo"), 50
  devices = jax.devices()[:1]
  lengths = (1, 10, 50) if devices[0].platform != "cpu" else (1,)
  contenders = {
    length: training_run(config, devices, scanned=parallel.steps_in_dispatch(50, devices) > 1, length=length, steps=steps)
    for length in lengths
  }
  for length, seconds in interleave(contenders, _ROUNDS.value).items():
    yield {"what": f"dispatch of {length} steps", "by": "JAX", "ms": 1e3 * seconds / steps, "inside the program": busy(contenders[length])}


def training_run(config, devices, *, length: int, steps: int, scanned: bool | None = None) -> Callable:
  """run() trains `steps` steps, `length` to a call, and waits for the last one."""
  from functools import partial

  import jax

  from vamcei_jax import parallel
  from vamcei_jax.data.loader import draw_batch
  from vamcei_jax.methods import vamcei

  draw = partial(draw_batch, config=config)
  advance = parallel.compile_steps(partial(vamcei.make_step, config), draw, devices, streamed=False, scanned=scanned)
  held = [parallel.replicate(jax.jit(lambda: vamcei.init_state(config, jax.random.key(0)))(), devices)]
  data, key = parallel.replicate(random_slices(config), devices), jax.random.key(1)

  def run() -> None:
    for _ in range(steps // length):
      held[0], _ = advance(held[0], data, key, length)
    jax.block_until_ready(held[0])

  run()
  return run
