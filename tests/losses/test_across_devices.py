"""The losses of a batch that is split over an axis are those of the batch; as a program, the same on four devices.

The convention of `vamcei_jax.losses`: every replica differentiates with respect to its parameters, then `pmean`.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import vamcei_jax
from vamcei_jax import losses

SHARDS, IMAGES, SIDE, CHANNELS, CLASSES = 4, 8, 6, 3, 4


def test_under_vmap_losses_and_gradients_are_those_of_the_batch():
  params, batch = example()
  expected = jax.jit(values_and_grads)(params, batch)
  got = jax.jit(jax.vmap(lambda batch: values_and_grads(params, batch, "batch"), axis_name="batch"))(split(batch))
  for shard in range(SHARDS):
    compare(got, expected, shard)

  # And they differ from the mean over shards of the losses of each shard.
  alone = jax.jit(jax.vmap(lambda batch: linear_model_losses(params, batch, None)))(split(batch))
  for name in ("dice", "paper", "pairwise", "contrast"):
    assert abs(alone[name].mean() - expected[0][name]) > 1e-3 * abs(expected[0][name])


def test_on_four_devices_losses_and_gradients_are_those_of_the_batch():
  flags = "--xla_force_host_platform_device_count=4"
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": flags,
    "PYTHONPATH": str(Path(vamcei_jax.__file__).parents[1]),
  }
  done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ["pmap", "shard_map"]


def on_four_devices():
  assert jax.device_count() == SHARDS
  params, batch = example()
  expected = jax.jit(values_and_grads)(params, batch)

  step = jax.pmap(lambda params, batch: values_and_grads(params, batch, "batch"), axis_name="batch", in_axes=(None, 0))
  got = step(params, split(batch))
  for device in range(SHARDS):
    compare(got, expected, device)
  print("pmap")

  # It knows that the loss is replicated and answers with the global gradient, which pmean leaves alone.
  step = jax.shard_map(
    lambda params, batch: jax.tree.map(lambda x: x[None], values_and_grads(params, batch, "batch")),
    mesh=Mesh(jax.devices(), "batch"),
    in_specs=(P(), P("batch")),
    out_specs=P("batch"),
  )
  got = jax.jit(step)(params, batch)
  for device in range(SHARDS):
    compare(got, expected, device)
  print("shard_map")


def values_and_grads(params, batch, axis_name=None):
  """Every loss that takes an axis, of a linear model, and the gradient of their sum."""

  def total(params):
    everything = linear_model_losses(params, batch, axis_name)
    return sum(everything.values()), everything

  (_, everything), grads = jax.value_and_grad(total, has_aux=True)(params)
  return everything, grads if axis_name is None else jax.lax.pmean(grads, axis_name)


def linear_model_losses(params, batch, axis_name):
  s, t = ({name: x @ w for name, w in params.items()} for x in (batch["s"], batch["t"]))
  latents = s["mu"], s["logvar"], t["mu"], t["logvar"]
  labels = jax.nn.one_hot(batch["labels"], CLASSES)
  ce, dice = losses.segmentation(s["logits"], labels, axis_name=axis_name)
  proto_s, present_s = losses.class_prototypes(s["mu"], labels, axis_name=axis_name)
  proto_t, present_t = losses.class_prototypes(t["mu"], batch["confident"], axis_name=axis_name)
  return {
    "ce": ce,
    "dice": dice,
    "paper": 1e-2 * losses.global_alignment(*latents, estimator="paper", axis_name=axis_name),
    "pairwise": 1e-2 * losses.global_alignment(*latents, estimator="pairwise", axis_name=axis_name),
    "contrast": losses.prototype_contrast(proto_s, present_s, proto_t, present_t, temperature=0.5),
  }


def example():
  """Shards with different labels: the last shard lacks two classes, and one class has no confident pixel."""
  rng = np.random.default_rng(0)
  shape = IMAGES, SIDE, SIDE
  offsets = np.repeat(np.arange(SHARDS), IMAGES // SHARDS)[:, None, None, None]
  labels = rng.integers(CLASSES, size=shape)
  labels[-2:] %= 2
  confident = rng.dirichlet(0.3 * np.ones(CLASSES), size=shape) * (rng.uniform(size=shape) < 0.3)[..., None]
  confident[..., 3] = 0
  batch = {
    "s": np.float32(rng.normal(size=(*shape, CHANNELS)) + 0.3 * offsets),
    "t": np.float32(rng.normal(size=(*shape, CHANNELS)) - 0.2 * offsets),
    "labels": labels,
    "confident": np.float32(confident),
  }
  sizes = {"mu": 5, "logvar": 5, "logits": CLASSES}
  return {name: np.float32(0.3 * rng.normal(size=(CHANNELS, size))) for name, size in sizes.items()}, batch


def split(batch):
  return jax.tree.map(lambda x: x.reshape(SHARDS, IMAGES // SHARDS, *x.shape[1:]), batch)


def compare(got, expected, shard):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[shard], b, rtol=2e-5, atol=2e-6), got, expected)


if __name__ == "__main__":
  on_four_devices()
