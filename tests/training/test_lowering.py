"""The steps of every method are lowered for GPUs and TPUs. No such device is needed."""

from functools import partial

import jax
import pytest

from experiments.compile_for import abstract_arguments
from tests.methods import published
from tests.methods.settings import stage_config
from vamcei_jax.data.loader import make_draw
from vamcei_jax.distributed import scan_steps
from vamcei_jax.pipeline.stages import STAGES

AUGMENTATIONS = ("rotation", "scale", "gamma", "contrast", "bias", "blur", "noise", "gin", "ipa", "scar", "contraction")
CONFIGS = {
  **{stage: partial(stage_config, stage) for stage in ("no_adaptation", "vamcei", "translate", "distill")},
  "adapt without a source": partial(stage_config, "distill"),
  "published": published.small_config,
}


def program_and_arguments(name, **sections):
  """Two steps as one program, with drawn and augmented batches, and the shapes of its arguments."""
  config = CONFIGS[name](**sections)
  step = STAGES[config.name].method.make_step(config)
  state, data, key = abstract_arguments(config)
  if name == "adapt without a source":
    del data["source"]
  return scan_steps(step, make_draw(config), None, 2, streamed=False), (state, data, key)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_steps_lower_for_gpus_and_tpus(name, dtype):
  program, arguments = program_and_arguments(name, model={"dtype": dtype}, augment=dict.fromkeys(AUGMENTATIONS, 0.5))
  exported = jax.export.export(jax.jit(program, donate_argnums=0), platforms=("cuda", "tpu"))(*arguments)
  lines = [line for line in exported.mlir_module().splitlines() if "stablehlo.convolution" in line]
  results = [line.rsplit("->", 1)[-1] for line in lines]
  assert results
  # In bfloat16, only the last layers of some networks compute in float32.
  exact = sum("bf16" not in result for result in results)
  assert exact == len(results) if dtype == "float32" else exact < 0.2 * len(results)
