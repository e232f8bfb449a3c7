"""Keys of examples: explicit, and the same however a batch is spread over devices."""

import jax
import jax.numpy as jnp
from jax import Array


def example_keys(key: Array, count: int) -> Array:
  """(count,) keys of a batch's examples, each folded from its index in the batch."""
  return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(count))
