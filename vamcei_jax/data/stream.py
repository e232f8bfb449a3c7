"""Slices on disk, and batches of them for data that does not fit on the device: those of data/loader.py, read by Grain.

The batch of a step follows from the step's number alone, which every checkpoint holds. So a stream can start at any
step, on any number of hosts.
"""

from collections.abc import Iterator, Mapping

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from jax import Array

from vamcei_jax.data.loader import batch_indices, draw_keys, load_slices, naming_damage, open_split, require_masks
from vamcei_jax.data.slices import selected_slices
from vamcei_jax.environment import jax_settings
from vamcei_jax.errors import InputError

_THREADS = 4  # that read ahead


class StoredSlices:
  """The slices of a split on disk: a sequence of {"image" (h, w), "label" (h, w)} and of further maps of each slice.

  Reading a slice reads its whole volume: array_record finds records, not parts of them.

  Attributes:
    nbytes: bytes of all slices, decoded.
  """

  def __init__(
    self, builder: tfds.core.DatasetBuilder, split: str, *, labels: bool, empty: str = "all", beside: Mapping = {}
  ):
    """Opens a split.

    Args:
      builder, split, labels: see `load_slices`.
      empty: which slices without a structure are included: all, apical or none. Without `labels`, all are.
      beside: name -> array (N, …), further maps of the included slices, in their order.

    Raises:
      InputError: damaged data; `labels` are wanted and a patient has none; no slice has a structure.
    """
    self._builder, self._split, self._labels, self._beside = builder, split, labels, dict(beside)
    volumes = [
      {"patient": example["patient"], "labelled": example["labelled"], "shape": tuple(example["image"]["shape"])}
      for example in self._read("image", "mask", "truth")  # volumes that are not decoded still have a shape
    ]
    if labels:
      require_masks(builder, volumes)
    self._ends = np.cumsum([volume["shape"][0] for volume in volumes])
    self._numbers = np.arange(self._ends[-1])
    if labels and empty != "all":
      self._numbers = self._select_slices(empty)
    pixel = np.dtype(np.float32).itemsize + (np.dtype(np.uint8).itemsize if labels else 0)
    self.nbytes = len(self) * pixel * int(np.prod(volumes[0]["shape"][1:]))
    self.nbytes += sum(values.nbytes for values in self._beside.values())
    self._volumes = open_split(builder, split, ("truth",) if labels else ("truth", "mask"))

  def _read(self, *skipped: str) -> Iterator[dict]:
    """Reads the examples of the split one by one; the features `skipped` are not decoded."""
    with naming_damage(self._builder.data_path):
      yield from open_split(self._builder, self._split, skipped)

  def _select_slices(self, empty: str) -> np.ndarray:
    """The numbers of the included slices; one mask is in memory at a time."""
    areas = [np.count_nonzero(example["mask"], axis=(1, 2)) for example in self._read("image", "truth")]
    if not any(area.any() for area in areas):
      raise InputError(f"{self._builder.info.full_name}: no slice with a structure; set data.empty_slices=all")
    return np.flatnonzero(np.concatenate([selected_slices(area, empty) for area in areas]))

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, number: int) -> dict[str, np.ndarray]:
    index = int(self._numbers[number])
    volume = int(np.searchsorted(self._ends, index, side="right"))
    with naming_damage(self._builder.data_path):
      example = self._volumes[volume]
    depth = index - int(self._ends[volume])  # negative: counted from the end of the volume
    maps = {"image": example["image"][depth]}
    if self._labels:
      maps["label"] = example["mask"][depth]
    return maps | {name: values[number] for name, values in self._beside.items()}

  def load(self) -> dict[str, np.ndarray]:
    """Reads all slices: name -> (N, …)."""
    slices = load_slices(self._builder, self._split, labels=self._labels)
    if len(self) < self._ends[-1]:
      slices = {name: values[self._numbers] for name, values in slices.items()}
    return slices | self._beside


def stream_batches(
  sources: Mapping[str, StoredSlices], key: Array, steps: range, batch: int, share: slice, ahead: int
) -> Iterator[dict[str, dict[str, np.ndarray]]]:
  """Reads the slices of the batches of `steps` in threads, ahead of their use.

  Args:
    sources: domain -> slices.
    key: of the run, see `draw_batch` in data/loader.py.
    steps: numbers of the steps, without gaps.
    batch: slices a domain in the global batch.
    share: positions in the global batch that this host reads.
    ahead: number of batches that are read ahead.

  Yields:
    domain -> maps (B, …) of the slices that `draw_batch` would pick.
  """

  @jax.jit
  def indices(step: Array) -> dict[str, Array]:
    pick = lambda domain, source: batch_indices(draw_keys(key, domain)[0], step, len(source), batch)
    return {domain: pick(domain, source) for domain, source in sources.items()}

  @jax_settings()  # those of the calling thread are not those of Grain's threads
  def read(step: int) -> dict[str, dict[str, np.ndarray]]:
    picked = {domain: np.asarray(index)[share] for domain, index in indices(step).items()}
    stack = lambda examples: {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    return {domain: stack([sources[domain][int(number)] for number in index]) for domain, index in picked.items()}

  options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=max(ahead, _THREADS))
  yield from grain.MapDataset.range(steps.start, steps.stop).map(read).to_iter_dataset(options)
