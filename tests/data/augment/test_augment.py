"""The composition of the transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.augment.inputs import CARDIAC, GEOMETRY, INTENSITY, strengths
from vamcei_jax.data.augment import augment, intensity
from vamcei_jax.data.augment.intensity import bias_field, blend, blur, contrast, gamma, gin, noise

KEY = jax.random.key(0)
STRONG = strengths(**GEOMETRY, **INTENSITY, **CARDIAC)


@pytest.fixture
def image():
  return jax.random.uniform(jax.random.key(1), (24, 20))


@pytest.fixture
def label():
  return jax.random.randint(jax.random.key(2), (24, 20), 0, 4).astype(jnp.uint8)


def test_without_strengths_an_image_of_the_same_size_is_unchanged(image, label):
  teacher = jax.nn.softmax(jax.random.normal(KEY, (24, 20, 4)))
  got = augment({"image": image, "label": label, "teacher": teacher}, KEY, (24, 20), strengths())
  assert set(got) == {"image", "label", "teacher"}
  np.testing.assert_allclose(got["image"], image, atol=1e-5)
  np.testing.assert_array_equal(got["label"], label)
  np.testing.assert_allclose(got["teacher"], teacher, atol=1e-5)


@pytest.mark.parametrize("field", [*GEOMETRY, "flip", *INTENSITY, *CARDIAC])
def test_every_strength_changes_the_image(image, label, field):
  amount = (0, 1) if field == "flip" else {**GEOMETRY, **INTENSITY, "scar": 1.0, "contraction": 0.5}[field]
  # Blended networks need networks.
  off, on = (strengths(**{"gin": 1.0} if field == "ipa" else {}, **of) for of in ({}, {field: amount}))
  results = lambda which: np.stack(
    [augment({"image": image, "label": label}, key, (24, 20), which)["image"] for key in jax.random.split(KEY, 6)]
  )
  assert np.abs(results(on) - results(off)).max() > 0.02


def test_labels_and_teachers_move_with_their_image():
  y, x = jnp.mgrid[:40, :40]
  disc = ((y - 20) ** 2 + (x - 14) ** 2 < 80).astype(jnp.float32)
  moved = strengths(rotation=1.0, scale=0.3, shift=4.0)
  for seed in range(5):
    example = {"image": disc, "label": disc.astype(jnp.uint8), "teacher": jnp.stack([1.0 - disc, disc], -1)}
    got = augment(example, jax.random.key(seed), (32, 32), moved)
    assert got["label"].sum() > 20
    assert float(jnp.abs((got["image"] > 0.5) - got["label"].astype(jnp.float32)).mean()) < 0.02
    np.testing.assert_allclose(got["teacher"][..., 1], got["image"], atol=1e-6)


def test_labels_are_not_interpolated():
  """Between background and RV lies no Myo and no LV."""
  y, x = jnp.mgrid[:40, :40]
  label = jnp.where((y - 20) ** 2 + (x - 14) ** 2 < 80, 3, 0).astype(jnp.uint8)
  for seed in range(5):
    example = {"image": label / 3.0, "label": label}
    got = augment(example, jax.random.key(seed), (32, 32), strengths(rotation=1.0, scale=0.3, shift=4.0))
    assert set(np.unique(got["label"])) == {0, 3}


def test_a_teacher_is_background_outside_of_the_image():
  teacher = jnp.full((8, 8, 4), 0.25, jnp.float16)
  got = augment({"image": jnp.ones((8, 8)), "teacher": teacher}, KEY, (16, 16), strengths(shift=6.0, rotation=0.5))
  np.testing.assert_allclose(got["teacher"].sum(-1), 1.0, atol=1e-5)
  outside = got["image"] == 0.0
  assert outside.sum() > 100
  np.testing.assert_array_equal(got["teacher"][outside], jnp.tile(jnp.eye(4)[0], (int(outside.sum()), 1)))


def test_intensities_of_labels_and_teachers_do_not_change(image, label):
  """And the geometry is the same, whatever else is drawn."""
  example = {"image": image, "label": label, "teacher": jax.nn.softmax(jax.random.normal(KEY, (24, 20, 4)))}
  all_but_contraction = strengths(**GEOMETRY, **INTENSITY, scar=1.0)
  strong, moved = (augment(example, KEY, (24, 20), which) for which in (all_but_contraction, strengths(**GEOMETRY)))
  for name in ("label", "teacher"):
    np.testing.assert_array_equal(strong[name], moved[name])
  assert float(jnp.abs(strong["image"] - moved["image"]).max()) > 0.05


def test_the_transforms_of_intensities_are_composed_in_order_each_with_its_key(image):
  """So a stage that is trained again, or resumed, has the images that it had."""
  _, *keys, _ = jax.random.split(KEY, 8)
  second, place, _ = jax.random.split(jax.random.fold_in(KEY, 9), 3)
  expected = noise(blur(bias_field(contrast(gamma(image, keys[0], 0.5), keys[1], 0.4), keys[2], 0.3), keys[3], 1.0),
                   keys[4], 0.2)  # fmt: skip
  amounts = {"gamma": 0.5, "contrast": 0.4, "bias": 0.3, "blur": 1.0, "noise": 0.2}
  got = augment({"image": image}, KEY, (24, 20), strengths(**amounts))["image"]
  np.testing.assert_allclose(got, expected, atol=1e-4)
  got = augment({"image": image}, KEY, (24, 20), strengths(gin=1.0, ipa=1.0))["image"]
  np.testing.assert_allclose(got, blend(gin(image, keys[5], 1.0), gin(image, second, 1.0), place), atol=2e-3)


@pytest.mark.parametrize(("ipa", "least", "most"), [(0.0, 0, 0), (0.5, 30, 70), (1.0, 100, 100)])
def test_ipa_is_the_probability_that_an_image_is_the_blend_of_two_networks(image, monkeypatch, ipa, least, most):
  monkeypatch.setattr(intensity, "gin", lambda image, key, strength: strength * jax.random.uniform(key, image.shape))
  monkeypatch.setattr(intensity, "blend", lambda first, second, key: 2.0 + first - second)
  draw = lambda key: augment({"image": image}, key, (24, 20), strengths(gin=1.0, ipa=ipa))["image"]
  images = np.asarray(jax.vmap(draw)(jax.random.split(KEY, 100)))
  blended = images.max((1, 2)) > 1.0
  assert least <= int(blended.sum()) <= most
  assert all(np.ptp(image) > 0.5 for image in images)  # so the two networks of a blend have different keys


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31 - 1))
def test_images_stay_in_their_range_and_labels_among_the_classes(seed):
  image = jax.random.uniform(jax.random.key(seed), (24, 20))
  label = jax.random.randint(jax.random.key(seed), (24, 20), 0, 4).astype(jnp.uint8)
  got = augment({"image": image, "label": label}, jax.random.key(seed), (16, 16), STRONG)
  assert got["image"].shape == got["label"].shape == (16, 16)
  assert bool(jnp.isfinite(got["image"]).all())
  assert 0.0 <= float(got["image"].min()) <= float(got["image"].max()) <= 1.0
  assert int(got["label"].max()) <= 3


def test_a_key_determines_the_image(image):
  draw = lambda seed: augment({"image": image}, jax.random.key(seed), (16, 16), STRONG)["image"]
  np.testing.assert_array_equal(draw(3), draw(3))
  assert float(jnp.abs(draw(3) - draw(4)).max()) > 0.05
