"""How steps are spread over devices. One device so far; nothing else in the house knows how many there are."""

from collections.abc import Callable

import jax

from vamcei_jax.methods.state import Metrics, State


def compile_step(step: Callable, draw: Callable) -> Callable[[State, dict, jax.Array], tuple[State, Metrics]]:
  """Compiles draw(data, key, step number) -> batch and step(state, batch) into one program.

  Returns run(state, data, key) -> (state, metrics). The state is donated: its buffers are reused for the new one. The
  key of the batches is an argument, so that runs of different seeds share a program.
  """

  def run(state: State, data: dict, key: jax.Array) -> tuple[State, Metrics]:
    return step(state, draw(data, key, state.step))

  return jax.jit(run, donate_argnums=0)
