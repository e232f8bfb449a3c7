"""Prepared datasets as arrays, and training batches drawn from them by pure functions of (key, step).

The batch of a step follows from the step's number alone. So a resumed run has the batches of an uninterrupted one, and
a batch holds the same images however it is split over devices. Data that does not fit on the device is read from disk
by data/stream.py, in the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from jax import Array

from vamcei_jax.data.augment import augment
from vamcei_jax.data.geometry import spacing_of
from vamcei_jax.errors import InputError
from vamcei_jax.prng import batch_positions, example_keys

if TYPE_CHECKING:
  from vamcei_jax.config.schema import AugmentConfig, StageConfig

_DOMAIN_NUMBERS = {"source": 0, "target": 1}  # folded into the keys of the domains
_SKIP = tfds.decode.SkipDecoding()


@dataclasses.dataclass(frozen=True)
class Patient:
  """A patient for evaluation.

  name: of the patient.
  image: (D, h, w) prepared image in [0, 1].
  truth: (D, H, W) class indices on the original grid, or None where there is no mask.
  shape: (D, H, W) of the original grid.
  spacing: mm along D, H, W of the original grid.
  centre: pixel (row, column) of the original grid on which the prepared image is centred.
  """

  name: str
  image: np.ndarray
  truth: np.ndarray | None
  shape: tuple[int, int, int]
  spacing: tuple[float, float, float]
  centre: tuple[float, float]


def load_slices(builder: tfds.core.DatasetBuilder, split: str, *, labels: bool) -> dict[str, np.ndarray]:
  """Loads all slices of a split, in the order of its patients.

  Args:
    builder: of a prepared dataset.
    split: its name.
    labels: whether labels are loaded. Without them, masks are not decoded: a target's masks cannot reach the training.

  Returns:
    "image" (N, h, w) float32 in [0, 1] and, with `labels`, "label" (N, h, w) uint8 class indices.

  Raises:
    InputError: damaged data; `labels` are wanted and a patient has none.
  """
  skipped = ("truth",) if labels else ("truth", "mask")
  examples = _read_split(builder, split, skipped)
  slices = {"image": np.concatenate([example["image"] for example in examples])}
  if labels:
    require_masks(builder, examples)
    slices["label"] = np.concatenate([example["mask"] for example in examples])
  return slices


def require_masks(builder: tfds.core.DatasetBuilder, examples: list[dict]) -> None:
  """Raises an InputError that names the patients without a mask among the examples of a source."""
  if unlabelled := [example["patient"].decode() for example in examples if not example["labelled"]]:
    raise InputError(f"{builder.info.full_name}: no mask of {', '.join(unlabelled[:5])}; a source needs all of them")


def load_stacks(builder: tfds.core.DatasetBuilder, split: str) -> list[tuple[np.ndarray, float]]:
  """The image (D, h, w) of each patient of a split, in order, and the mm between its slices. No mask is decoded."""
  examples = _read_split(builder, split, ("mask", "truth"))
  return [(example["image"], spacing_of(example["affine"])[0]) for example in examples]


def patient_names(builder: tfds.core.DatasetBuilder, split: str) -> list[str]:
  """The names of the patients of a split, in order."""
  return [example["patient"].decode() for example in _read_split(builder, split, ("image", "mask", "truth"))]


def load_grids(
  builder: tfds.core.DatasetBuilder, split: str
) -> list[tuple[tuple[int, ...], tuple[float, float, float]]]:
  """Voxels and mm along D, H, W of the original volume of each patient of a split. No image and no mask is decoded."""
  examples = _read_split(builder, split, ("image", "mask", "truth"))
  return [(tuple(example["truth"]["shape"]), spacing_of(example["affine"])) for example in examples]


def load_patients(builder: tfds.core.DatasetBuilder, split: str, *, labelled: bool = True) -> Iterator[Patient]:
  """The patients of a split for evaluation, with `labelled` only those that have masks; none for a missing split."""
  with naming_damage(builder.data_path):
    for example in open_split(builder, split) if split in builder.info.splits else ():
      if example["labelled"] or not labelled:
        yield Patient(
          name=example["patient"].decode(),
          image=example["image"],
          truth=example["truth"] if example["labelled"] else None,
          shape=example["truth"].shape,
          spacing=spacing_of(example["affine"]),
          centre=tuple(example["centre"].tolist()),
        )


def open_split(builder: tfds.core.DatasetBuilder, split: str, skipped: Collection[str] = ()) -> Sequence[dict]:
  """The examples of a split, each read when it is used. The features `skipped` are not decoded."""
  open_source = cast(Callable[..., Sequence[dict]], builder.as_data_source)  # TFDS's decorators hide its signature
  return open_source(split, decoders=dict.fromkeys(skipped, _SKIP) or None)


def load_truths(builder: tfds.core.DatasetBuilder) -> Iterator[np.ndarray]:
  """The masks (D, H, W) of a dataset, as class indices; each is read when it is used. Raises as naming_damage does."""
  with naming_damage(builder.data_path):
    for split in builder.info.splits:
      for example in open_split(builder, split, ("image", "mask")):
        if example["labelled"]:
          yield example["truth"]


def _read_split(builder: tfds.core.DatasetBuilder, split: str, skipped: Collection[str]) -> list[dict]:
  """All examples of a split, see `open_split`."""
  with naming_damage(builder.data_path):
    return list(open_split(builder, split, skipped))


@contextmanager
def naming_damage(folder: PathLike) -> Iterator[None]:
  """Turns errors of damaged prepared data into an InputError that names their folder.

  Raises:
    InputError: instead of what TFDS and array_record raise for wrong checksums, damaged descriptions and missing files.
  """
  try:
    yield
  except (AttributeError, InputError, KeyError, MemoryError, PermissionError, TypeError):  # not damage
    raise
  except Exception as error:  # array_record, protobuf, JSON and the system each have their own types
    reason = " ".join(str(error).split())[:160]
    way_out = "Remove this folder: the run, or python -m vamcei_jax.prepare, makes it again"
    raise InputError(f"{folder}: damaged prepared data ({reason}). {way_out}.") from error


def batch_indices(key: Array, step: Array | int, size: int, batch: int) -> Array:
  """The examples of the batch of a step. Each epoch is another random permutation of all examples.

  Args:
    key: of the order, see `draw_keys`.
    step: number of the step.
    size: number of examples.
    batch: examples in a batch.

  Returns:
    (batch,) indices below `size`.
  """
  position = step * batch + jnp.arange(batch)
  permutation = lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), size)
  # A batch can reach over several epochs where it is larger than the data.
  epochs = position[0] // size + jnp.arange((batch - 1) // size + 2)
  return jax.vmap(permutation)(epochs)[position // size - epochs[0], position % size]


def make_draw(config: StageConfig) -> Callable[..., dict]:
  """(data, key, step) -> batch: `draw_batch` with the settings of a stage."""
  return partial(draw_batch, batch_size=config.train.batch_size, crop=config.data.crop, strengths=config.augment)


def draw_batch(
  data: dict,
  key: Array,
  step: Array | int,
  *,
  batch_size: int,
  crop: tuple[int, int],
  strengths: AugmentConfig,
  axis_name: str | None = None,
) -> dict:
  """The augmented batch of a step, or this device's share of it: a pure function of its arguments.

  Args:
    data: domain -> slices of `load_slices`, on the device.
    key: of the run.
    step: number of the step.
    batch_size: images a domain in the global batch.
    crop, strengths: see `augment_batch`.
    axis_name: axis over which the batch is split; each device draws its share.

  Returns:
    See `augment_batch`.
  """
  examples = {}
  for domain, slices in data.items():
    order_key, _ = draw_keys(key, domain)
    index = batch_indices(order_key, step, len(slices["image"]), batch_size)
    if axis_name is not None:
      index = index[batch_positions(batch_size // jax.lax.axis_size(axis_name), axis_name)]
    examples[domain] = {name: values[index] for name, values in slices.items()}
  return augment_batch(examples, key, step, crop=crop, strengths=strengths, axis_name=axis_name)


def augment_batch(
  examples: dict,
  key: Array,
  step: Array | int,
  *,
  crop: tuple[int, int],
  strengths: AugmentConfig,
  axis_name: str | None = None,
) -> dict:
  """Augments the slices of a step, or this device's share of them.

  Args:
    examples: domain -> slices (B, H, W, …), in the types of `load_slices`.
    key: of the run. The key of an image is folded from the domain, the step and the position in the global batch.
    step: number of the step.
    crop: (h, w) pixels of the augmented images.
    strengths: section `augment` of the configuration, see `augment`.
    axis_name: axis over which the batch is split.

  Returns:
    domain -> {"image": (B, h, w, 1) float32 and, where the slices have them, "label": (B, h, w) int32 and "teacher":
    (B, h, w, K) float32}.
  """
  batch = {}
  for domain, slices in examples.items():
    _, augment_key = draw_keys(key, domain)
    positions = batch_positions(len(slices["image"]), axis_name)
    keys = example_keys(jax.random.fold_in(augment_key, step), positions)
    maps = jax.vmap(lambda example, key: augment(example, key, crop, strengths))(slices, keys)
    maps["image"] = maps["image"][..., None]
    if "label" in maps:
      maps["label"] = maps["label"].astype(jnp.int32)
    batch[domain] = maps
  return batch


def draw_keys(key: Array, domain: str) -> tuple[Array, Array]:
  """The keys of the order and of the augmentation of a domain, from the key of a run."""
  order_key, augment_key = jax.random.split(jax.random.fold_in(key, _DOMAIN_NUMBERS[domain]))
  return order_key, augment_key
