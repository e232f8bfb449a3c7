"""Batches from prepared datasets: all slices on the device, drawn by pure functions of (key, step).

There is no state to lose: the batch of a step follows from the step's number alone, so a resumed run sees what an
unbroken one would have seen, and any split of a batch over devices sees the same images. Data that does not fit on the
device is read from disk (data/stream.py), in the same order.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from jax import Array
from ml_collections import ConfigDict
from nibabel.affines import voxel_sizes

from vamcei_jax.data.augment import augment
from vamcei_jax.errors import InputError
from vamcei_jax.prng import batch_positions, example_keys

_NUMBERS = {"source": 0, "target": 1}  # folded into the domains' keys


@dataclasses.dataclass(frozen=True)
class Patient:
  """A patient for evaluation: the prepared image, the truth on its original grid, and what leads from one to the other.

  image: (D, h, w) in [0, 1].
  truth: (D, H, W) class indices, or None where there is none.
  shape: (D, H, W) of the original grid.
  spacing: mm along D, H, W.
  centre: the original pixel (row, column) on which the prepared image is centred.
  """

  name: str
  image: np.ndarray
  truth: np.ndarray | None
  shape: tuple[int, int, int]
  spacing: tuple[float, float, float]
  centre: tuple[float, float]


def load_slices(builder: tfds.core.DatasetBuilder, split: str, *, labels: bool) -> dict[str, np.ndarray]:
  """All slices of a split, patients in order: image (N, h, w) float32 and, if asked for, label (N, h, w) uint8.

  Without `labels`, masks are not even decoded: what trains on a target domain cannot see them.

  Raises:
    InputError: `labels` are asked for and a patient has none.
  """
  skipped = ("truth",) if labels else ("truth", "mask")
  with naming_damage(builder.data_path):
    examples = list(builder.as_data_source(split, decoders={name: tfds.decode.SkipDecoding() for name in skipped}))
  slices = {"image": np.concatenate([example["image"] for example in examples])}
  if labels:
    if unlabelled := [example["patient"].decode() for example in examples if not example["labelled"]]:
      raise InputError(f"{builder.info.full_name}: no mask of {', '.join(unlabelled[:5])}; a source needs all of them")
    slices["label"] = np.concatenate([example["mask"] for example in examples])
  return slices


def load_stacks(builder: tfds.core.DatasetBuilder, split: str, kind: str) -> list[tuple[np.ndarray, float]]:
  """The "image" or the "mask" (D, h, w) of each patient of a split, in order, and mm between its slices.

  Of images, no mask is even decoded.
  """
  decoders = {name: tfds.decode.SkipDecoding() for name in ("image", "mask", "truth") if name != kind}
  with naming_damage(builder.data_path):
    examples = list(builder.as_data_source(split, decoders=decoders))
  return [(example[kind], _spacing(example["affine"])[0]) for example in examples]


def load_spacings(builder: tfds.core.DatasetBuilder, split: str) -> list[tuple[float, float, float]]:
  """mm along D, H, W of the original volume of each patient of a split; no image and no mask is decoded."""
  decoders = dict.fromkeys(("image", "mask", "truth"), tfds.decode.SkipDecoding())
  with naming_damage(builder.data_path):
    return [_spacing(example["affine"]) for example in builder.as_data_source(split, decoders=decoders)]


def load_patients(builder: tfds.core.DatasetBuilder, split: str, *, labelled: bool = True) -> Iterator[Patient]:
  """The labelled patients of a split (or all), for the evaluator; none where the split is missing."""
  with naming_damage(builder.data_path):
    for example in builder.as_data_source(split) if split in builder.info.splits else ():
      if example["labelled"] or not labelled:
        yield Patient(
          name=example["patient"].decode(),
          image=example["image"],
          truth=example["truth"] if example["labelled"] else None,
          shape=example["truth"].shape,
          spacing=_spacing(example["affine"]),
          centre=tuple(example["centre"].tolist()),
        )


def _spacing(affine: np.ndarray) -> tuple[float, float, float]:
  return tuple(map(float, voxel_sizes(affine)))


@contextmanager
def naming_damage(folder: PathLike) -> Iterator[None]:
  """Prepared data that cannot be read, by its checksums, its descriptions or its absence, is named with the way out.

  Raises:
    InputError: instead of what TFDS and array_record raise.
  """
  try:
    yield
  except (AttributeError, InputError, KeyError, MemoryError, PermissionError, TypeError):  # no damage
    raise
  except Exception as error:  # of array_record, of protobuf, of JSON, of the system
    reason = " ".join(str(error).split())[:160]
    way_out = "Remove this folder: the run, or python -m vamcei_jax.prepare, makes it again"
    raise InputError(f"{folder}: damaged prepared data ({reason}). {way_out}.") from error


def batch_indices(key: Array, step: Array, size: int, batch: int) -> Array:
  """Which of `size` examples make the batch of a step: (batch,) indices; each epoch is a permutation of its own."""
  position = step * batch + jnp.arange(batch)
  permutation = lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), size)
  # A batch may reach over several epochs when it is larger than the data.
  epochs = position[0] // size + jnp.arange((batch - 1) // size + 2)
  return jax.vmap(permutation)(epochs)[position // size - epochs[0], position % size]


def draw_batch(data: dict, key: Array, step: Array, config: ConfigDict, axis_name: str | None = None) -> dict:
  """The augmented batch of a step, or this device's share of it, a pure function of its arguments.

  Args:
    data: domain -> slices of `load_slices`, on the device.
    key: of the run, see `draw_keys`.
    step: the step's number.
    config: see `view_batch`.
    axis_name: axis over which the batch is split; each device draws its share.

  Returns:
    What `view_batch` makes of the slices.
  """
  examples = {}
  for domain, slices in data.items():
    order, _ = draw_keys(key, domain)
    index = batch_indices(order, step, len(slices["image"]), config.train.batch_size)
    if axis_name is not None:
      index = index[batch_positions(config.train.batch_size // jax.lax.axis_size(axis_name), axis_name)]
    examples[domain] = jax.tree.map(lambda values, index=index: values[index], slices)
  return view_batch(examples, key, step, config, axis_name)


def view_batch(examples: dict, key: Array, step: Array, config: ConfigDict, axis_name: str | None = None) -> dict:
  """Random views of a step's slices, or of this device's share of them.

  Args:
    examples: domain -> slices (B, H, W, …) as `load_slices` gives them.
    key: of the run; a view's key is folded from the step, the domain and the slice's position in the global batch.
    step: the step's number.
    config: `data.crop` pixels, `augment` strengths.
    axis_name: axis over which the batch is split.

  Returns:
    domain -> {"image": (B, h, w, 1) float32, and where the data has them "label": (B, h, w) int32, "teacher":
    (B, h, w, K) float32 and "plain": an image whose intensities are not augmented}.
  """
  batch = {}
  view = lambda example, key: augment(example, key, config.data.crop, config.augment)
  for domain, slices in examples.items():
    _, views = draw_keys(key, domain)
    positions = batch_positions(len(slices["image"]), axis_name)
    batch[domain] = jax.vmap(view)(slices, example_keys(jax.random.fold_in(views, step), positions))
    batch[domain] |= {name: batch[domain][name][..., None] for name in ("image", "plain") if name in batch[domain]}
    if "label" in batch[domain]:
      batch[domain]["label"] = batch[domain]["label"].astype(jnp.int32)
  return batch


def draw_keys(key: Array, domain: str) -> tuple[Array, Array]:
  """The keys of a domain's order and of its views, of a run's key."""
  order, views = jax.random.split(jax.random.fold_in(key, _NUMBERS[domain]))
  return order, views
