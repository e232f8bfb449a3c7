"""Every stage's step becomes a program for GPUs and TPUs, which needs neither."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from tests.methods.settings import stage_config
from vamcei_jax.data.loader import draw_batch
from vamcei_jax.methods.state import skip_nonfinite
from vamcei_jax.pipeline.stages import STAGES

AUGMENTATIONS = ("rotation", "scale", "gamma", "contrast", "bias", "blur", "noise", "gin", "ipa", "scar", "contraction")
SLICES = 5


def program_and_arguments(stage, dtype):
  """Two steps as one program, with drawn and augmented batches, and the shapes of its arguments."""
  augment = dict.fromkeys(AUGMENTATIONS, 0.5)
  config = stage_config(stage, model={"dtype": dtype}, augment=augment)
  method = STAGES[stage].method
  step = method.make_step(config)
  draw = partial(draw_batch, batch_size=config.train.batch_size, crop=config.data.crop, strengths=config.augment)

  def one(state, data, key):
    return skip_nonfinite(state, *step(state, draw(data, key, state.step)))

  def many(state, data, key):
    return jax.lax.scan(lambda state, _: one(state, data, key), state, length=2)

  key = jax.eval_shape(lambda: jax.random.key(0))
  slices = partial(jax.ShapeDtypeStruct, (SLICES, *config.data.size))
  source = {"image": slices(jnp.float32), "label": slices(jnp.uint8)}
  target = {"image": slices(jnp.float32)}
  if stage == "distill":
    target["teacher"] = jax.ShapeDtypeStruct((SLICES, *config.data.size, 4), jnp.float32)
  state = jax.eval_shape(partial(method.init_state, config), key)
  return many, (state, {"source": source, "target": target}, key)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["no_adaptation", "vamcei", "translate", "distill"])
def test_steps_lower_for_gpus_and_tpus(stage, dtype):
  program, arguments = program_and_arguments(stage, dtype)
  exported = jax.export.export(jax.jit(program, donate_argnums=0), platforms=("cuda", "tpu"))(*arguments)
  text = exported.mlir_module()
  convolutions = [line.rsplit("->", 1)[-1] for line in text.splitlines() if "stablehlo.convolution" in line]
  assert convolutions
  # Of the networks with a dtype, all but the last layers compute in it.
  assert any("bf16" in line for line in convolutions) == (dtype == "bfloat16")
