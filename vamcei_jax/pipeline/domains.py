"""The datasets of a run: source and target, prepared and, after the stage `translate`, in each other's contrast."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from nibabel.orientations import inv_ornt_aff

from vamcei_jax.config.schema import DataConfig, StageConfig
from vamcei_jax.data.geometry import TURNS
from vamcei_jax.data.labels import CLASSES
from vamcei_jax.data.loader import Patient, load_patients, load_truths
from vamcei_jax.data.preprocess import covers, preprocess_settings
from vamcei_jax.datasets import PREPARED_ELSEWHERE, left_out, lost_directions, prepare, refuse_shared
from vamcei_jax.datasets.translated import prepare_translated
from vamcei_jax.datasets.volumes import ROLES
from vamcei_jax.files import expanded, write_text
from vamcei_jax.inference.heart import find_centre, find_turn, look_turned
from vamcei_jax.inference.volumes import predict_volume
from vamcei_jax.methods.state import Params
from vamcei_jax.pipeline.stages import LOCATOR, TRANSLATED

CENTRES_FILE, TURNS_FILE = "centres.json", "turns.json"
PICTURED = 6  # cases in a figure
LOOKED_AT = 20  # patients whose masks are checked for the order of their values
SAME_PATIENTS = "same_patients"  # the dataset with masks of the target's patients, in the stage adapt
Datasets = dict[str, tfds.core.DatasetBuilder]


def prepare_datasets(data: DataConfig, workdir: Path) -> Datasets:
  """Role -> prepared dataset; centred on the hearts, if the stage `locate` has found them.

  Raises:
    InputError: of vamcei_jax.datasets.prepare.
  """
  fields: dict[str, dict] = {"source": {}, "target": {}}
  if data.located:
    read = lambda file: json.loads((workdir / LOCATOR / file).read_text(encoding="utf-8"))
    turns = read(TURNS_FILE) if data.orientation == "estimate" else None
    fields = {"source": {"centres": "mask"}, "target": {"centres": read(CENTRES_FILE), "turns": turns}}
  # Files that cannot be used were refused, or left out, when the data were prepared for the locator.
  datasets = {role: prepare_domain(data, role, leave_out=data.located, **fields[role]) for role in ROLES}
  refuse_shared(datasets["source"], datasets["target"])
  for role, builder in datasets.items():
    announce(data, role, builder)
  return datasets


def announce(data: DataConfig, role: str, builder: tfds.core.DatasetBuilder) -> None:
  """Prints what is suspicious about the headers of a domain and its masks, and how many files were left out.

  Masks of the target are for evaluation, and a run does not open them before.
  """
  if not data.located:
    for note in notes(data, role, builder, masks=role != "target"):
      print(note, flush=True)
  if files := left_out(builder):
    example = f"{len(files)} files were left out when it was prepared, among them {next(iter(files))}"
    print(f"{builder.info.full_name}: {example} (python -m vamcei_jax.prepare lists them)")


def domain_of(data: DataConfig, role: str) -> str:
  """The domain of the "source", of the "target" or of "same_patients"."""
  return {"source": data.source, "target": data.target, SAME_PATIENTS: data.same_patients}[role] or ""


def prepare_domain(data: DataConfig, role: str, **arguments) -> tfds.core.DatasetBuilder:
  """The prepared dataset of a domain, see domain_of; **arguments as in vamcei_jax.datasets.prepare."""
  return prepare(
    data.name,
    domain_of(data, role),
    "target" if role == "target" else "source",
    data_dir=str(expanded(data.prepared_dir, PREPARED_ELSEWHERE)),
    root=data.root,
    preprocess=preprocess_settings(data),
    label_values=data.label_values,
    plane=data.plane,
    orientation="file" if data.orientation == "file" else "header",
    **data.options,
    **arguments,
  )


def notes(data: DataConfig, role: str, builder: tfds.core.DatasetBuilder, *, masks: bool) -> list[str]:
  """Lines on what is suspicious about the headers of a domain and, if they are to be read, about its masks."""
  return [note for note in (lost_note(data, role, builder), order_note(role, builder) if masks else "") if note]


def order_note(role: str, builder: tfds.core.DatasetBuilder) -> str:
  """A line on a domain whose masks seem to have their values in another order; empty if the order seems right."""
  truths = itertools.islice(load_truths(builder), LOOKED_AT)
  shares = [share for share in map(outline_at_myo, truths) if np.isfinite(share)]
  # 0.87 or more in each mask of ACDC, EMIDEC and MS-CMRSeg, and 0.46 or less with two or three values exchanged.
  if not shares or (median := np.median(shares)) >= 0.5:
    return ""
  found = f"{role}: only {median:.0%} of the outline of LV lies at Myo (median of {len(shares)} masks); "
  return found + "config.data.label_values must be the values of background, Myo, LV and RV, in this order"


def outline_at_myo(truth: np.ndarray) -> float:
  """The share of the LV's outline, within slices, that lies at Myo: edges between two pixels; NaN without an LV.

  Args:
    truth: (D, H, W) class indices.
  """
  padded = np.pad(truth, ((0, 0), (1, 1), (1, 1)))
  pairs = [(padded[:, 1:], padded[:, :-1]), (padded[:, :, 1:], padded[:, :, :-1])]
  at_myo = outline = 0
  for one, other in (*pairs, *((other, one) for one, other in pairs)):
    outer = other[(one == CLASSES.index("LV")) & (other != CLASSES.index("LV"))]
    outline += outer.size
    at_myo += int((outer == CLASSES.index("Myo")).sum())
  return at_myo / outline if outline else float("nan")


def lost_note(data: DataConfig, role: str, builder: tfds.core.DatasetBuilder) -> str:
  """A line on the headers of a domain that have lost the directions, and on what is done; empty if there are none."""
  if not (lost := lost_directions(builder)):
    return ""
  believed = "slices are read as the header says"
  done = {
    "header": believed,
    "file": "slices are read as stored",
    "estimate": f"the stage {LOCATOR} finds them" if role == "target" else believed,
  }
  found = f"{role}: headers without the directions of rows and columns: {len(lost)}, among them that of {lost[0]}; "
  if role == SAME_PATIENTS:
    return found + "their masks are not used, as it is not known at which height their slices lie"
  return found + f"{done[data.orientation]}. Other ways: config.data.orientation (docs/headers.md)"


def with_datasets(config: StageConfig, datasets: Datasets) -> StageConfig:
  """A stage's configuration with the names of its datasets, which contain a digest of their files and settings."""
  names = tuple(datasets[role].info.full_name for role in (SAME_PATIENTS, *ROLES) if role in datasets)
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

  That is the middle of the image where no heart is found. If the orientation is estimated, it writes turns.json, too:
  the number in TURNS of each patient whose directions are lost; its centre is then a pixel of the turned slices.
  Existing files are used as they are, because sums are rounded in another order on another machine.
  """
  files = (TURNS_FILE, CENTRES_FILE) if data.orientation == "estimate" else (CENTRES_FILE,)
  if all((folder / file).exists() for file in files):
    return
  centres: dict[str, Sequence[float]] = {}
  turns: dict[str, int] = {}
  settings = preprocess_settings(data)
  lost = set(lost_directions(target)) if data.orientation == "estimate" else set()
  look = partial(predict_volume, predict, networks)
  for split in target.info.splits:
    for patient in load_patients(target, split, labelled=False):
      if patient.name in centres:  # of a split before
        continue
      if not covers(patient.shape, patient.spacing, settings):
        print(f"{patient.name}: wider than the locator's field; enlarge config.stage.{LOCATOR}.data.size", flush=True)
      turn = find_turn(look, patient.image) if patient.name in lost else 0
      look_right = partial(look_turned, look, TURNS[turn])
      centre = find_centre(look_right, patient.image, patient.shape, patient.spacing, settings) or patient.centre
      if patient.name in lost:
        print(f"{patient.name}: way {turn} of the eight ways in which its slices can lie", flush=True)
        turns[patient.name] = turn
        place = np.linalg.inv(inv_ornt_aff(TURNS[turn], patient.shape)) @ (0, *centre, 1)
        centre = float(place[1]), float(place[2])
      centres[patient.name] = centre
  if data.orientation == "estimate":
    write_text(folder / TURNS_FILE, json.dumps(turns, indent=2) + "\n")
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
