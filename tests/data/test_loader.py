import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.configs import tiny
from vamcei_jax.data.loader import batch_indices, draw_batch, load_patients, load_slices, load_stacks
from vamcei_jax.pipeline import prepare_domain


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 12), batch=st.integers(1, 30), seed=st.integers(0, 99))
def test_every_epoch_is_a_permutation_whatever_the_batch(size, batch, seed):
  draw = jax.jit(lambda step: batch_indices(jax.random.key(seed), step, size, batch))
  drawn = np.concatenate([draw(step) for step in range(-(-3 * size // batch))])
  epochs = drawn[: 3 * size].reshape(3, size)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (3, 1)))


def test_the_order_is_the_same_for_every_batch_size():
  key = jax.random.key(5)
  ones = [int(batch_indices(key, step, 7, 1)[0]) for step in range(12)]
  fours = np.concatenate([batch_indices(key, step, 7, 4) for step in range(3)])
  np.testing.assert_array_equal(ones, fours)


@pytest.fixture
def data():
  images = lambda seed, n: jax.random.uniform(jax.random.key(seed), (n, 32, 32))
  label = jax.random.randint(jax.random.key(2), (5, 32, 32), 0, 4).astype(jnp.uint8)
  return {"source": {"image": images(0, 5), "label": label}, "target": {"image": images(1, 9)}}


def test_a_batch_follows_from_key_and_step_alone(data):
  config, key = tiny.get_config(), jax.random.key(0)
  a, b, c = (draw_batch(data, key, step, config) for step in (3, 3, 4))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert float(jnp.abs(a["target"]["image"] - c["target"]["image"]).max()) > 0
  assert a["source"]["image"].shape == (2, 24, 24, 1)
  assert a["source"]["label"].shape == (2, 24, 24)
  assert set(a["target"]) == {"image"}


def test_domains_are_drawn_unpaired(data):
  config = tiny.get_config()
  same = {"source": data["source"], "target": {"image": data["source"]["image"]}}
  batch = draw_batch(same, jax.random.key(0), 0, config)
  assert float(jnp.abs(batch["source"]["image"] - batch["target"]["image"]).max()) > 0


def test_target_slices_come_without_labels(tiny_config):
  builder = prepare_domain(tiny_config, "target")
  assert set(load_slices(builder, "train", labels=False)) == {"image"}


def test_stacks_are_those_of_the_patients_and_their_masks_are_not_decoded(tiny_config, monkeypatch):
  builder = prepare_domain(tiny_config, "target")
  read, examples = type(builder).as_data_source, []
  keep = lambda self, *arguments, **named: examples.extend(read(self, *arguments, **named)) or examples
  with monkeypatch.context() as context:
    context.setattr(type(builder), "as_data_source", keep)
    stacks = load_stacks(builder, "train", "image")
  patients = list(load_patients(builder, "train", labelled=False))
  for example, (image, distance), patient in zip(examples, stacks, patients, strict=True):
    np.testing.assert_array_equal(image, patient.image)
    assert distance == pytest.approx(patient.spacing[0])
    assert np.shape(example["image"]) == image.shape
    assert np.shape(example["mask"]) != image.shape
    assert np.shape(example["truth"]) != patient.shape


def test_slices_of_the_source_are_those_of_its_patients(tiny_config):
  builder = prepare_domain(tiny_config, "source")
  slices, patients = load_slices(builder, "train", labels=True), list(load_patients(builder, "train"))
  np.testing.assert_array_equal(slices["image"], np.concatenate([patient.image for patient in patients]))
  assert slices["label"].shape == slices["image"].shape
  assert patients[0].truth.shape[1:] == (96, 96)


def test_a_split_that_is_not_there_has_no_patients(tiny_config):
  assert list(load_patients(prepare_domain(tiny_config, "source"), "nosuch")) == []
