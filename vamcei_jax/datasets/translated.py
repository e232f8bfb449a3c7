"""A translated dataset: the same patients and masks, with images in the other domain's contrast."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from vamcei_jax.data.loader import open_split
from vamcei_jax.datasets.volumes import dataset_info


class Translated(tfds.core.GeneratorBasedBuilder):
  """Prepared volumes with translated images. Patients, masks, truths and affines are those of the original."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, original: tfds.core.DatasetBuilder, translate: Callable, **arguments):
    self._original, self._translate = original, translate
    super().__init__(**arguments)

  def _info(self) -> tfds.core.DatasetInfo:
    return dataset_info(self, description=self.__doc__)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    del dl_manager
    return {split: self._generate_examples(split) for split in self._original.info.splits}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    for number, example in enumerate(open_split(self._original, split)):
      yield number, {**example, "image": self._translate(example["image"])}


def prepare_translated(
  original: tfds.core.DatasetBuilder, translate: Callable[[np.ndarray], np.ndarray], folder: Path
) -> tfds.core.DatasetBuilder:
  """Translates a dataset and writes it to a folder. A folder that holds it already is not written again.

  Args:
    original: a prepared dataset of volumes.
    translate: (D, h, w) image in [0, 1] -> the same image in the other contrast.
    folder: of this dataset and translator alone.
  """
  builder = Translated(original, translate, data_dir=str(folder), file_format="array_record")
  if not builder.is_prepared():
    print(f"{original.info.full_name}: translating into {builder.data_path}", flush=True)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(None):  # TFDS reports downloads
      builder.download_and_prepare()
  return builder
