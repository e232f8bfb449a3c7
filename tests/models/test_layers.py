import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamcei_jax.models.layers import Upsample, average_pool, max_pool, multiply, pointwise, relu

X = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
WEIGHTS = jax.random.normal(jax.random.key(1), (2, 8, 6, 3))


def test_relu_and_its_gradient_are_those_of_flax():
  loss = lambda function: jax.value_and_grad(lambda x: (WEIGHTS * function(x)).sum())(X.at[0, 0, 0].set(0.0))
  jax.tree.map(np.testing.assert_array_equal, loss(relu), loss(nn.relu))


@pytest.mark.parametrize("function", [relu, max_pool])
def test_what_is_not_a_number_is_not_hidden(function):
  assert np.isnan(function(X.at[1, 3, 3, 2].set(jnp.nan))).sum() == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("values", [X, jnp.round(X)], ids=["distinct", "equal"])
def test_max_pool_and_its_gradient_are_those_of_flax(values, dtype):
  pooled, gradient = jax.vjp(max_pool, values.astype(dtype))
  expected, its_gradient = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), values.astype(dtype))
  assert (pooled.dtype, gradient(pooled)[0].dtype) == (dtype, dtype)
  np.testing.assert_array_equal(pooled, expected)
  np.testing.assert_array_equal(gradient(pooled)[0], its_gradient(pooled)[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.02)])
@pytest.mark.parametrize("shape", [(5, 3), (2, 8, 6, 3)])
def test_multiply_and_its_gradients_are_those_of_matmul(shape, dtype, tolerance):
  x, kernel = (jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate((shape, (3, 7))))
  product, gradients = jax.vjp(multiply, x, kernel)
  expected, its_gradients = jax.vjp(jnp.matmul, x, kernel)
  for ours, others in zip((product, *gradients(product)), (expected, *its_gradients(product)), strict=True):
    assert ours.dtype == dtype
    difference = jnp.abs(ours.astype(jnp.float32) - others.astype(jnp.float32)).max()
    assert difference <= tolerance * jnp.abs(others).max()


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
