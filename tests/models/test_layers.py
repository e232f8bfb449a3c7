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


def test_max_pool_and_its_gradient_are_those_of_flax():
  pooled, gradient = jax.vjp(max_pool, X)
  expected, its_gradient = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), X)
  np.testing.assert_array_equal(pooled, expected)
  np.testing.assert_array_equal(gradient(pooled)[0], its_gradient(pooled)[0])


def test_of_equal_values_the_first_has_the_whole_gradient():
  gradient = jax.grad(lambda x: max_pool(x).sum())
  np.testing.assert_array_equal(gradient(jnp.ones((1, 2, 2, 1)))[0, :, :, 0], [[1, 0], [0, 0]])
  for ties in np.random.default_rng(0).integers(0, 2, (20, 1, 4, 4, 2)).astype(np.float32):
    np.testing.assert_array_equal(gradient(ties).sum(), 8)
    np.testing.assert_array_equal((gradient(ties) * ties).sum(), max_pool(ties).sum())


@pytest.mark.parametrize("shape", [(5, 3), (2, 8, 6, 3)])
def test_products_have_the_gradients_of_their_operands(shape):
  x, kernel = jax.random.normal(jax.random.key(2), shape), jax.random.normal(jax.random.key(3), (3, 7))
  product, gradients = jax.vjp(multiply, x, kernel)
  expected, its_gradients = jax.vjp(jnp.matmul, x, kernel)
  np.testing.assert_allclose(product, expected, rtol=1e-6)
  for ours, others in zip(gradients(product), its_gradients(product), strict=True):
    np.testing.assert_allclose(ours, others, rtol=1e-4, atol=1e-4)


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
