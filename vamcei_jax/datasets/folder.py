"""A user's data: a folder of NIfTI volumes for each domain, in nnU-Net's layout or a flat one."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from vamcei_jax.data.labels import folded_values
from vamcei_jax.data.nifti import split_name, unread_reason, volume_name
from vamcei_jax.datasets.cases import Case, Cases, CasesConfig, Splits, split_by_role
from vamcei_jax.errors import InputError

_TREE = (
  "DOMAIN/imagesTr/NAME_0000.nii.gz with DOMAIN/labelsTr/NAME.nii.gz and, if there are any, imagesTs, labelsTs and "
  "dataset.json (nnU-Net's layout), or DOMAIN/images/NAME.nii.gz with DOMAIN/labels/NAME.nii.gz"
)


@dataclasses.dataclass(eq=False)
class FolderConfig(CasesConfig):
  """channel: number of a patient's image in nnU-Net's layout; images, labels: folder names of the flat layout."""

  channel: int = 0
  images: str = "images"
  labels: str = "labels"


class Folder(Cases):
  """A user's volumes, one example a patient; see Cases for the splits.

  A domain is a folder below the root; `data.source` and `data.target` are its name. A target needs no masks; those that
  it has are used for evaluation alone. nnU-Net's imagesTs are not in the training; if they have labels (labelsTs), they
  are the test.

      DOMAIN/imagesTr/NAME_0000.nii.gz   DOMAIN/labelsTr/NAME.nii.gz   (imagesTs, labelsTs and dataset.json, if any)

      DOMAIN/images/NAME.nii.gz          DOMAIN/labels/NAME.nii.gz     (names by data.options.images and labels)

  `data.label_values` are the values in masks. A dataset.json must contain one of each class.
  """

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Lay the data out as {_TREE}."
  CONFIG = FolderConfig

  @classmethod
  def splits(cls, root: Path, config: FolderConfig) -> Splits:
    folder = Path(root, config.domain)
    if (folder / "imagesTr").is_dir():
      _check_description(folder / "dataset.json", config)
    cases, held_out = [*(_cases(*place) for place in _places(folder, config)), []][:2]
    if not cases:
      problem = "no volumes in it" if folder.is_dir() else "no such folder"
      raise InputError(f"{folder}: {problem}; expected {_TREE}. Correct --config.data.root or the domain's name.")
    return split_by_role(cases, config, held_out)

  @classmethod
  def unread(cls, root: Path, config: FolderConfig) -> dict[str, str]:
    unread: dict[str, str] = {}
    for place in _places(Path(root, config.domain), config):
      unread |= _unread_images(place[0], place[2]) | _unread_masks(*place)
    return unread


def _places(folder: Path, config: FolderConfig) -> tuple[tuple[Path, Path, str], ...]:
  """(images, masks, ending of the images' names) of the patients of a domain, and of those that nnU-Net holds out."""
  if not (folder / "imagesTr").is_dir():
    return ((folder / config.images, folder / config.labels, ""),)
  ending = f"_{config.channel:04d}"
  return tuple((folder / f"images{part}", folder / f"labels{part}", ending) for part in ("Tr", "Ts"))


def _cases(images: Path, masks: Path, ending: str) -> list[Case]:
  """The images whose names have the ending, each with the mask of the same name, ordered by name."""
  masks_by_name = {name: file for file in sorted(masks.glob("*"), reverse=True) if (name := volume_name(file))}
  cases = []
  for image in sorted(images.glob("*")):
    name = volume_name(image)
    if name is None or not re.search(f"{ending}$", name):
      continue
    name = name.removesuffix(ending)
    cases.append(Case(name, image, masks_by_name.get(name, masks / f"{name}.nii.gz")))
  if cases and masks_by_name and not {case.name for case in cases} & set(masks_by_name):
    raise InputError(
      f"{masks}: no mask bears the name of an image, as {cases[0].name}; found {min(masks_by_name)}. Rename them."
    )
  return cases


def _unread_images(images: Path, ending: str) -> dict[str, str]:
  """File -> reason, of the images in a folder that are in no case whatever channel is chosen."""
  unread = {}
  for file in sorted(images.glob("*")):
    name = volume_name(file)
    if reason := unread_reason(file):
      unread[str(file)] = reason
    elif name is not None and ending and not re.search(r"_\d{4}$", name):
      unread[str(file)] = f"its name ends in no channel. Rename it to {name}{ending}{split_name(file)[1]}."
  return unread


def _unread_masks(images: Path, masks: Path, ending: str) -> dict[str, str]:
  """File -> reason, of the masks in a folder that belong to no image, or beside another one of their name."""
  unread: dict[str, str] = {}
  first: dict[str, Path] = {}
  patients = {case.name for case in _cases(images, masks, ending)}
  for file in sorted(masks.glob("*")):
    name = volume_name(file)
    if reason := unread_reason(file):
      unread[str(file)] = reason
    elif name is not None and name not in patients:
      unread[str(file)] = f"no image {name}{ending} in {images}. Add it, or remove the mask."
    elif name in first:
      unread[str(file)] = f"a second mask of {name}, beside {first[name].name}. Remove one of them."
    elif name is not None:
      first[name] = file
  return unread


def _check_description(file: Path, config: FolderConfig) -> None:
  """Checks the configuration against nnU-Net's dataset.json, of version 1 or 2, if there is one."""
  if not file.exists():
    return
  try:
    content = json.loads(file.read_bytes())  # also with a byte order mark
    if not isinstance(content, dict):
      raise TypeError(f"a {type(content).__name__} in place of an object")
    channels = _numbered(content.get("channel_names", content.get("modality", {})))
    labels = _numbered(content.get("labels", {}))
    named = labels.items() if "background" in labels else [(name, int(value)) for value, name in labels.items()]
    known = {number for _, value in named for number in (value if isinstance(value, list) else [value])}
  except (ValueError, AttributeError, TypeError, RecursionError) as error:
    raise InputError(f"{file}: not nnU-Net's dataset.json ({error}). Correct or remove it.") from error
  if channels and str(config.channel) not in channels:
    raise InputError(f"{file}: no channel {config.channel}, but {channels}. Correct config.data.options.channel.")
  # Of several values that are one class, one is enough: they may be those of several folders.
  unknown = [values for values in folded_values(config.label_values) if not known.intersection(values)]
  if known and unknown:
    missing = " or ".join(map(str, unknown[0]))
    raise InputError(f"{file}: its labels are {labels}, without {missing}. Correct config.data.label_values.")


def _numbered(names: Any) -> Any:
  """Number as text -> name, of a list of names; a mapping as it is."""
  return {str(number): name for number, name in enumerate(names)} if isinstance(names, list) else names
