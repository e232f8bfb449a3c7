"""Datasets: TFDS builders of prepared volumes. `prepare` builds what is missing and reuses what is there."""

import contextlib
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import tensorflow_datasets as tfds

from vamcei_jax.data.labels import LabelValues, folded_values
from vamcei_jax.data.loader import naming_damage
from vamcei_jax.data.preprocess import Preprocess
from vamcei_jax.datasets.cases import Cases, examine, fingerprint, usable
from vamcei_jax.datasets.folder import Folder
from vamcei_jax.datasets.mmwhs import Mmwhs
from vamcei_jax.datasets.mscmrseg import Mscmrseg
from vamcei_jax.datasets.myops import Myops
from vamcei_jax.datasets.phantom import Phantom
from vamcei_jax.datasets.volumes import VolumesConfig
from vamcei_jax.errors import InputError

BUILDERS = {"phantom": Phantom, "mscmrseg": Mscmrseg, "myops": Myops, "mmwhs": Mmwhs, "folder": Folder}


def prepare(
  name: str,
  domain: str,
  role: str,
  *,
  data_dir: str,
  root: str | None,
  preprocess: Preprocess,
  label_values: LabelValues,
  view: str = "short_axis",
  centres: str | dict[str, tuple[float, float]] = "image",
  leave_out: bool = False,
  **options,
) -> tfds.core.DatasetBuilder:
  """The prepared dataset `name` of one domain; built under `data_dir` if it is not there yet.

  The configuration's name carries a digest of the preprocessing, the options and (name, size, modification time) of
  the files, so changed files or settings are prepared anew and never confused with older ones.

  Args:
    name: a key of BUILDERS.
    domain: one of the builder's domains, as "bssfp" or "lge".
    role: "source" or "target".
    data_dir: where prepared data is kept.
    root: folder of the NIfTI volumes, for datasets that read some.
    preprocess: grid and intensities of the prepared images.
    label_values: what masks hold for each class, by class index.
    view: in which volumes are seen, see vamcei_jax/data/nifti.py.
    centres: what the field is centred on, see VolumesConfig.
    leave_out: whether patients whose files cannot be used are left out; else they are an error.
    **options: further fields of the builder's configuration (patients and seed of the phantom).

  Raises:
    InputError: unknown dataset, domain or option; a folder or a file in it that cannot be used.
  """
  if name not in BUILDERS:
    raise InputError(f"config.data.name={name}: no such dataset; choose one of {', '.join(BUILDERS)}")
  builder_class = BUILDERS[name]
  if builder_class.DOMAINS and domain not in builder_class.DOMAINS:
    raise InputError(f"{name}/{domain}: no such domain; choose one of {', '.join(builder_class.DOMAINS)}")
  settings = {
    "domain": domain,
    "role": role,
    "preprocess": preprocess,
    "label_values": folded_values(label_values),
    "view": view,
    "centres": centres,
  }
  kinds = {field.name: field.type for field in dataclasses.fields(builder_class.CONFIG)}
  for field in dataclasses.fields(VolumesConfig):
    del kinds[field.name]
  if unknown := sorted(set(options) - set(kinds)):
    raise InputError(f"config.data.options.{unknown[0]}: {name} has no such option")
  for field, value in options.items():
    if kinds[field] is int and not (type(value) is int and value >= 0):
      raise InputError(f"config.data.options.{field}={value}: must be a number, at least 0")
    if kinds[field] is str and not (isinstance(value, str) and value):
      raise InputError(f"config.data.options.{field}={value}: must be a text")
  if not root and issubclass(builder_class, Cases):
    tree = builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS
    way_out = "name the folder of the data: --config.data.root=DIR (of prepare: --source=DIR)"
    raise InputError(f"config.data.root: not set; {way_out}. {tree}")

  root = root and str(Path(root).expanduser())
  config = builder_class.CONFIG(name=domain, **settings, **options)
  splits = builder_class.splits(root, config)
  identity = {**settings, "preprocess": dataclasses.asdict(preprocess), "files": fingerprint(splits), **options}
  digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
  config.name = f"{re.sub(r'[^A-Za-z0-9]+', '_', domain).strip('_')}-{digest}"
  make_builder = lambda: builder_class(config=config, data_dir=data_dir, file_format="array_record")
  folder = Path(data_dir, name, config.name)
  with naming_damage(folder) if folder.exists() else contextlib.nullcontext():
    builder = make_builder()
  if not builder.is_prepared():
    print(f"{name}/{domain}: preparing {builder.data_path}", flush=True)
    if issubclass(builder_class, Cases):
      config.left_out, config.digests = examine(splits, config)
      first = next((f"{file}: {reason}" for file, reason in config.left_out.items()), "")
      if "train" not in usable(splits, config.left_out):
        raise InputError(f"{root}: no patient of {domain} can be used as {role}. {first}")
      if first and not leave_out:
        more = f" {len(config.left_out) - 1} more cannot be used." if len(config.left_out) > 1 else ""
        way_out = "python -m vamcei_jax.prepare leaves out what cannot be used; give it the same --config"
        raise InputError(f"{first}{more} ({way_out})")
    builder = make_builder()
    tfds.disable_progress_bar()
    # Another run may have prepared the same meanwhile: the identity is in the name. What TFDS prints is of downloads.
    with contextlib.suppress(FileExistsError), contextlib.redirect_stdout(None):
      builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=root))
    builder = make_builder()
  return builder


def left_out(builder: tfds.core.DatasetBuilder) -> dict[str, str]:
  """The files that were left out when a dataset was prepared, and why."""
  return dict((builder.info.metadata or {}).get("left_out", {}))


def refuse_shared(source: tfds.core.DatasetBuilder, target: tfds.core.DatasetBuilder) -> None:
  """Raises an InputError where two domains share an image: the target's label would be learnt from.

  A dataset that is adapted to itself, for an upper bound, shares all of them.
  """
  first, second = ((builder.info.metadata or {}).get("digests", {}) for builder in (source, target))
  if shared := [digest for digest in first if digest in second and first[digest] != second[digest]]:
    one, other = first[shared[0]], second[shared[0]]
    raise InputError(f"{one}: the same image as {other}, in source and target. Remove one of them.")
