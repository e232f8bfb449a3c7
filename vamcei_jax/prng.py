"""Keys of examples: explicit, and the same however a batch is spread over devices."""

import jax
import jax.numpy as jnp
from jax import Array


def batch_positions(count: int, axis_name: str | None = None) -> Array:
  """(count,) positions in the global batch of the examples that this device has, an equal share of it.

  Args:
    count: examples on this device.
    axis_name: axis over which the batch is split; None for the whole batch on one device.
  """
  first = 0 if axis_name is None else count * jax.lax.axis_index(axis_name)
  return first + jnp.arange(count)


def example_keys(key: Array, positions: Array) -> Array:
  """(B,) keys of a batch's examples, each folded from its position in the global batch."""
  return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
