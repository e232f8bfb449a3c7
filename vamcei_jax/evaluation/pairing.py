"""Pairs files by patient name: predicted masks, true masks and images."""

import dataclasses
import os
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from vamcei_jax.data.nifti import MANUAL, MAP_ENDINGS, list_unread, list_volumes, name_volumes, volume_name
from vamcei_jax.errors import InputError
from vamcei_jax.files import as_text

# A folder, a single file, or name -> file.
Source = str | os.PathLike | Mapping[str, str | os.PathLike]


@dataclasses.dataclass(frozen=True)
class Pairs:
  """The files of an evaluation.

  labels: name -> true mask.
  predictions: method -> name -> predicted mask; the method to compare with comes first.
  images: name -> image; None if no images are given.
  origins: "predictions", "labels", "against", "images" -> where these files come from, for those that are given.
  notes: a line for each method with predictions that have no label.
  missing: a line for each label without a prediction, and for each image that is in a format that is not read.
  """

  labels: Mapping[str, Path]
  predictions: Mapping[str, Mapping[str, Path]]
  images: Mapping[str, Path] | None
  origins: Mapping[str, str]
  notes: tuple[str, ...]
  missing: tuple[str, ...]


def pair_files(
  predictions: Source, labels: Source, *, against: Source | None = None, images: Source | None = None
) -> Pairs:
  """Finds the predictions and the image of each label. It opens no file.

  Args:
    predictions: masks to score.
    labels: true masks. If this is a single file, single files of any name may be given for the others.
    against: masks to compare with.
    images: of the same patients.

  Raises:
    InputError: a folder that is missing or empty, two files of one name, or no file with the name of a label.
  """
  sources = {"predictions": predictions, "labels": labels, "against": against, "images": images}
  given: dict[str, Source] = {role: source for role, source in sources.items() if source is not None}
  origins = {role: role if isinstance(source, Mapping) else str(source) for role, source in given.items()}
  methods = name_methods(given, origins)
  named = list_labels(labels)
  if _is_file(labels):
    given = {role: _for_each(named, source) for role, source in given.items()}

  paired_images = match(list_files(given["images"], "images"), named) if "images" in given else None
  if paired_images == {}:
    where = origins["images"]
    raise InputError(f"{where}: no image bears the name of a label in {origins['labels']}; correct --images")

  paired, notes, missing = {}, [], []
  for method, role in methods.items():
    files, where = list_files(given[role], role), origins[role]
    paired[method] = match(files, named)
    if not paired[method]:
      names = f"{origins['labels']}, as {next(iter(named))}; found {files[0][1].name}"
      raise InputError(f"{where}: no prediction bears the name of a label in {names}. Rename them.")
    if unlabelled := len(files) - len(paired[method]):
      notes.append(f"{where}: {unlabelled} of {len(files)} predictions have no label and are not scored")
    unpredicted = [label for name, label in named.items() if name not in paired[method]]
    missing += [f"{label}: no prediction of it in {where}; predict it, or remove it" for label in unpredicted]
  folders = [Path(source) for source in given.values() if not isinstance(source, Mapping)]
  missing += [line for folder in dict.fromkeys(folders) for line in list_unread(folder)]
  return Pairs(named, paired, paired_images, origins, tuple(notes), tuple(missing))


def name_methods(given: Mapping[str, Source], origins: Mapping[str, str]) -> dict[str, str]:
  """Method -> role, "against" before "predictions".

  A method has the last part of its folder's path as its name, or the whole path if both last parts are equal.

  Raises:
    InputError: both roles have the same files.
  """
  roles = [role for role in ("against", "predictions") if role in given]
  place = lambda source: source if isinstance(source, Mapping) else Path(source).resolve()
  places = [place(given[role]) for role in roles]
  if len(roles) == 2 and places[0] == places[1]:
    raise InputError(f"{origins['against']}: the folder of --predictions itself; correct --against")
  last_parts = [place.name if isinstance(place, Path) else role for role, place in zip(roles, places, strict=True)]
  choices = (last_parts, [origins[role] for role in roles], roles)
  names = next(names for names in choices if len(set(names)) == len(roles))
  return dict(zip(map(as_text, names), roles, strict=True))


def list_labels(source: Source) -> dict[str, Path]:
  """Name -> true mask.

  Of a folder, these are the files NAME_manual if it has some (the others are images then), else all files but maps.

  Raises:
    InputError: no such folder, or no mask in it.
  """
  if isinstance(source, Mapping) or _is_file(source):
    return {name.removesuffix(MANUAL): path for name, path in list_files(source, "labels")}
  named = name_volumes(Path(source))
  manual = {name.removesuffix(MANUAL): path for name, path in named.items() if name.endswith(MANUAL)}
  return manual or {name: path for name, path in named.items() if not name.endswith(MAP_ENDINGS)}


def list_files(source: Source, role: str) -> list[tuple[str, Path]]:
  """(name, file) of a source; of a folder, in the order of names and without masks and maps beside their volumes.

  Names in a folder begin with the folders in it: "sub-01/lge".

  Raises:
    InputError: no file in it; a mapping is called by its role.
  """
  if not isinstance(source, Mapping):
    folder = None if _is_file(source) else Path(source)
    return [(volume_name(path, folder) or path.name, path) for path in list_volumes(Path(source))]
  if not source:
    raise InputError(f"{role}: no file in it; map names of patients to files")
  return [(unicodedata.normalize("NFC", name), Path(path)) for name, path in source.items()]


def match(files: Iterable[tuple[str, Path]], names: Collection[str]) -> dict[str, Path]:
  """Name -> the file of this name, with or without nnU-Net's channel _0000, for the names that have a file.

  Raises:
    InputError: a name has two files.
  """
  matched: dict[str, Path] = {}
  for name, path in files:
    name = name if name in names else name.removesuffix("_0000")
    if name in matched:
      raise InputError(f"{path}: a second file of {name}, beside {matched[name].name}; remove one of them")
    if name in names:
      matched[name] = path
  return matched


def _for_each(names: Iterable[str], source: Source) -> Source:
  """A single file under each of the names; another source as it is."""
  if isinstance(source, Mapping) or not _is_file(source):
    return source
  return {name: source for name in names}


def _is_file(source: Source) -> bool:
  return not isinstance(source, Mapping) and Path(source).is_file()
