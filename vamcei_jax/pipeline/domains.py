"""The datasets of a run: source and target, prepared and, after the stage `translate`, in each other's contrast."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import tensorflow_datasets as tfds

from vamcei_jax.config.schema import DataConfig, StageConfig
from vamcei_jax.data.loader import Patient, load_patients
from vamcei_jax.data.preprocess import covers, preprocess_settings
from vamcei_jax.datasets import PREPARED_ELSEWHERE, left_out, prepare, refuse_shared
from vamcei_jax.datasets.translated import prepare_translated
from vamcei_jax.datasets.volumes import ROLES
from vamcei_jax.files import expanded, write_text
from vamcei_jax.inference.heart import find_centre
from vamcei_jax.methods.state import Params
from vamcei_jax.pipeline.stages import LOCATOR, TRANSLATED

CENTRES_FILE = "centres.json"
PICTURED = 6  # cases in a figure
Datasets = dict[str, tfds.core.DatasetBuilder]


def prepare_datasets(data: DataConfig, workdir: Path) -> Datasets:
  """Role -> prepared dataset; centred on the hearts, if the stage `locate` has found them.

  Raises:
    InputError: of vamcei_jax.datasets.prepare.
  """
  centres = dict.fromkeys(ROLES, "image")
  if data.located:
    centres = {"source": "mask", "target": json.loads((workdir / LOCATOR / CENTRES_FILE).read_text(encoding="utf-8"))}
  # Files that cannot be used were refused, or left out, when the data were prepared for the locator.
  datasets = {role: prepare_domain(data, role, centres=centres[role], leave_out=data.located) for role in ROLES}
  refuse_shared(datasets["source"], datasets["target"])
  for builder in datasets.values():
    if files := left_out(builder):
      example = f"{len(files)} files were left out when it was prepared, among them {next(iter(files))}"
      print(f"{builder.info.full_name}: {example} (python -m vamcei_jax.prepare lists them)")
  return datasets


def prepare_domain(data: DataConfig, role: str, **arguments) -> tfds.core.DatasetBuilder:
  """The prepared dataset of the "source" or the "target"; **arguments as in vamcei_jax.datasets.prepare."""
  return prepare(
    data.name,
    data.source if role == "source" else data.target,
    role,
    data_dir=str(expanded(data.prepared_dir, PREPARED_ELSEWHERE)),
    root=data.root,
    preprocess=preprocess_settings(data),
    label_values=data.label_values,
    plane=data.plane,
    **data.options,
    **arguments,
  )


def with_datasets(config: StageConfig, datasets: Datasets) -> StageConfig:
  """A stage's configuration with the names of its datasets, which contain a digest of their files and settings."""
  names = tuple(datasets[role].info.full_name for role in ROLES)
  return dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=names))


def scored_patients(
  target: tfds.core.DatasetBuilder, splits: Sequence[str] = ("test", "validation")
) -> tuple[str, list[Patient]]:
  """The first split that has labelled patients, and these; else a few unlabelled patients of "train" for figures."""
  for split in splits:
    if patients := list(load_patients(target, split)):
      return split, patients
  return "train", list(itertools.islice(load_patients(target, "train", labelled=False), PICTURED))


def locate_hearts(
  data: DataConfig, predict: Callable, networks: dict[str, Params], target: tfds.core.DatasetBuilder, folder: Path
) -> None:
  """Writes centres.json: the pixel on which the field is centred, for each patient of the target.

  That is the middle of the image where no heart is found. An existing file is used as it is, because sums are rounded
  in another order on another machine.
  """
  if (folder / CENTRES_FILE).exists():
    return
  centres, settings = {}, preprocess_settings(data)
  for split in target.info.splits:
    for patient in load_patients(target, split, labelled=False):
      if not covers(patient.shape, patient.spacing, settings):
        print(f"{patient.name}: wider than the locator's field; enlarge config.stage.{LOCATOR}.data.size", flush=True)
      centre = find_centre(predict, networks, patient.image, patient.shape, patient.spacing, settings)
      centres[patient.name] = patient.centre if centre is None else centre
  write_text(folder / CENTRES_FILE, json.dumps(centres, indent=2) + "\n")


def translate_datasets(
  translate: Callable, networks: Mapping[str, Params], datasets: Datasets, folder: Path
) -> Datasets:
  """Both datasets in the contrast of the other, by translate(networks, direction, image), written once to `folder`."""
  translated = {}
  for name, (original, direction) in TRANSLATED.items():
    # The name contains a digest of preprocessing and files, so another original is translated again.
    destination = folder / name / datasets[original].info.full_name
    translated[name] = prepare_translated(datasets[original], partial(translate, networks, direction), destination)
  return translated
