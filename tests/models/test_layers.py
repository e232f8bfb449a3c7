import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamcei_jax.models.layers import GROUPS, NORMS, ConvBlock, max_pool

FLAX_NORMS = {"instance": nn.InstanceNorm, "group": lambda dtype: nn.GroupNorm(GROUPS, dtype=dtype)}
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])


def normal(seed, *shape, dtype="float32"):
  return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def assert_close(got, expected, tolerance):
  """Of the same shapes and dtypes, and nowhere farther apart than `tolerance` of the largest entry."""
  assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("norm", ["instance", "group"])
@DTYPES
def test_norm_and_relu_are_flax_s_with_its_gradients(norm, dtype, tolerance):
  x, weight = 3.0 + normal(0, 2, 6, 10, 16, dtype=dtype), normal(1, 2, 6, 10, 16)
  params = {"scale": 1.0 + normal(2, 16), "bias": normal(3, 16)}

  def loss(module, relu_after):
    def value(params, x):
      y = module.apply({"params": params}, x)
      return jnp.sum(weight * (nn.relu(y) if relu_after else y).astype(jnp.float32))

    return jax.value_and_grad(value, (0, 1))(params, x)

  for relu in (False, True):
    flax = FLAX_NORMS[norm](dtype=jnp.dtype(dtype))
    assert_close(loss(NORMS[norm](jnp.dtype(dtype), relu=relu), False), loss(flax, relu), tolerance)


@DTYPES
def test_max_pool_is_flax_s_with_its_gradient(dtype, tolerance):
  grad = normal(1, 2, 3, 4, 3, dtype=dtype)
  # Integers up to 143, which bfloat16 can tell apart: among equal maxima, Flax's takes one.
  x = jax.random.permutation(jax.random.key(0), 144).reshape(1, 6, 8, 3).repeat(2, 0).astype(dtype)
  got, expected = jax.vjp(max_pool, x), jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
  assert_close((got[0], *got[1](grad)), (expected[0], *expected[1](grad)), tolerance)


def test_equal_maxima_share_the_gradient():
  grad = jax.grad(lambda x: max_pool(x).sum())(jnp.ones((1, 2, 2, 1)))
  np.testing.assert_array_equal(grad, jnp.full((1, 2, 2, 1), 0.25))


def test_a_block_s_gradients_are_the_same_under_vmap():
  """Of examples, as here, and of parameters."""
  block, x = ConvBlock(8), normal(0, 3, 2, 4, 128, 16)
  params = jax.vmap(lambda key: block.init(key, x[0]))(jax.random.split(jax.random.key(1), 3))
  loss = lambda params, x: (block.apply(params, x) ** 2 * normal(2, 4, 128, 8)).sum()
  at = lambda i: jax.tree.map(lambda leaf: leaf[i], params)
  of_examples = jax.vmap(jax.grad(loss), (None, 0))(at(0), x)
  of_parameters = jax.vmap(jax.grad(loss), (0, None))(params, x[0])
  assert_close(jax.tree.map(lambda leaf: leaf[1], of_examples), jax.grad(loss)(at(0), x[1]), 1e-4)
  assert_close(jax.tree.map(lambda leaf: leaf[1], of_parameters), jax.grad(loss)(at(1), x[0]), 1e-4)
