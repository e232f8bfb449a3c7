import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamcei_jax.models.cpu_gradients import EPSILON, depth_to_space, max_pool, multiply, normalize, relu

X = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
WEIGHTS = jax.random.normal(jax.random.key(1), (2, 8, 6, 3))


def test_relu_and_its_gradient_are_those_of_flax():
  loss = lambda function: jax.value_and_grad(lambda x: (WEIGHTS * function(x)).sum())(X.at[0, 0, 0].set(0.0))
  jax.tree.map(np.testing.assert_array_equal, loss(relu), loss(nn.relu))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.01)])
@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("size", [1, 1e-3], ids=["ordinary", "near epsilon"])
def test_gradients_of_the_norm_are_those_of_its_formula(size, offset, dtype, tolerance):
  x, scale, bias = (size * (X + offset)).astype(dtype), jnp.array([2.0, -1.0, 0.5]), jnp.array([0.0, 1.0, 2.0])
  output, gradients = jax.vjp(normalize, x, scale, bias)
  ours = gradients(WEIGHTS.astype(output.dtype))

  exact, weights = np.asarray(x, np.float64), np.asarray(WEIGHTS.astype(dtype), np.float64)
  mean = lambda x: x.mean((1, 2), keepdims=True)
  rate = 1 / np.sqrt(mean((exact - mean(exact)) ** 2) + EPSILON)
  normed = rate * (exact - mean(exact))
  of_x = rate * np.asarray(scale) * (weights - mean(weights) - normed * mean(weights * normed))
  expected = of_x, (weights * normed).sum((0, 1, 2)), weights.sum((0, 1, 2))
  assert [x.dtype for x in ours] == [dtype, jnp.float32, jnp.float32]
  for got, wanted in zip(ours, expected, strict=True):
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, atol=tolerance * np.abs(wanted).max())


def test_a_norm_of_equal_pixels_is_its_bias_and_its_gradient_is_finite():
  values = jnp.linspace(1, 50, 200)  # of many of them E x² − (E x)² is below 0 by rounding, and by more than EPSILON
  equal, weights = jnp.broadcast_to(values, (1, 8, 6, 200)), jax.random.normal(jax.random.key(2), (1, 8, 6, 200))
  output, gradients = jax.vjp(normalize, equal, jnp.ones(200), jnp.full(200, 2.0))
  np.testing.assert_allclose(output, 2.0, atol=1e-2)
  assert all(np.isfinite(x).all() for x in gradients(weights))


def test_the_gradient_of_a_shuffle_puts_everything_back():
  x = jax.random.normal(jax.random.key(6), (2, 3, 5, 8))
  shuffled, gradient = jax.vjp(depth_to_space, x)
  np.testing.assert_array_equal(shuffled[1, 4, 7], x[1, 2, 3, 2:4])  # upper right of its four
  np.testing.assert_array_equal(gradient(shuffled)[0], x)


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
