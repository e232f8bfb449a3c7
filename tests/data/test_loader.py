"""What is loaded, and which batches are drawn from it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.data.augment.inputs import strengths
from vamcei_jax.data import loader
from vamcei_jax.data.loader import (
  augment_batch,
  batch_indices,
  draw_batch,
  draw_keys,
  load_grids,
  load_patients,
  load_slices,
  load_stacks,
)
from vamcei_jax.pipeline.domains import prepare_domain
from vamcei_jax.pipeline.resolve import resolve

SIZE, BATCH, CROP = 32, 4, (24, 24)
AUGMENTED = strengths(rotation=0.2, shift=2.0, noise=0.05)


@settings(max_examples=8)
@given(size=st.integers(1, 12), batch=st.integers(1, 30), seed=st.integers(0, 99))
@example(size=1, batch=3, seed=0)
@example(size=5, batch=30, seed=1)
@example(size=12, batch=1, seed=2)
def test_every_epoch_is_a_permutation_whatever_the_batch(size, batch, seed):
  draw = jax.jit(lambda step: batch_indices(jax.random.key(seed), step, size, batch))
  drawn = np.concatenate([draw(step) for step in range(-(-3 * size // batch))])
  epochs = drawn[: 3 * size].reshape(3, size)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (3, 1)))


def test_epochs_and_keys_have_different_orders():
  draw = jax.jit(lambda key, step: batch_indices(key, step, 10, 5))
  orders = [
    np.concatenate([draw(jax.random.key(seed), 2 * epoch + half) for half in (0, 1)]).tolist()
    for seed in (0, 1) for epoch in range(6)
  ]  # fmt: skip
  assert len({tuple(order) for order in orders}) == 12
  # Every example comes first once in a while.
  firsts = {int(draw(jax.random.key(0), 2 * epoch)[0]) for epoch in range(60)}
  assert firsts == set(range(10))


def test_the_order_is_the_same_for_every_batch_size():
  key = jax.random.key(5)
  ones = [int(batch_indices(key, step, 7, 1)[0]) for step in range(12)]
  fours = np.concatenate([batch_indices(key, step, 7, 4) for step in range(3)])
  np.testing.assert_array_equal(ones, fours)


@pytest.fixture(scope="module")
def data():
  """Images of one value each, by which they can be told apart, and of a source labels."""
  images = lambda first, n: jnp.broadcast_to(first + jnp.arange(n)[:, None, None] / 32.0, (n, SIZE, SIZE))
  label = jax.random.randint(jax.random.key(2), (5, SIZE, SIZE), 0, 4).astype(jnp.uint8)
  return {"source": {"image": images(0.2, 5), "label": label}, "target": {"image": images(0.4, 9)}}


def draw(data, key, step, amounts=AUGMENTED, batch=BATCH, **options):
  return draw_batch(data, key, step, batch_size=batch, crop=CROP, strengths=amounts, **options)


def draw_on_devices(count, data, key, step, amounts=AUGMENTED, batch=BATCH):
  """As `draw`, but (devices, B, ...) from as many devices, which an axis of vmap stands for."""
  on_device = lambda _: draw(data, key, step, amounts, batch, axis_name="batch")
  return jax.vmap(on_device, axis_name="batch")(jnp.arange(count))


def differ(images):
  """The largest difference of the two most similar of some images."""
  images = np.asarray(images)
  return min(np.abs(a - b).max() for a, b in itertools.combinations(images, 2))


def test_a_batch_follows_from_key_and_step_alone(data):
  key = jax.random.key(0)
  a, b, later, other = (draw(data, *which) for which in ((key, 3), (key, 3), (key, 4), (jax.random.key(1), 3)))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  for domain in data:
    assert differ([batch[domain]["image"] for batch in (a, later, other)]) > 0.02
  assert a["source"]["image"].shape == (BATCH, *CROP, 1)
  assert a["source"]["label"].shape == (BATCH, *CROP)
  assert (a["source"]["image"].dtype, a["source"]["label"].dtype) == (jnp.float32, jnp.int32)
  assert set(a["source"]) == {"image", "label"}
  assert set(a["target"]) == {"image"}


def test_a_batch_has_the_examples_of_its_indices(data):
  key, step = jax.random.key(0), 5
  batch = draw(data, key, step, strengths())
  for domain, slices in data.items():
    index = batch_indices(draw_keys(key, domain)[0], step, len(slices["image"]), BATCH)
    expected = np.asarray(slices["image"])[index, 0, 0]
    np.testing.assert_allclose(batch[domain]["image"].mean((1, 2, 3)), expected, atol=1e-5)


def test_the_shares_of_devices_make_the_batch_of_one_device(data):
  key = jax.random.key(0)
  whole, shares = draw(data, key, 7), draw_on_devices(2, data, key, 7)
  for domain, maps in whole.items():
    for name, values in maps.items():
      joined = np.asarray(shares[domain][name]).reshape(values.shape)
      np.testing.assert_allclose(joined, values, atol=1e-5)


def test_copies_of_an_example_are_augmented_differently_by_position_device_and_step():
  """Whatever its place in the batch: no two have one key."""
  image = jax.random.uniform(jax.random.key(3), (1, SIZE, SIZE))
  copies, key = {"source": {"image": image}, "target": {"image": image}}, jax.random.key(0)
  for domain in copies:
    images = [draw_on_devices(2, copies, key, step)[domain]["image"].reshape(BATCH, -1) for step in (0, 1)]
    assert differ(np.concatenate(images)) > 0.05


def test_the_domains_share_neither_an_order_nor_the_keys_of_augmentation():
  images = jax.random.uniform(jax.random.key(3), (20, SIZE, SIZE))
  same, key = {"source": {"image": images}, "target": {"image": images}}, jax.random.key(0)
  orders = [batch_indices(draw_keys(key, domain)[0], 0, 20, 20).tolist() for domain in same]
  assert orders[0] != orders[1]
  one = {domain: {"image": images[:1]} for domain in same}
  batch = draw(one, key, 0)
  assert differ(np.concatenate([batch[domain]["image"] for domain in one])) > 0.05
  keys = jnp.stack([jax.random.key_data(each) for domain in same for each in draw_keys(key, domain)])
  assert len(np.unique(keys, axis=0)) == 4


def test_streamed_slices_become_the_batch_of_those_on_the_device(data):
  key, step = jax.random.key(0), 3
  picked = {}
  for domain, slices in data.items():
    index = batch_indices(draw_keys(key, domain)[0], step, len(slices["image"]), BATCH)
    picked[domain] = {name: values[index] for name, values in slices.items()}
  streamed = augment_batch(picked, key, step, crop=CROP, strengths=AUGMENTED)
  jax.tree.map(np.testing.assert_array_equal, streamed, draw(data, key, step))


def test_target_slices_come_without_labels(tiny_config):
  builder = prepare_domain(resolve(tiny_config).stages["vamcei"].data, "target")
  assert set(load_slices(builder, "train", labels=False)) == {"image"}


def test_stacks_are_those_of_the_patients_and_their_masks_are_not_decoded(tiny_config, monkeypatch):
  builder = prepare_domain(resolve(tiny_config).stages["vamcei"].data, "target")
  read, examples = type(builder).as_data_source, []
  keep = lambda self, *arguments, **named: examples.extend(read(self, *arguments, **named)) or examples
  with monkeypatch.context() as context:
    context.setattr(type(builder), "as_data_source", keep)
    stacks = load_stacks(builder, "train")
  patients = list(load_patients(builder, "train", labelled=False))
  for raw, (image, distance), patient in zip(examples, stacks, patients, strict=True):
    np.testing.assert_array_equal(image, patient.image)
    assert distance == pytest.approx(patient.spacing[0])
    assert np.shape(raw["image"]) == image.shape
    assert np.shape(raw["mask"]) != image.shape
    assert np.shape(raw["truth"]) != patient.shape


def test_grids_are_those_of_the_original_volumes(tiny_config):
  builder = prepare_domain(resolve(tiny_config).stages["vamcei"].data, "target")
  expected = [(patient.shape, patient.spacing) for patient in load_patients(builder, "train", labelled=False)]
  assert load_grids(builder, "train") == expected
  _, spacings = zip(*expected, strict=True)
  np.testing.assert_allclose(spacings, np.broadcast_to((8.0, 1.5, 1.5), (len(expected), 3)), rtol=1e-5)


def test_spacings_are_along_slices_rows_and_columns(monkeypatch):
  affine = np.array([[0.0, 0.0, 1.25, 7.0], [0.0, -1.5, 0.0, 8.0], [8.0, 0.0, 0.0, 9.0], [0.0, 0.0, 0.0, 1.0]])
  monkeypatch.setattr(loader, "_read_split", lambda *_: [{"affine": affine, "truth": {"shape": (3, 4, 5)}}])
  assert load_grids(None, "train") == [((3, 4, 5), (8.0, 1.5, 1.25))]


def test_slices_of_the_source_are_those_of_its_patients(tiny_config):
  builder = prepare_domain(resolve(tiny_config).stages["vamcei"].data, "source")
  slices, patients = load_slices(builder, "train", labels=True), list(load_patients(builder, "train"))
  np.testing.assert_array_equal(slices["image"], np.concatenate([patient.image for patient in patients]))
  assert slices["label"].shape == slices["image"].shape
  assert patients[0].truth.shape[1:] == (96, 96)


def test_a_split_that_is_not_there_has_no_patients(tiny_config):
  assert list(load_patients(prepare_domain(resolve(tiny_config).stages["vamcei"].data, "source"), "nosuch")) == []
