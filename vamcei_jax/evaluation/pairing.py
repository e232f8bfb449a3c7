"""Files that belong together by their names: predictions, labels and images; and what they score."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vamcei_jax.data.labels import LabelValues
from vamcei_jax.data.nifti import (
  MANUAL,
  MAP_ENDINGS,
  Volume,
  check_grid,
  name_volumes,
  read_classes,
  read_mask,
  read_volume,
  volume_name,
)
from vamcei_jax.data.preprocess import Preprocess, preprocess_image
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.metrics import measure
from vamcei_jax.evaluation.statistics import Scores

Files = Mapping[str, Path]


def list_labels(folder: Path) -> dict[str, Path]:
  """Name -> mask: the files NAME_manual of a folder if it has some (others are images), else all but maps.

  Raises:
    InputError: no such folder, or none in it.
  """
  named = name_volumes(folder)
  manual = {name.removesuffix(MANUAL): path for name, path in named.items() if name.endswith(MANUAL)}
  return manual or {name: path for name, path in named.items() if not name.endswith(MAP_ENDINGS)}


def match(paths: Iterable[Path], names: Iterable[str]) -> dict[str, Path]:
  """Name -> the file of that name, less nnU-Net's channel (_0000), of those that have one, in the files' order.

  Raises:
    InputError: a name has two files.
  """
  names, matched = set(names), {}
  for path in paths:
    name = volume_name(path)
    name = name if name in names else re.sub(r"_\d{4}$", "", name)
    if name in matched:
      raise InputError(f"{path}: a second file of {name}, beside {matched[name].name}; remove one of them")
    if name in names:
      matched[name] = path
  return matched


def score_files(predictions: Files, labels: Files, label_values: LabelValues) -> tuple[Scores, list[str]]:
  """All metrics of the predictions by name, and one line for each that cannot be scored."""
  scores, failures = {}, []
  for name, path in tqdm(predictions.items(), "scores", unit="volume", disable=None):
    try:
      truth = read_mask(labels[name], label_values)
      scores[name] = measure(read_classes(path, truth, label_values), truth.voxels, truth.spacing)
    except InputError as error:
      failures.append(str(error))
  return scores, failures


def read_image(path: Path, truth: Volume) -> np.ndarray:
  """The image of a mask, (D, H, W) in [0, 1].

  Raises:
    InputError: it cannot be read, or lies on another grid.
  """
  volume = read_volume(path)
  check_grid(path, volume, truth)
  return preprocess_image(volume.voxels, volume.spacing, Preprocess(size=volume.voxels.shape[1:]))
