"""A batch that is split over two devices gives the step of the whole batch, for every method."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.methods.batches import make_hearts
from tests.methods.steps import assert_metrics, assert_near, moments, moved_state, program
from vamcei_jax.distributed import compile_steps, devices_for, replicate
from vamcei_jax.prng import batch_positions


def share(batch, key, step, axis_name=None):
  """The images of a device."""
  del key, step
  devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
  part = lambda x: jnp.asarray(x)[batch_positions(len(x) // devices, axis_name)]
  return jax.tree.map(part, batch)


def assert_two_devices_take_the_step(stage):
  """Its images differ, so losses that mix them before something nonlinear are not the mean over devices."""
  assert jax.device_count() >= 2, "start Python with XLA_FLAGS=--xla_force_host_platform_device_count=2"
  method, config, step = program(stage)
  state, batch, devices = moved_state(stage), make_hearts(0), devices_for(2)
  assert len(devices) == 2
  # A history that is not full would hide from which device its images come.
  full = lambda history: {"images": np.random.default_rng(0).random((3, 24, 24, 1)), "count": np.int32(3)}
  memory = {domain: jax.tree.map(jnp.asarray, full(history)) for domain, history in (state.memory or {}).items()}
  state = state.replace(memory=memory or ())
  expected, expected_metrics = step(state, batch)

  run = compile_steps(lambda axis_name: method.make_step(config, axis_name), share, devices, streamed=False)
  key = jax.random.key(0)
  after, (metrics,) = run(replicate(state, devices), replicate(batch, devices), replicate(key, devices), 1)
  assert_metrics(metrics, expected_metrics)
  assert_near(moments(after, "mu"), moments(expected, "mu"), 1e-3, distance=1e-7)
  assert_near(after.memory, expected.memory, distance=1e-5)
  for replica in ("opt_state", "ema_params"):
    for leaf in jax.tree.leaves(getattr(after, replica)):
      first, second = (np.asarray(shard.data) for shard in leaf.addressable_shards)
      np.testing.assert_array_equal(first, second)
