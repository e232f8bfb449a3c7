from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamcei_jax.models.cpu_gradients import max_pool
from vamcei_jax.models.layers import NORMS, InstanceNorm, Upsample, average_pool, pointwise

X = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.01)])
def test_instance_norm_is_that_of_flax_and_has_its_parameters(dtype, tolerance):
  x = (1 + X).astype(dtype)
  variables = nn.InstanceNorm(dtype=dtype).init(jax.random.key(5), x)
  jax.tree.map(np.testing.assert_array_equal, InstanceNorm(dtype).init(jax.random.key(5), x), variables)
  params = {"scale": jnp.array([2.0, -1.0, 0.5]), "bias": jnp.array([0.0, 1.0, 2.0])}
  ours = InstanceNorm(dtype).apply({"params": params}, x)
  assert ours.dtype == dtype
  np.testing.assert_allclose(ours, nn.InstanceNorm(dtype=dtype).apply({"params": params}, x), tolerance, tolerance)


def test_group_norm_has_eight_groups_whatever_the_width():
  x = 3 + jax.random.normal(jax.random.key(2), (2, 4, 6, 32)) * jnp.arange(1.0, 33.0)[None, None, None]
  groups = np.asarray(x).reshape(2, 4, 6, 8, 4)
  normed = (groups - groups.mean((1, 2, 4), keepdims=True)) / groups.std((1, 2, 4), keepdims=True)
  got, _ = NORMS["group"](jnp.float32).init_with_output(jax.random.key(0), x)
  np.testing.assert_allclose(got, normed.reshape(x.shape), atol=1e-4)


def test_a_pointwise_convolution_is_the_convolution_and_has_its_parameters():
  convolution = nn.Conv(4, (1, 1), name="head")
  variables = convolution.init(jax.random.key(4), X)
  ours = pointwise(4, name="head")
  jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(4), X), variables)
  np.testing.assert_allclose(ours.apply(variables, X), convolution.apply(variables, X), atol=1e-6)


def test_upsample_is_the_transposed_convolution():
  x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
  variables = Upsample(4).init(jax.random.key(0), x)
  kernel = variables["params"]["Dense_0"]["kernel"].reshape(3, 2, 2, 4).transpose(1, 2, 0, 3)
  transposed = nn.ConvTranspose(4, (2, 2), (2, 2), transpose_kernel=False, use_bias=False)
  # ConvTranspose without transpose_kernel correlates, so its kernel is mirrored.
  expected = transposed.apply({"params": {"kernel": kernel[::-1, ::-1]}}, x)
  np.testing.assert_allclose(Upsample(4).apply(variables, x), expected, atol=1e-5)


def test_average_pool_is_the_mean_of_windows():
  x = jax.random.normal(jax.random.key(1), (2, 8, 4, 3))
  np.testing.assert_allclose(average_pool(x, 4)[1, 1, 0], x[1, 4:8, 0:4].mean((0, 1)), rtol=1e-5)


def test_average_pool_and_its_gradient_are_those_of_flax():
  x = jax.random.normal(jax.random.key(2), (2, 8, 4, 3))
  pooled, gradient = jax.vjp(lambda x: average_pool(x, 2), x)
  expected, its_gradient = jax.vjp(lambda x: nn.avg_pool(x, (2, 2), (2, 2)), x)
  np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient(x[:, ::2, ::2])[0], its_gradient(x[:, ::2, ::2])[0], rtol=1e-5)


@pytest.mark.parametrize(("platform", "by_windows"), [("tpu", True), ("cuda", False), ("cpu", False)])
@pytest.mark.parametrize("pool", [max_pool, partial(average_pool, factor=2)], ids=["max", "average"])
def test_tpus_alone_pool_by_windows(pool, platform, by_windows):
  x = jax.ShapeDtypeStruct((2, 8, 4, 3), jnp.float32)
  program = jax.export.export(jax.jit(pool), platforms=(platform,))(x).mlir_module()
  assert ("reduce_window" in program) == by_windows
