"""Datasets: TFDS builders of prepared volumes. `prepare` builds what is missing and reuses what is there."""

import contextlib
import dataclasses
import hashlib
import json

import tensorflow_datasets as tfds

from vamcei_jax.data.preprocess import Preprocess
from vamcei_jax.datasets.mscmrseg import Mscmrseg
from vamcei_jax.datasets.phantom import Phantom
from vamcei_jax.errors import InputError

BUILDERS = {"phantom": Phantom, "mscmrseg": Mscmrseg}


def prepare(
  name: str,
  domain: str,
  *,
  data_dir: str,
  root: str | None,
  preprocess: Preprocess,
  label_values: tuple[int, ...],
  **options,
) -> tfds.core.DatasetBuilder:
  """The prepared dataset `name` of one domain; built under `data_dir` if it is not there yet.

  The configuration's name carries a digest of the preprocessing, the options and (name, size, modification time) of
  the files, so changed files or settings are prepared anew and never confused with older ones.

  Args:
    name: a key of BUILDERS.
    domain: one of the builder's domains, "bssfp" or "lge".
    data_dir: where prepared data is kept.
    root: folder of the NIfTI volumes, for datasets that read some.
    preprocess: grid and intensities of the prepared images.
    label_values: what masks hold for each class, by class index.
    **options: further fields of the builder's configuration (patients and seed of the phantom).

  Raises:
    InputError: unknown dataset, domain or option; a folder or a file in it that cannot be used.
  """
  if name not in BUILDERS:
    raise InputError(f"config.data.name={name}: no such dataset; choose one of {', '.join(BUILDERS)}")
  builder_class = BUILDERS[name]
  configs = {config.name: config for config in builder_class.BUILDER_CONFIGS}
  if domain not in configs:
    raise InputError(f"{name}/{domain}: no such domain; choose one of {', '.join(configs)}")
  settings = {"preprocess": preprocess, "label_values": label_values}
  known = {field.name for field in dataclasses.fields(configs[domain])} - set(settings)
  if unknown := sorted(set(options) - known):
    raise InputError(f"config.data.options.{unknown[0]}: {name} has no such option")

  stats = [(file.absolute(), file.stat()) for file in builder_class.files(root, domain)]
  files = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
  identity = json.dumps([dataclasses.asdict(preprocess), label_values, options, files], sort_keys=True)
  digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
  config = dataclasses.replace(configs[domain], name=f"{domain}-{digest}", **settings, **options)
  make_builder = lambda: builder_class(config=config, data_dir=data_dir, file_format="array_record")
  builder = make_builder()
  if not builder.is_prepared():
    print(f"{name}/{domain}: preparing {builder.data_path}", flush=True)
    tfds.disable_progress_bar()
    with contextlib.suppress(FileExistsError):  # another run prepared the same meanwhile; the identity is in the name
      builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=root))
    builder = make_builder()
  return builder
