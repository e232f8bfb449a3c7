"""Datasets: TFDS builders of prepared volumes. `prepare` builds a dataset once and reuses it afterwards."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from vamcei_jax.data.labels import LabelValues, folded_values
from vamcei_jax.data.loader import naming_damage
from vamcei_jax.data.preprocess import Preprocess
from vamcei_jax.datasets.cases import Cases, CasesConfig, Splits, examine, fingerprint, usable
from vamcei_jax.datasets.digests import file_digests
from vamcei_jax.datasets.folder import Folder
from vamcei_jax.datasets.mmwhs import Mmwhs
from vamcei_jax.datasets.mscmrseg import Mscmrseg
from vamcei_jax.datasets.myops import Myops
from vamcei_jax.datasets.phantom import Phantom
from vamcei_jax.datasets.volumes import VolumesConfig
from vamcei_jax.errors import InputError
from vamcei_jax.files import expanded, writable

PREPARED_ELSEWHERE = "name another folder: --config.data.prepared_dir=DIR"
Builder = type[Cases] | type[Phantom]
BUILDERS: dict[str, Builder] = {
  "phantom": Phantom,
  "mscmrseg": Mscmrseg,
  "myops": Myops,
  "mmwhs": Mmwhs,
  "folder": Folder,
}


def prepare(
  name: str,
  domain: str,
  role: str,
  *,
  data_dir: str,
  root: str | None,
  preprocess: Preprocess,
  label_values: LabelValues,
  plane: str = "short_axis",
  centres: str | dict[str, tuple[float, float]] = "image",
  orientation: str = "header",
  turns: Mapping[str, int] | None = None,
  leave_out: bool = False,
  **options,
) -> tfds.core.DatasetBuilder:
  """The prepared dataset of one domain. It is built under `data_dir` if it does not exist yet.

  The name of its configuration contains a digest of the preprocessing, the options, and the names (below the root) and
  contents of all files. So data is prepared again if files or settings change, and not if the folder is moved.

  Args:
    name: of the dataset, a key of BUILDERS.
    domain: one of the dataset's domains, such as "bssfp" or "lge".
    role: "source" or "target".
    data_dir: folder of prepared data.
    root: folder of the NIfTI volumes, for datasets that read some.
    preprocess: grid and intensities of the prepared images.
    label_values: values of masks, by class index.
    plane: of the slices, see vamcei_jax/data/geometry.py.
    centres: of the network's field, see VolumesConfig.
    orientation, turns: of slices whose directions are lost, see VolumesConfig.
    leave_out: whether patients with unusable files are left out; else they are an error.
    **options: further fields of the dataset's configuration, such as the seed of the phantom.

  Raises:
    InputError: unknown dataset, domain or option; a folder without the dataset; a file that cannot be used;
      `data_dir` cannot be written.
  """
  builder_class = _builder_class(name, domain, root, options)
  settings: dict[str, Any] = {
    "domain": domain,
    "role": role,
    "preprocess": preprocess,
    "label_values": folded_values(label_values),
    "plane": plane,
    "centres": centres,
  }
  # Phantoms have no headers, and those that version 0.1 prepared are found by their digest.
  from_files = issubclass(builder_class, Cases)
  reading: dict[str, Any] = {"orientation": orientation, "turns": dict(turns or {})} if from_files else {}
  folder = expanded(root or "")
  config: Any = builder_class.CONFIG(name=domain, root=str(folder), **settings, **reading, **options)
  splits = builder_class.splits(folder, config)
  files = [file for cases in splits.values() for case in cases for file in case.files]
  identity = fingerprint(splits, folder, file_digests(files, Path(data_dir)))
  unread = builder_class.unread(folder, config) if from_files else {}
  config.name = _config_name(settings | reading | options, identity, [os.path.relpath(file, folder) for file in unread])
  make_builder = lambda: builder_class(config=config, data_dir=data_dir, file_format="array_record")
  prepared = Path(data_dir, name, config.name)
  with naming_damage(prepared) if prepared.exists() else contextlib.nullcontext():
    builder = make_builder()
  if builder.is_prepared():
    return builder
  writable(Path(data_dir), PREPARED_ELSEWHERE)
  print(f"{name}/{domain}: preparing {builder.data_path}", flush=True)
  if issubclass(builder_class, Cases):
    found = examine(splits, config)
    config.left_out, config.digests, config.lost = unread | found.problems, found.digests, found.lost
    _check_usable(config, splits, folder, leave_out=leave_out)
  _build(make_builder(), folder if root else None)  # the new builder's description contains the files that are left out
  return make_builder()


def _build(builder: tfds.core.DatasetBuilder, root: Path | None) -> None:
  """Writes a dataset, unless another run has written the same data meanwhile."""
  tfds.disable_progress_bar()
  settings = tfds.download.DownloadConfig(manual_dir=str(root) if root else None)
  with contextlib.suppress(FileExistsError), contextlib.redirect_stdout(None):  # TFDS reports downloads
    builder.download_and_prepare(download_config=settings)


def _builder_class(name: str, domain: str, root: str | None, options: Mapping[str, object]) -> Builder:
  """The builder of a dataset. Raises an InputError for a wrong name, domain or option, and for a missing root."""
  if name not in BUILDERS:
    raise InputError(f"config.data.name={name}: no such dataset; choose one of {', '.join(BUILDERS)}")
  builder_class = BUILDERS[name]
  if builder_class.DOMAINS and domain not in builder_class.DOMAINS:
    raise InputError(f"{name}/{domain}: no such domain; choose one of {', '.join(builder_class.DOMAINS)}")
  _check_options(name, builder_class, options)
  if not root and issubclass(builder_class, Cases):
    tree = builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS
    way_out = "name the folder of the data: --config.data.root=DIR (of prepare: --source=DIR)"
    raise InputError(f"config.data.root: not set; {way_out}. {tree}")
  return builder_class


def _check_options(name: str, builder_class: Builder, options: Mapping[str, object]) -> None:
  """Raises an InputError for an option that the dataset has not, or of another type than the dataset's."""
  common = {field.name for field in dataclasses.fields(VolumesConfig)}
  kinds = {field.name: field.type for field in dataclasses.fields(builder_class.CONFIG) if field.name not in common}
  if unknown := sorted(set(options) - set(kinds)):
    raise InputError(f"config.data.options.{unknown[0]}: {name} has no such option")
  for field, value in options.items():
    if kinds[field] is int and not (type(value) is int and value >= 0):
      raise InputError(f"config.data.options.{field}={value}: must be a number, at least 0")
    if kinds[field] is str and not (isinstance(value, str) and value):
      raise InputError(f"config.data.options.{field}={value}: must be a text")


def _config_name(settings: Mapping[str, Any], files: Sequence[tuple], unread: Sequence[str] = ()) -> str:
  """The name of a builder's configuration: the domain, and a digest of settings and files."""
  identity = {**settings, "preprocess": dataclasses.asdict(settings["preprocess"]), "files": files}
  identity["view"] = identity.pop("plane")  # its name in version 0.1, whose prepared data are found by the digest
  if unread:
    identity["unread"] = sorted(unread)
  digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
  return f"{re.sub(r'[^A-Za-z0-9]+', '_', settings['domain']).strip('_')}-{digest}"


def _check_usable(config: CasesConfig, splits: Splits, root: Path, *, leave_out: bool) -> None:
  """Raises an InputError if no patient can be trained on or, unless they are left out, if some cannot be used."""
  first = next((f"{file}: {reason}" for file, reason in config.left_out.items()), "")
  if "train" not in usable(splits, config.left_out):
    raise InputError(f"{root}: no patient of {config.domain} can be used as {config.role}. {first}")
  if first and not leave_out:
    more = f" {len(config.left_out) - 1} more cannot be used." if len(config.left_out) > 1 else ""
    way_out = "python -m vamcei_jax.prepare leaves out what cannot be used; give it the same --config"
    raise InputError(f"{first}{more} ({way_out})")


def left_out(builder: tfds.core.DatasetBuilder) -> dict[str, str]:
  """The files that were left out when a dataset was prepared: file -> reason."""
  files = (builder.info.metadata or {}).get("left_out", {})
  return {str(Path(builder.builder_config.root, file)): reason for file, reason in files.items()}


def lost_directions(builder: tfds.core.DatasetBuilder) -> list[str]:
  """The patients whose headers have lost the directions of rows and columns."""
  return list((builder.info.metadata or {}).get("lost", []))


def refuse_shared(
  source: tfds.core.DatasetBuilder,
  target: tfds.core.DatasetBuilder,
  *,
  allow_same_file: bool = True,
  name: str = "source",
) -> None:
  """Raises an InputError if two domains share an image: the training would use the label of a target image.

  Args:
    source, target: prepared datasets.
    allow_same_file: whether one and the same file may be in both domains, as in a domain that is adapted to itself:
      that is meant as an upper bound.
    name: of the source, for the error.
  """
  first, second = ((builder.info.metadata or {}).get("digests", {}) for builder in (source, target))
  allowed = lambda digest: allow_same_file and first[digest] == second[digest]
  if shared := [digest for digest in first if digest in second and not allowed(digest)]:
    one = Path(source.builder_config.root, first[shared[0]])
    other = Path(target.builder_config.root, second[shared[0]])
    raise InputError(f"{one}: the same image as {other}, in {name} and target. Remove one of them.")
