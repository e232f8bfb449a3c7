"""The networks of a run, as functions of volumes: what segments, what translates, what finds the heart."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from vamcei_jax.checkpoints import is_finished, restore_last, restore_networks
from vamcei_jax.config import preprocess_settings, read_config
from vamcei_jax.data.nifti import Volume
from vamcei_jax.data.preprocess import Centre, Preprocess, preprocess_image, restore_position
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.inference import average_views, find_heart, predict_volume, trained_views
from vamcei_jax.methods import cyclegan, distillation
from vamcei_jax.methods.state import Params, State
from vamcei_jax.stages import LOCATOR, STAGES, TRANSLATED
from vamcei_jax.weights import read_weights, read_weights_config

Networks = dict[str, Params]


def restore_predict(
  folder: Path, *, shipped: bool = False, views: bool | None = False, sampled: bool = False
) -> tuple[Callable[..., np.ndarray], ConfigDict]:
  """What the last stage of a run, or the stage whose folder it is, says of target images.

  Args:
    folder: of the run, or of the stage.
    shipped: whether it is a folder of exported weights instead.
    views: whether the mean over the views that augmentation has trained is taken (test-time augmentation); None for
      what exported weights come with.
    sampled: whether predict is going to be given keys.

  Returns:
    predict: (prepared volume (D, h, w), key = None) -> class probabilities (D, h, w, K), with z = μ, or with z drawn
      by the key.
    config: of the stage.

  Raises:
    InputError: no run or no checkpoint there, a stage that segments nothing, one without latents that is to be sampled,
      or one that was trained on no other views than the volumes' own.
  """
  last = folder if shipped else last_stage(folder)
  config, networks = restore_weights(folder) if shipped else restore_stage(last)
  stage = STAGES[config.stages[-1]]
  if stage.method is cyclegan:
    raise InputError(f"{folder}: a stage that translates and segments nothing; name the run or another stage of it")
  if sampled and stage.method is distillation:
    raise InputError(f"{folder}: a plain U-Net has no latents to draw; name another stage, as RUN/target_vamcei")
  network = stage.method.make_predict(config)
  if usual(config, "tta") if views is None else views:
    matrices = trained_views(config.augment)
    if len(matrices) == 1:
      raise InputError(f"{folder}: trained without rotation, scale or flip, so there are no views to take the mean of")
    network = average_views(network, matrices)
  predict = jax.jit(network)
  segment = lambda image, key=None: predict_volume(predict, networks, image, key)
  if stage.target not in TRANSLATED:
    return segment, config
  translation, translators = restore_stage(last.parent / "translate")
  translate = jax.jit(cyclegan.make_predict(translation))
  direction = TRANSLATED[stage.target][1]
  return lambda image, key=None: segment(translate_volume(translate, translators, direction, image), key), config


def restore_locator(folder: Path, config: ConfigDict) -> Callable[[Volume], Centre]:
  """Returns locate(volume) -> the pixel on which a stage's field is centred; see find_centre.

  None, the middle of the image, for a stage that does not look for the heart.

  Args:
    folder: of the run or the stage.
    config: of the stage.
  """
  if not config.data.get("located", False):
    return lambda volume: None
  config, networks = restore_stage(run_folder(folder.resolve()) / LOCATOR)
  predict = jax.jit(STAGES[LOCATOR].method.make_predict(config))
  settings = preprocess_settings(config)

  def locate(volume: Volume) -> Centre:
    image = preprocess_image(volume.voxels, volume.spacing, settings)
    return find_centre(predict, networks, image, volume.voxels.shape, volume.spacing, settings)

  return locate


def find_centre(
  predict: Callable, networks: Mapping, image: np.ndarray, shape: tuple, spacing: tuple, settings: Preprocess
) -> Centre:
  """The pixel (row, column) of the original grid where a coarse network finds the heart; None where it finds none.

  Args:
    predict, networks: compiled prediction and networks of the stage `locate`.
    image: (D, h, w), prepared for it with `settings`.
    shape, spacing: of the original volume.
  """
  heart = find_heart(predict_volume(predict, networks, image))
  return None if heart is None else restore_position(heart, shape, spacing, settings)


def last_stage(folder: Path) -> Path:
  """The folder of the last stage of a run, or of the stage whose folder it is.

  Raises:
    InputError: no run, or one that has not reached this stage.
  """
  folder = folder.resolve()
  config = read_config(folder)
  if "inference" in config:
    raise InputError(f"{folder}: exported weights, not a run; name them by --weights")
  stage = run_folder(folder) / config.stages[-1]
  if not stage.is_dir():
    raise InputError(f"{stage}: not there yet; let the run reach this stage")
  return stage


def restore_weights(folder: Path) -> tuple[ConfigDict, Networks]:
  """Configuration and networks of weights that were exported.

  Raises:
    InputError: they are not there, or not whole.
  """
  config = read_weights_config(folder)
  if len(config.stages) != 1 or config.stages[0] not in STAGES or "inference" not in config:
    raise InputError(f"{folder}: not exported weights; make some with python -m vamcei_jax.export")
  return config, read_weights(folder, config.inference.get("sha256", ""), _abstract_state(config).ema)


def usual(config: ConfigDict, name: str) -> bool | float | tuple | None:
  """What exported weights, whose configuration this is, come with: the value of a flag of predict's, or pixel_mm.

  0 for a run, and for weights of an earlier version that did not come with it.
  """
  return config.get("inference", {}).get(name, 0)


def restore_stage(folder: Path) -> tuple[ConfigDict, Networks]:
  """Configuration and networks of the stage that lives in a folder; says so where its training is not finished."""
  config = read_config(folder)
  networks = restore_networks(folder / "checkpoints", _abstract_state(config))
  if not is_finished(folder / "checkpoints", config):
    print(f"{folder}: training did not end; its newest checkpoint is used", file=sys.stderr)
  return config, networks


def restore_final(folder: Path, config: ConfigDict) -> Networks | None:
  """The networks that the stage of a folder has ended with; None where its last checkpoint cannot be had.

  Args:
    folder: of the stage.
    config: of the stage.
  """
  return restore_last(folder / "checkpoints", config, _abstract_state(config))


def run_folder(folder: Path) -> Path:
  """The workdir of the run that a folder, its workdir or that of one of its stages, belongs to."""
  return folder.parent if (folder / "checkpoints").is_dir() else folder


def translate_volume(translate: Callable, networks: Mapping, direction: str, image: np.ndarray) -> np.ndarray:
  """A prepared volume (D, h, w) in the other domain's contrast."""
  return predict_volume(translate, networks["translators"][direction], image)[..., 0]


def _abstract_state(config: ConfigDict) -> State:
  """The shapes of the state of a stage."""
  method = STAGES[config.stages[-1]].method
  return jax.eval_shape(lambda: method.init_state(config, jax.random.key(0)))
