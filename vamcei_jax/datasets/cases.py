"""Datasets of NIfTI files: the patients of each split, and the check of their files."""

import abc
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

import tensorflow_datasets as tfds
from nibabel.orientations import apply_orientation
from tqdm import tqdm

from vamcei_jax.data.geometry import TURNS
from vamcei_jax.data.nifti import Files, Volume, read_classes, read_volume
from vamcei_jax.datasets.volumes import VolumesConfig, dataset_info, example
from vamcei_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Case:
  """A patient's files.

  name: of the patient.
  image: a file, or the files of its slices.
  mask: likewise; None for a patient without a mask. The files need not exist yet.
  """

  name: str
  image: Files
  mask: Files | None = None

  @property
  def files(self) -> list[Path]:
    """The files of the image and of the mask."""
    return [file for files in (self.image, self.mask) if files is not None for file in listed(files)]


Splits = Mapping[str, Sequence[Case]]


@dataclasses.dataclass(eq=False)
class CasesConfig(VolumesConfig):
  """validation: number of a target's labelled patients, the first, in the validation; the others are the test."""

  validation: int = 5


class Cases(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Base of the datasets of NIfTI files, one example a patient. Subclasses define `splits`.

  source: train = the patients with masks.
  target: train = all patients, whose masks are never opened (transductive, as published); validation = the first few
    of the patients with masks; test = the other patients with masks. A split without patients is left out.
  """

  VERSION = tfds.core.Version("1.0.0")
  CONFIG = CasesConfig
  DOMAINS: ClassVar[tuple[str, ...]] = ()

  @classmethod
  @abc.abstractmethod
  def splits(cls, root: Path, config: CasesConfig) -> Splits:
    """Finds the patients of a domain in a role: split -> patients.

    Raises:
      InputError: none are found; it describes the folder tree.
    """

  @classmethod
  def unread(cls, root: Path, config: CasesConfig) -> dict[str, str]:
    """File -> reason and way out, of the images and masks in the folders of a domain that belong to no patient."""
    del root, config
    return {}

  @property
  def config(self) -> CasesConfig:
    """The configuration of this builder."""
    return cast(CasesConfig, self.builder_config)

  def _info(self) -> tfds.core.DatasetInfo:
    below = lambda file: relative(file, self.config.root)  # the data may be moved
    left_out = {below(file): reason for file, reason in self.config.left_out.items()}
    digests = {digest: below(file) for digest, file in self.config.digests.items()}
    metadata = tfds.core.MetadataDict(left_out=left_out, digests=digests, lost=list(self.config.lost))
    return dataset_info(self, description=self.__doc__, metadata=metadata)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    splits = usable(self.splits(Path(dl_manager.manual_dir), self.config), self.config.left_out)
    return {split: self._generate_examples(split, cases) for split, cases in splits.items()}

  def _generate_examples(self, split: str, cases: Sequence[Case]) -> Iterator[tuple[int, dict]]:
    config = self.config
    for number, case in enumerate(tqdm(cases, f"{config.domain} {split}", unit="volume", disable=None)):
      volume = read_image(case.image, config)
      classes = None if case.mask is None else read_classes(case.mask, volume, config.label_values)
      turn = TURNS[config.turns.get(case.name, 0)]
      turned = None if classes is None else apply_orientation(classes, turn)
      yield number, example(case.name, volume.turned(turn), turned, config)


def read_image(image: Files, config: CasesConfig) -> Volume:
  """A patient's image, before its slices are turned."""
  return read_volume(image, config.plane, keep_lost=config.orientation == "file")


def split_by_role(cases: Sequence[Case], config: CasesConfig, held_out: Sequence[Case] = ()) -> Splits:
  """The splits of a domain in its role, see `Cases`.

  Args:
    cases: in order. In a source, a mask that is named must exist; in a target, one that does not exist is ignored.
    config: its role and number of validation patients.
    held_out: patients of a target that are not in the training. If some of them have masks, they alone are the test.
  """
  if config.role == "source":
    return _filled({"train": [case for case in cases if case.mask is not None]})
  cases, held_out = ([_without_missing_mask(case) for case in some] for some in (cases, held_out))
  labelled = [case for case in cases if case.mask is not None]
  validation, rest = labelled[: config.validation], labelled[config.validation :]
  test = [case for case in held_out if case.mask is not None] or rest
  unlabelled = [dataclasses.replace(case, mask=None) for case in cases]
  return _filled({"train": unlabelled, "validation": validation, "test": test})


class Examined(NamedTuple):
  """What was found in the files of a dataset.

  problems: file -> reason and way out, of the files that cannot be used.
  digests: digest -> file, of the other images.
  lost: names of the patients whose headers have lost the directions of rows and columns.
  """

  problems: dict[str, str]
  digests: dict[str, str]
  lost: list[str]


def examine(splits: Splits, config: CasesConfig) -> Examined:
  """Reads every file once, and finds those that cannot be used.

  These are: a file that cannot be read; a mask that is missing, empty, not on its image's grid or of unknown values; an
  image of one value, a copy of another image, and a second image of a patient's name.
  """
  masks = {case.image: case.mask for cases in splits.values() for case in cases if case.mask is not None}
  names = {case.image: case.name for cases in splits.values() for case in cases}
  problems: dict[str, str] = {}
  digests: dict[str, str] = {}
  named: dict[str, str] = {}
  lost: list[str] = []
  for image in tqdm(names, f"{config.domain} files", unit="volume", disable=None):
    mask, current = masks.get(image), image
    try:
      if names[image] in named:
        raise InputError(f"a second image of {names[image]}, beside {named[names[image]]}. Rename one of them.")
      volume = read_image(image, config)
      digest = _new_digest(volume, digests)
      if volume.lost:
        lost.append(names[image])
      if config.role == "target":  # a target's image can be used if its mask cannot
        digests[digest] = named[names[image]] = str(listed(image)[0])
      if mask is not None:
        current = mask
        if missing := [file for file in listed(mask) if not file.exists()]:
          raise InputError(f"{missing[0]}: no such mask, and {listed(image)[0].name} needs one. Add it.")
        if not read_classes(mask, volume, config.label_values).any():
          raise InputError("the mask is empty. Correct it.")
      digests[digest] = named[names[image]] = str(listed(image)[0])
    except InputError as error:
      file = str(listed(current)[0])
      problems[file] = str(error).removeprefix(f"{file}: ")
  return Examined(problems, digests, [name for name in lost if name in named])


def _new_digest(volume: Volume, digests: Mapping[str, str]) -> str:
  """The digest of an image. Raises an InputError for an image of one value, or one whose digest is known."""
  digest = hashlib.sha256(repr(volume.voxels.shape).encode() + volume.voxels.tobytes()).hexdigest()
  if digest in digests:
    raise InputError(f"the same image as {digests[digest]}. Remove one of them.")
  if volume.voxels.min() == volume.voxels.max():
    raise InputError("all voxels have one value. Export it again.")
  return digest


def usable(splits: Splits, left_out: Iterable[str]) -> Splits:
  """The splits without the patients one of whose files is left out. A mask counts only in splits that use it."""
  bad = set(left_out)
  return _filled(
    {split: [case for case in cases if not bad & {str(file) for file in case.files}] for split, cases in splits.items()}
  )


def listed(files: Files) -> list[Path]:
  """A volume's files as a list, also of a volume in a single file."""
  return [Path(files)] if isinstance(files, str | os.PathLike) else [Path(file) for file in files]


def fingerprint(splits: Splits, root: Path, digests: Mapping[Path, str | None]) -> list[tuple]:
  """(split, patient, file below the root, digest) of every file: the identity of the data."""
  below = lambda file: Path(relative(file, root)).as_posix()
  listing = [(split, case.name, file) for split, cases in splits.items() for case in cases for file in case.files]
  return [(split, name, below(file), digests[file]) for split, name, file in listing]


def relative(file: str | Path, root: str | Path) -> str:
  """The path of a file as seen from the root."""
  return os.path.relpath(os.path.abspath(file), os.path.abspath(root))


def _without_missing_mask(case: Case) -> Case:
  exists = case.mask is not None and any(file.exists() for file in listed(case.mask))
  return case if exists else dataclasses.replace(case, mask=None)


def _filled(splits: Splits) -> Splits:
  return {split: cases for split, cases in splits.items() if cases}
