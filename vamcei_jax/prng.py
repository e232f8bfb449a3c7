"""PRNG keys of examples: explicit, and independent of the devices over which a batch is split."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int, Key


def batch_positions(count: int, axis_name: str | None = None) -> Int[Array, " {count}"]:
  """Positions, in the global batch, of the examples on this device.

  Args:
    count: number of examples on this device, the same on every device.
    axis_name: axis over which the batch is split; None if the batch is on one device.

  Returns:
    (count,) integers.
  """
  first = 0 if axis_name is None else count * jax.lax.axis_index(axis_name)
  return first + jnp.arange(count)


def example_keys(key: Key[Array, ""], positions: Int[Array, " B"]) -> Key[Array, " B"]:
  """One key per example, folded from `key` and the position of the example in the global batch: (B,)."""
  return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
