"""The embedded data as a dataset: synthetic patients, drawn when it is prepared."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, cast

import tensorflow_datasets as tfds

from vamcei_jax.data.nifti import Volume
from vamcei_jax.datasets.cases import Splits
from vamcei_jax.datasets.volumes import VolumesConfig, dataset_info, example
from vamcei_jax.phantom.scanner import draw_patient


@dataclasses.dataclass(eq=False)
class PhantomConfig(VolumesConfig):
  """seed: of the patients; train, validation, test: number of patients in each split."""

  seed: int = 0
  train: int = 24
  validation: int = 4
  test: int = 12


class Phantom(tfds.core.GeneratorBasedBuilder):
  """Synthetic cardiac short-axis stacks with the contrasts of bSSFP and LGE; see vamcei_jax/phantom.

  All patients have masks, also those of the target's train split: training on them without adaptation gives an upper
  bound for adaptation. VERSION goes up when patients are drawn differently.
  """

  VERSION = tfds.core.Version("1.0.0")
  CONFIG = PhantomConfig
  DOMAINS: ClassVar[tuple[str, ...]] = ("bssfp", "lge")

  @classmethod
  def splits(cls, root: Path, config: PhantomConfig) -> Splits:
    """Empty: no file is read."""
    del root, config
    return {}

  @property
  def config(self) -> PhantomConfig:
    """The configuration of this builder."""
    return cast(PhantomConfig, self.builder_config)

  def _info(self) -> tfds.core.DatasetInfo:
    return dataset_info(self, description=self.__doc__)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    del dl_manager
    splits, first = {}, 0
    for split in ("train", "validation", "test"):
      count = getattr(self.config, split)
      splits[split] = self._generate_examples(range(first, first + count))
      first += count
    return splits

  def _generate_examples(self, patients: range) -> Iterator[tuple[int, dict]]:
    for index in patients:
      patient = draw_patient(self.config.seed, index, self.config.domain)
      volume = Volume(patient.voxels, patient.affine)
      yield index, example(f"patient{index}", volume, patient.classes, self.config)
