"""How steps are spread over devices. One device so far; nothing else in the house knows how many there are."""

from collections.abc import Callable

import jax

from vamcei_jax.methods.state import Metrics, State


def compile_step(step: Callable, draw: Callable) -> Callable[[State, dict], tuple[State, Metrics]]:
  """Compiles draw(data, step number) -> batch and step(state, batch) into run(state, data) -> (state, metrics).

  The state is donated: its buffers are reused for the new one.
  """

  def run(state: State, data: dict) -> tuple[State, Metrics]:
    return step(state, draw(data, state.step))

  return jax.jit(run, donate_argnums=0)
