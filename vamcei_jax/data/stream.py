"""Slices on disk, and batches of them for data that does not fit on the device: the loader's batches, read by Grain.

A batch follows from the step's number alone, here as in data/loader.py: the position in the data is the step, which
every checkpoint holds. So a stream is begun anew at any step, by any number of hosts.
"""

from collections.abc import Iterator, Mapping

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from jax import Array

from vamcei_jax.data.apex import beyond_apex
from vamcei_jax.data.loader import batch_indices, draw_keys, load_slices, naming_damage
from vamcei_jax.errors import InputError

_THREADS = 4  # that read ahead
_SKIP = tfds.decode.SkipDecoding()


class StoredSlices:
  """The slices of a split on disk: a sequence of {"image" (h, w), "label" (h, w)} and of what is laid beside them.

  A slice is read with its volume: array_record finds records, not parts of them.

  Attributes:
    nbytes: of all of them, decoded.
  """

  def __init__(
    self, builder: tfds.core.DatasetBuilder, split: str, *, labels: bool, empty: str = "all", beside: Mapping = {}
  ):
    """Opens a split.

    Args:
      builder, split, labels: as of load_slices.
      empty: which slices whose label is background alone are among them, all, apical or none; the latter need `labels`.
      beside: name -> array (N, …), further maps of the slices, in their order.

    Raises:
      InputError: damaged data; `labels` are asked for and a patient has none; all slices are empty.
    """
    self._builder, self._split, self._labels, self._beside = builder, split, labels, dict(beside)
    with naming_damage(builder.data_path):
      # Undecoded volumes still tell their shape.
      shapes = builder.as_data_source(split, decoders=dict.fromkeys(("image", "mask", "truth"), _SKIP))
      volumes = [(tuple(example["image"]["shape"]), example["patient"], example["labelled"]) for example in shapes]
    if labels and (unlabelled := [patient.decode() for _, patient, labelled in volumes if not labelled]):
      raise InputError(f"{builder.info.full_name}: no mask of {', '.join(unlabelled[:5])}; a source needs all of them")
    self._ends = np.cumsum([shape[0] for shape, *_ in volumes])
    self._numbers = np.arange(self._ends[-1])
    if labels and empty != "all":
      self._numbers = self._find_structures(apical=empty == "apical")
    pixel = np.dtype(np.float32).itemsize + (np.dtype(np.uint8).itemsize if labels else 0)
    self.nbytes = len(self) * pixel * int(np.prod(volumes[0][0][1:]))
    self.nbytes += sum(values.nbytes for values in self._beside.values())
    skipped = ("truth",) if labels else ("truth", "mask")
    self._volumes = builder.as_data_source(split, decoders=dict.fromkeys(skipped, _SKIP))

  def _find_structures(self, *, apical: bool) -> np.ndarray:
    """The numbers of slices in which something is labelled, or that lie beyond the apex, a mask in memory at a time."""
    with naming_damage(self._builder.data_path):
      examples = self._builder.as_data_source(self._split, decoders=dict.fromkeys(("image", "truth"), _SKIP))
      areas = [np.count_nonzero(example["mask"], axis=(1, 2)) for example in examples]
    if not any(area.any() for area in areas):
      raise InputError(f"{self._builder.info.full_name}: no slice with a structure; set data.empty_slices=all")
    return np.flatnonzero(np.concatenate([(area > 0) | (beyond_apex(area) & apical) for area in areas]))

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, number: int) -> dict[str, np.ndarray]:
    index = int(self._numbers[number])
    volume = int(np.searchsorted(self._ends, index, side="right"))
    with naming_damage(self._builder.data_path):
      example = self._volumes[volume]
    depth = index - int(self._ends[volume])  # from the volume's end
    maps = {"image": example["image"][depth]} | ({"label": example["mask"][depth]} if self._labels else {})
    return maps | {name: values[number] for name, values in self._beside.items()}

  def load(self) -> dict[str, np.ndarray]:
    """All of them: name -> (N, …)."""
    slices = load_slices(self._builder, self._split, labels=self._labels)
    if len(self) < self._ends[-1]:
      slices = {name: values[self._numbers] for name, values in slices.items()}
    return slices | self._beside


def stream_batches(
  sources: Mapping[str, StoredSlices], key: Array, steps: range, batch: int, share: slice, ahead: int
) -> Iterator[dict[str, dict[str, np.ndarray]]]:
  """The slices of the batches of `steps`, read ahead in threads.

  Args:
    sources: domain -> slices.
    key: of the run, as of draw_batch in data/loader.py.
    steps: numbers of the steps, without gaps.
    batch: slices a domain in the global batch.
    share: positions in it that this host reads.
    ahead: batches that are read before they are asked for.

  Yields:
    domain -> maps (B, …) of slices, those that draw_batch picks.
  """

  @jax.jit
  def indices(step: Array) -> dict[str, Array]:
    pick = lambda domain, source: batch_indices(draw_keys(key, domain)[0], step, len(source), batch)
    return {domain: pick(domain, source) for domain, source in sources.items()}

  def read(step: int) -> dict[str, dict[str, np.ndarray]]:
    picked = {domain: np.asarray(index)[share] for domain, index in indices(step).items()}
    stack = lambda examples: {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    return {domain: stack([sources[domain][int(number)] for number in index]) for domain, index in picked.items()}

  options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=max(ahead, _THREADS))
  yield from grain.MapDataset.range(steps.start, steps.stop).map(read).to_iter_dataset(options)
