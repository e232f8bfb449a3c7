"""Weights to ship: a network without its training, as safetensors in half precision beside its configuration."""

from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from safetensors.numpy import load, save

from vamcei_jax.checkpoints import digest
from vamcei_jax.config import CONFIG_FILE, check_config, read_config, write_config
from vamcei_jax.errors import InputError
from vamcei_jax.files import replacing
from vamcei_jax.methods.state import Params
from vamcei_jax.ranges import shown

WEIGHTS_FILE = "weights.safetensors"


def write_weights(folder: Path, config: ConfigDict, networks: dict[str, Params]) -> None:
  """Writes weights.safetensors, arrays in float16 named NETWORK/MODULE/PARAMETER, and config.json with their digest.

  Args:
    folder: of the weights.
    config: of the stage, with `inference`, predict's default flags.
    networks: what the stage predicts with.

  Raises:
    InputError: a parameter that float16 does not hold.
  """
  with np.errstate(over="ignore"):
    half = {name: np.asarray(array).astype(np.float16) for name, array in flatten_dict(networks, sep="/").items()}
  if beyond := [name for name, array in half.items() if not np.isfinite(array).all()]:
    raise InputError(f"{folder}: {beyond[0]} does not fit into float16; train at a lower rate")
  with replacing(folder / WEIGHTS_FILE) as temporary:
    temporary.write_bytes(save(half))
  config = config.copy_and_resolve_references()
  config.inference.sha256 = digest(half)
  write_config(folder, config)


def read_weights_config(folder: Path) -> ConfigDict:
  """The configuration of the stage that a folder's weights come from.

  Raises:
    InputError: there is none, or it is not one.
  """
  config = read_config(folder)
  try:
    check_config(config, "config.{}".format)
  except (AttributeError, InputError, KeyError, TypeError, ValueError) as error:
    raise InputError(f"{folder / CONFIG_FILE}: damaged ({shown(str(error))}); get the weights again") from None
  return config


def read_weights(folder: Path, sha256: str, abstract: dict[str, Params]) -> dict[str, Params]:
  """The networks of a folder that write_weights has written, in float32.

  Args:
    folder: of the weights.
    sha256: their digest, as config.json tells it.
    abstract: their names, shapes and types, as the configuration describes them.

  Raises:
    InputError: weights that are not there, are damaged, or are not those of the configuration.
  """
  path = folder / WEIGHTS_FILE
  try:
    half = load(path.read_bytes())
    whole = digest(half) == sha256
  except OSError:
    raise
  except Exception as error:  # what is damaged has many faces
    raise InputError(f"{path}: damaged ({shown(str(error))}); get the weights again") from None
  expected = flatten_dict(abstract, sep="/")
  shapes = lambda arrays: {name: tuple(array.shape) for name, array in arrays.items()}
  if not whole or shapes(half) != shapes(expected):
    raise InputError(f"{path}: damaged, or not the weights that config.json beside it tells of; get both again")
  return jax.device_put(unflatten_dict({name: array.astype(np.float32) for name, array in half.items()}, sep="/"))
