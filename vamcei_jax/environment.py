"""Settings of JAX on which results depend, flags of its compiler for TPUs, and a check for a device."""

import contextlib
import os
from collections.abc import Iterator

from vamcei_jax.errors import InputError

# With another type, promotion or random generator, states are not those of the checkpoints, or programs fail.
SETTINGS = {
  "jax_enable_x64": False,
  "jax_numpy_dtype_promotion": "standard",
  "jax_default_prng_impl": "threefry2x32",
  "jax_threefry_partitionable": True,
}
# For batches below eight images, XLA for TPUs splits each image and stacks the parts as a larger batch. In the networks
# of this project, these copies move more bytes than the convolutions (docs/tpu.md).
TPU_FLAGS = "--xla_tpu_run_space_to_batch=false --xla_tpu_run_space_to_batch_on_new_platforms=false"


def set_variables() -> None:
  """Sets the variables of SETTINGS, and TPU_FLAGS unless there are others, for a program that has not imported JAX."""
  os.environ.update({name.upper(): str(value) for name, value in SETTINGS.items()})
  os.environ.setdefault("LIBTPU_INIT_ARGS", TPU_FLAGS)


@contextlib.contextmanager
def jax_settings() -> Iterator[None]:
  """Applies SETTINGS within a block or a decorated function, in this thread. Those of the program stay as they are.

  Raises:
    InputError: JAX finds no device.
  """
  import jax

  require_device()
  with contextlib.ExitStack() as stack:
    for name, value in SETTINGS.items():
      if getattr(jax.config, name) != value:  # an equal setting that is entered makes JAX trace programs again
        stack.enter_context(getattr(jax, name.removeprefix("jax_"))(value))
    yield


def require_device() -> None:
  """Raises an InputError if JAX finds no device, as with JAX_PLATFORMS=cuda on a machine without a GPU."""
  import jax

  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:  # JAX asserts that the named platforms have a device
    reason = " ".join(str(error).partition(" (set JAX_PLATFORMS")[0].split())[:200]
    platforms = getattr(jax.config, "jax_platforms", None)
    named = f"JAX_PLATFORMS={platforms}" if platforms else "JAX"
    reason = f" ({reason})" if reason else ""
    raise InputError(
      f"{named}: no such device is found{reason}; unset JAX_PLATFORMS, or see docs/hardware.md"
    ) from None
