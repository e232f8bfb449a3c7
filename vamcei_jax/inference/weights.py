"""Exported weights: networks without their training, as safetensors in half precision beside their configuration."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load, save

from vamcei_jax.config.files import CONFIG_FILE, build_stage, read_config, stage_content, write_config
from vamcei_jax.config.rules import shortened
from vamcei_jax.config.schema import InferenceConfig, StageConfig, build, records
from vamcei_jax.errors import InputError
from vamcei_jax.files import replacing
from vamcei_jax.methods.state import Params, digest
from vamcei_jax.pipeline.resolve import check_relations
from vamcei_jax.pipeline.stages import STAGES

WEIGHTS_FILE = "weights.safetensors"
NOT_DESCRIBED = "not the weights that config.json beside it describes; get both again"


def write_weights(
  folder: Path, config: StageConfig, inference: InferenceConfig, networks: Mapping[str, Params]
) -> None:
  """Writes weights.safetensors, arrays in float16 named NETWORK/MODULE/PARAMETER, and config.json with their digest.

  Args:
    folder: of the weights.
    config: of the stage.
    inference: how the weights predict by default.
    networks: network name -> parameters.

  Raises:
    InputError: a parameter is beyond the range of float16.
  """
  with np.errstate(over="ignore"):
    half = {name: np.asarray(array).astype(np.float16) for name, array in flatten_dict(networks, sep="/").items()}
  if beyond := [name for name, array in half.items() if not np.isfinite(array).all()]:
    raise InputError(f"{folder}: {beyond[0]} does not fit into float16; train with a lower rate")
  with replacing(folder / WEIGHTS_FILE) as temporary:
    temporary.write_bytes(save(half))
  settings = json.loads(json.dumps(dataclasses.asdict(inference)))
  write_config(folder, stage_content(config) | {"inference": settings | {"sha256": digest(half)}})


def read_weights(folder: Path, *, check_shapes: bool = True) -> tuple[StageConfig, InferenceConfig, dict[str, Params]]:
  """Configuration, defaults of prediction and networks, in float32, of exported weights.

  Args:
    folder: of the weights.
    check_shapes: whether names and shapes of the parameters are compared with the configuration. It takes 0.2 s.

  Raises:
    InputError: they are missing or damaged, or the folder holds something else.
  """
  content, path = read_config(folder), folder / CONFIG_FILE
  section = content.get("inference")
  if len(content["stages"]) != 1 or content["stages"][0] not in STAGES or not isinstance(section, dict):
    raise InputError(f"{folder}: not exported weights; make some with python -m vamcei_jax.export")
  config = build_stage(content, str(path))
  try:
    check_relations(config)
  except InputError as error:
    raise InputError(f"{path}: damaged ({error}); get the weights again") from None
  settings = {name: value for name, value in section.items() if name != "sha256"}
  check_inference(settings, lambda name: f"{path}: damaged (inference.{name}")
  networks = _read_networks(folder, section.get("sha256", ""))
  if check_shapes:
    method = STAGES[config.name].method
    expected = jax.eval_shape(lambda: method.init_state(config, jax.random.key(0))).ema_params
    shapes = lambda arrays: {name: array.shape for name, array in flatten_dict(arrays).items()}
    if shapes(networks) != shapes(expected):
      raise InputError(f"{folder}: {NOT_DESCRIBED}")
  return config, build(InferenceConfig, settings), networks


def check_inference(settings: Mapping[str, Any], name_of=str) -> None:
  """Checks fields of InferenceConfig.

  Args:
    settings: field -> value.
    name_of: field -> its name in an error message.

  Raises:
    InputError: a field is unknown or has a value that it cannot have.
  """
  known = dict(records(InferenceConfig))
  for name, value in settings.items():
    if name not in known:
      raise InputError(f"{name_of(name)}: no such option of prediction; choose from {', '.join(known)}")
    if not known[name].rule.accepts(value):
      raise InputError(f"{name_of(name)}={shortened(value)}: must be {known[name].rule.expected}")


def _read_networks(folder: Path, sha256: str) -> dict[str, Params]:
  """The networks of weights.safetensors, if they have this digest."""
  path = folder / WEIGHTS_FILE
  try:
    half = load(path.read_bytes())
    intact = digest(half) == sha256
  except OSError:
    raise
  except Exception as error:  # a damaged file can raise many exception types
    raise InputError(f"{path}: damaged ({shortened(str(error))}); get the weights again") from None
  if not intact:
    raise InputError(f"{path}: damaged, or {NOT_DESCRIBED}")
  return jax.device_put(unflatten_dict({name: array.astype(np.float32) for name, array in half.items()}, sep="/"))
