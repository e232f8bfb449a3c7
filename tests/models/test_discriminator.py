import jax
import jax.numpy as jnp

from vamcei_jax.models.discriminator import Discriminator


def test_five_strided_convolutions_of_four_by_four():
  discriminator = Discriminator(width=8)
  variables = jax.eval_shape(discriminator.init, jax.random.key(0), jnp.ones((1, 64, 64, 4)))
  kernels = [leaf.shape for leaf in jax.tree.leaves(variables) if leaf.ndim == 4]
  assert kernels == [(4, 4, 4, 8), (4, 4, 8, 16), (4, 4, 16, 32), (4, 4, 32, 64), (4, 4, 64, 1)]
  assert jax.eval_shape(discriminator.apply, variables, jnp.ones((3, 64, 96, 4))).shape == (3, 2, 3, 1)
