"""Keys of examples: explicit, and the same however a batch is spread over devices."""

import jax
import jax.numpy as jnp
from jax import Array


def example_keys(key: Array, count: int, first: int = 0) -> Array:
  """(count,) keys of the examples first, first + 1, …: each folded from its index in the global batch."""
  return jax.vmap(lambda index: jax.random.fold_in(key, index))(first + jnp.arange(count))
