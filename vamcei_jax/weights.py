"""Weights to ship: a network without its training, as safetensors in half precision beside its configuration."""

from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vamcei_jax.config import write_config
from vamcei_jax.errors import InputError
from vamcei_jax.files import replacing
from vamcei_jax.methods.state import Params

WEIGHTS_FILE = "weights.safetensors"


def write_weights(folder: Path, config: ConfigDict, networks: dict[str, Params]) -> None:
  """Writes weights.safetensors, arrays in float16 named NETWORK/MODULE/PARAMETER, and config.json.

  Raises:
    InputError: a parameter that float16 does not hold.
  """
  arrays = {name: np.asarray(array) for name, array in flatten_dict(networks, sep="/").items()}
  half = {name: np.ascontiguousarray(array.astype(np.float16)) for name, array in arrays.items()}
  if beyond := [name for name, array in half.items() if not np.isfinite(array).all()]:
    raise InputError(f"{folder}: {beyond[0]} does not fit into float16; train longer at a lower rate")
  with replacing(folder / WEIGHTS_FILE) as temporary:
    save_file(half, temporary)
  write_config(folder, config)


def read_weights(folder: Path, abstract: dict[str, Params]) -> dict[str, Params]:
  """The networks of a folder that write_weights has written, in float32.

  Args:
    folder: of the weights.
    abstract: their names, shapes and types, as the configuration beside them says.

  Raises:
    InputError: weights that are not there, are damaged, or are not those of the configuration.
  """
  path = folder / WEIGHTS_FILE
  try:
    arrays = load_file(path)
  except FileNotFoundError:
    raise InputError(f"{path}: not found; --weights must name a folder of weights, --workdir that of a run") from None
  except (SafetensorError, OSError, ValueError) as error:
    raise InputError(f"{path}: damaged ({' '.join(str(error).split())}); get it again") from None
  expected = flatten_dict(abstract, sep="/")
  shapes = lambda arrays: {name: tuple(array.shape) for name, array in arrays.items()}
  if shapes(arrays) != shapes(expected):
    raise InputError(f"{path}: not the weights that config.json beside it describes; get both again")
  whole = {name: array.astype(expected[name].dtype) for name, array in arrays.items()}
  if beyond := [name for name, array in whole.items() if not np.isfinite(array).all()]:
    raise InputError(f"{path}: damaged ({beyond[0]} is not finite); get it again")
  return jax.device_put(unflatten_dict(whole, sep="/"))
