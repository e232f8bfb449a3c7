"""From a folder of exported weights, of a run or of a stage to a Segmenter."""

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jax import Array

from vamcei_jax.config.files import read_config, read_stage_config
from vamcei_jax.config.schema import InferenceConfig, StageConfig
from vamcei_jax.data.nifti import Volume
from vamcei_jax.data.preprocess import Centre, preprocess_image, preprocess_settings
from vamcei_jax.environment import jax_settings
from vamcei_jax.errors import InputError
from vamcei_jax.files import expanded
from vamcei_jax.inference.heart import find_centre
from vamcei_jax.inference.segmenter import Segmenter
from vamcei_jax.inference.tta import average_transforms, tta_transforms
from vamcei_jax.inference.volumes import BATCH, predict_volume, translate_volume
from vamcei_jax.inference.weights import NOT_DESCRIBED, check_inference, read_weights
from vamcei_jax.methods import cyclegan, distillation
from vamcei_jax.methods.state import Params, State
from vamcei_jax.pipeline.stages import ADAPT, LOCATOR, STAGES, TRANSLATED

Networks = dict[str, Params]


@jax_settings()
def load_segmenter(path: str | Path, **options: Any) -> Segmenter:
  """Loads a trained network for prediction.

  Args:
    path: folder of exported weights, of a run (its last stage is used) or of one stage of a run.
    **options: fields of InferenceConfig, such as tta=True, in place of the defaults of the weights.

  Returns:
    A callable: `segmenter(volume) -> Prediction`.

  Raises:
    InputError: the folder has no network or a damaged one, or the network cannot predict with these options.

  Example:
    >>> segmenter = vamcei_jax.load_segmenter("weights/lge")
    >>> segmenter("patient1.nii.gz").save("mask.nii.gz")
  """
  folder = expanded(path)
  check_inference(options)
  stage, config, inference, networks = load_networks(folder, check_shapes=False)
  inference = dataclasses.replace(inference, **options)
  method = STAGES[config.name].method
  if method is cyclegan:
    raise InputError(f"{folder}: a stage that translates and segments nothing; name the run or another stage of it")
  if inference.samples and method is distillation:
    raise InputError(f"{folder}: a plain U-Net has no latents to sample; name another stage, as RUN/target_vamcei")
  network = method.make_predict(config)
  predict = jax.jit(network)
  check_fit(predict, networks, config.data.size, folder)

  def segmenting(predict: Callable) -> Callable:
    segment = lambda image, key=None: predict_volume(predict, networks, image, key)
    if STAGES[config.name].target not in TRANSLATED:
      return segment
    return _after_translation(segment, stage.parent / "translate", TRANSLATED[STAGES[config.name].target][1])

  segment = glance = segmenting(predict)
  if inference.tta:
    segment = segmenting(jax.jit(average_transforms(network, transforms_of(config, folder))))
  return Segmenter(config, inference, segment, glance, _make_locator(stage, config))


def check_fit(predict: Callable, networks: Networks, size: tuple[int, int], folder: Path) -> None:
  """Checks that networks have the parameters that their configuration describes.

  Args:
    predict: jitted (networks, images) -> probabilities. It is traced here, and not again by the first prediction.
    networks: its first argument.
    size: pixels of the images.
    folder: of the networks.

  Raises:
    InputError: a network or a parameter is missing, or a parameter has another shape.
  """
  try:
    jax.eval_shape(predict, networks, jax.ShapeDtypeStruct((BATCH, *size, 1), jnp.float32))
  except (FlaxError, KeyError):  # a parameter has another shape or is missing; a network is missing
    raise InputError(f"{folder}: {NOT_DESCRIBED}") from None


def load_networks(folder: Path, *, check_shapes: bool = True) -> tuple[Path, StageConfig, InferenceConfig, Networks]:
  """The networks of exported weights, of a run's last stage or of one stage.

  Args:
    folder: of the weights, the run or the stage.
    check_shapes: of exported weights, see read_weights.

  Returns:
    The folder of the weights or of the stage, configuration, defaults of prediction, and networks.

  Raises:
    InputError: the folder has no network or a damaged one.
  """
  if "inference" in read_config(folder):
    return folder, *read_weights(folder, check_shapes=check_shapes)
  stage = last_stage(folder)
  config, networks = restore_stage(stage)
  return stage, config, InferenceConfig(extent_mm=field_extent(config)), networks


def field_extent(config: StageConfig) -> tuple[float, float] | None:
  """The sides of the field in mm, in order, of a stage that sees images cut out around the heart; else None."""
  if config.name != ADAPT or config.data.spacing is None:
    return None
  low, high = sorted(float(f"{n * config.data.spacing:.4g}") for n in config.data.size)
  return low, high


def transforms_of(config: StageConfig, folder: Path) -> np.ndarray:
  """The transforms of test-time augmentation of a stage; see tta_transforms.

  Raises:
    InputError: the stage was trained without rotation, scale and flip.
  """
  matrices = tta_transforms(config.augment)
  if len(matrices) == 1:
    raise InputError(f"{folder}: trained without rotation, scale or flip: nothing to average; leave out --tta")
  return matrices


def last_stage(folder: Path) -> Path:
  """The folder of the last stage of a run, or of the stage whose folder it is.

  Raises:
    InputError: no run, exported weights, or a run that has not reached this stage.
  """
  folder = folder.resolve()
  content = read_config(folder)
  if "inference" in content:
    raise InputError(f"{folder}: exported weights, not a run; name the workdir of a run")
  stage = run_folder(folder) / content["stages"][-1]
  if not stage.is_dir():
    raise InputError(f"{stage}: not there yet; let the run reach this stage")
  return stage


def run_folder(folder: Path) -> Path:
  """The workdir of a run, from this workdir or the folder of one of its stages."""
  return folder.parent if (folder / "checkpoints").is_dir() else folder


def restore_stage(folder: Path) -> tuple[StageConfig, Networks]:
  """Configuration and networks in the folder of a stage; prints a note if its training is not finished."""
  # Imported late: exported weights are read without Orbax, whose import takes 0.2 s.
  from vamcei_jax.training.checkpoints import is_finished, restore_networks

  config = read_stage_config(folder)
  networks = restore_networks(folder / "checkpoints", abstract_state(config))
  if not is_finished(folder / "checkpoints", config.train.steps):
    print(f"{folder}: training is not finished; its newest checkpoint is used", file=sys.stderr)
  return config, networks


def restore_final(folder: Path, config: StageConfig) -> Networks | None:
  """The networks after the last step of the stage in `folder`; None where its last checkpoint is missing or damaged."""
  # Imported late, as in restore_stage.
  from vamcei_jax.training.checkpoints import restore_last

  return restore_last(folder / "checkpoints", config.train.steps, abstract_state(config))


def abstract_state(config: StageConfig) -> State:
  """Shapes and types of the state of a stage."""
  if config.name not in STAGES:
    raise InputError(f"config.stages={config.name}: no such stage; choose from {', '.join(STAGES)}")
  return jax.eval_shape(lambda: STAGES[config.name].method.init_state(config, jax.random.key(0)))


def _after_translation(segment: Callable, folder: Path, direction: str) -> Callable:
  """A segmenter of images that the stage `translate` in `folder` translates first."""
  config, translators = restore_stage(folder)
  translate = partial(translate_volume, jax.jit(cyclegan.make_predict(config)), translators, direction)

  def translated(image: np.ndarray, key: Array | None = None) -> np.ndarray:
    return segment(translate(image), key)

  return translated


def _make_locator(folder: Path, config: StageConfig) -> Callable[[Volume], Centre]:
  """locate(volume) -> the pixel on which the field of a stage is centred; None for the middle of the image.

  Args:
    folder: of the stage.
    config: of the stage.
  """
  if not config.data.located:
    return lambda volume: None
  config, networks = restore_stage(run_folder(folder.resolve()) / LOCATOR)
  predict = jax.jit(STAGES[LOCATOR].method.make_predict(config))
  look, settings = partial(predict_volume, predict, networks), preprocess_settings(config.data)

  def locate(volume: Volume) -> Centre:
    image = preprocess_image(volume.voxels, volume.spacing, settings)
    return find_centre(look, image, volume.voxels.shape, volume.spacing, settings)

  return locate
