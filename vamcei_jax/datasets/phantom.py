"""The embedded data as a dataset: invented patients, drawn when it is prepared."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from vamcei_jax.data.nifti import Volume
from vamcei_jax.datasets.cases import Splits
from vamcei_jax.datasets.volumes import VolumesConfig, dataset_info, example
from vamcei_jax.phantom.scanner import draw_patient


@dataclasses.dataclass(eq=False)
class PhantomConfig(VolumesConfig):
  """One domain: the seed of its patients, and how many there are in each split."""

  seed: int = 0
  train: int = 24
  validation: int = 4
  test: int = 12


class Phantom(tfds.core.GeneratorBasedBuilder):
  """Invented cardiac short-axis stacks with the contrasts of bSSFP and LGE; see vamcei_jax/phantom.

  Every patient has a mask, those of the target's train split too: training on it without adaptation is the upper
  bound of adaptation. VERSION goes up whenever patients are drawn differently.
  """

  VERSION = tfds.core.Version("1.0.0")
  CONFIG = PhantomConfig
  DOMAINS = ("bssfp", "lge")

  @classmethod
  def splits(cls, root: Path | None, config: PhantomConfig) -> Splits:
    """No file is read."""
    del root, config
    return {}

  def _info(self) -> tfds.core.DatasetInfo:
    return dataset_info(self, description=self.__doc__)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    del dl_manager
    splits, first = {}, 0
    for split in ("train", "validation", "test"):
      count = getattr(self.builder_config, split)
      splits[split] = self._generate_examples(range(first, first + count))
      first += count
    return splits

  def _generate_examples(self, patients: range) -> Iterator[tuple[int, dict]]:
    config = self.builder_config
    for index in patients:
      patient = draw_patient(config.seed, index, config.domain)
      volume = Volume(patient.voxels, patient.affine)
      yield index, example(f"patient{index}", volume, patient.classes, config)
