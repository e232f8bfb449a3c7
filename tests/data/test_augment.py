import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from vamcei_jax.data.augment import (
  RELAXATION,
  SCAR_BRIGHTNESS,
  SCAR_TEXTURE,
  augment,
  bias_field,
  blend,
  blur,
  contrast,
  gamma,
  gin,
  noise,
  scar,
)

OFF = {"rotation": 0.0, "scale": 0.0, "shift": 0.0, "flip": (), "gamma": 0.0, "contrast": 0.0, "bias": 0.0}
OFF |= {"blur": 0.0, "noise": 0.0, "gin": 0.0, "ipa": 0.0, "scar": 0.0, "contraction": 0.0}
STRONG = OFF | {"rotation": 0.5, "scale": 0.3, "shift": 5.0, "gamma": 0.5, "contrast": 0.5, "bias": 0.5}
STRONG |= {"blur": 1.0, "noise": 0.2, "gin": 1.0, "ipa": 0.5, "scar": 0.5, "contraction": 0.5}
KEY = jax.random.key(0)


@pytest.fixture
def image():
  return jax.random.uniform(jax.random.key(1), (24, 20))


@pytest.fixture
def label():
  return jax.random.randint(jax.random.key(2), (24, 20), 0, 4).astype(jnp.uint8)


def test_without_strengths_an_image_of_the_same_size_is_itself(image, label):
  teacher = jax.nn.softmax(jax.random.normal(KEY, (24, 20, 4)))
  got = augment({"image": image, "label": label, "teacher": teacher}, KEY, (24, 20), ConfigDict(OFF))
  np.testing.assert_allclose(got["image"], image, atol=1e-5)
  np.testing.assert_array_equal(got["label"], label)
  np.testing.assert_allclose(got["teacher"], teacher, atol=1e-5)


def test_labels_and_teachers_move_with_their_image():
  y, x = jnp.mgrid[:40, :40]
  disc = ((y - 20) ** 2 + (x - 14) ** 2 < 80).astype(jnp.float32)
  strengths = ConfigDict(OFF | {"rotation": 1.0, "scale": 0.3, "shift": 4.0})
  for seed in range(5):
    example = {"image": disc, "label": disc.astype(jnp.uint8), "teacher": jnp.stack([1.0 - disc, disc], -1)}
    view = augment(example, jax.random.key(seed), (32, 32), strengths)
    assert view["label"].sum() > 20
    assert float(jnp.abs((view["image"] > 0.5) - view["label"].astype(jnp.float32)).mean()) < 0.02
    np.testing.assert_allclose(view["teacher"][..., 1], view["image"], atol=1e-6)


def test_a_teacher_says_background_outside_of_the_image():
  teacher = jnp.full((8, 8, 4), 0.25, jnp.float16)
  strengths = ConfigDict(OFF | {"shift": 6.0, "rotation": 0.5})
  view = augment({"image": jnp.ones((8, 8)), "teacher": teacher}, KEY, (16, 16), strengths)
  np.testing.assert_allclose(view["teacher"].sum(-1), 1.0, atol=1e-5)
  outside = view["image"] == 0.0
  assert outside.sum() > 100
  np.testing.assert_array_equal(view["teacher"][outside], jnp.tile(jnp.eye(4)[0], (int(outside.sum()), 1)))


def test_views_are_rotated_and_scaled_by_the_strengths_at_most():
  """The area of a disc tells the scale, its centre the rotation about the middle of the image."""
  y, x = np.mgrid[:81, :81]
  disc = jnp.asarray((y - 40) ** 2 + (x - 60) ** 2 < 100, jnp.float32)
  areas, angles = [], []
  for seed in range(40):
    strengths = ConfigDict(OFF | {"rotation": 0.4, "scale": 0.2})
    view = np.asarray(augment({"image": disc}, jax.random.key(seed), (81, 81), strengths)["image"])
    areas.append(view.sum() / disc.sum())
    angles.append(np.arctan2((view * (y - 40)).sum(), (view * (x - 40)).sum()))
  assert min(areas) > 1.2**-2 * 0.95
  assert max(areas) < 1.2**2 * 1.05
  assert 0.3 < max(np.abs(angles)) < 0.42
  assert max(areas) > 1.15
  assert min(areas) < 0.87


def test_flips_only_where_anatomy_allows(image):
  def views(flip):
    strengths = ConfigDict(OFF | {"flip": flip})
    return [augment({"image": image}, jax.random.key(seed), (24, 20), strengths)["image"] for seed in range(12)]

  same = lambda a, b: bool(jnp.allclose(a, b, atol=1e-5))
  assert all(same(view, image) for view in views(()))
  assert {(same(view, image), same(view, image[::-1])) for view in views((0,))} == {(True, False), (False, True)}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_images_stay_in_their_range_and_labels_among_the_classes(seed):
  image = jax.random.uniform(jax.random.key(seed), (24, 20))
  label = jax.random.randint(jax.random.key(seed), (24, 20), 0, 4).astype(jnp.uint8)
  view = augment({"image": image, "label": label}, jax.random.key(seed), (16, 16), ConfigDict(STRONG))
  got, got_label = view["image"], view["label"]
  assert got.shape == got_label.shape == (16, 16)
  assert bool(jnp.isfinite(got).all())
  assert 0.0 <= float(got.min()) <= float(got.max()) <= 1.0
  assert int(got_label.max()) <= 3


def test_gamma_is_a_power(image):
  exponents = np.log(np.asarray(gamma(image, KEY, 0.5))) / np.log(np.asarray(image))
  np.testing.assert_allclose(exponents, exponents[0, 0], rtol=1e-3)
  assert abs(np.log(exponents[0, 0])) <= 0.5


def test_contrast_is_affine_in_the_intensity(image):
  dull = 0.4 + 0.2 * image
  got = np.asarray(contrast(dull, KEY, 0.2))
  slope, offset = np.polyfit(np.asarray(dull).ravel(), got.ravel(), 1)
  np.testing.assert_allclose(got, slope * dull + offset, atol=1e-5)
  assert 0.8 <= slope <= 1.2


def test_bias_field_is_smooth_and_bounded():
  flat = jnp.full((32, 32), 0.3)
  log_field = np.log(np.asarray(bias_field(flat, KEY, 0.4)) / 0.3)
  np.testing.assert_allclose(np.abs(log_field).max(), 0.4, rtol=1e-3)
  assert np.abs(np.diff(log_field, axis=0)).max() < 0.2


def test_blur_keeps_constants_and_lowers_the_variance(image):
  np.testing.assert_allclose(blur(jnp.full((9, 9), 0.7), KEY, 2.0), 0.7, rtol=1e-5)
  assert float(blur(image, KEY, 2.0).var()) < float(image.var())


def test_noise_is_white_with_at_most_the_stated_deviation():
  flat = jnp.full((128, 128), 0.5)
  deviations = [float((noise(flat, jax.random.key(seed), 0.1) - flat).std()) for seed in range(10)]
  assert 0.05 < max(deviations) < 0.102


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), scale=st.floats(0.2, 1.0))
def test_gin_does_not_see_the_unit_of_the_intensities(seed, scale):
  key, image = jax.random.key(seed), jax.random.uniform(jax.random.key(1), (24, 20))
  # A network of random signs amplifies rounding.
  np.testing.assert_allclose(gin(scale * image + 0.1, key, 1.0), gin(image, key, 1.0), atol=2e-3)


def test_gin_maps_regions_of_one_value_to_one_value_and_keeps_no_order_of_them():
  """Beyond the reach of four 3×3 kernels from an edge, the output is a function of the intensity."""
  image = jnp.repeat(jnp.repeat(jnp.array([[0.0, 0.4], [0.7, 1.0]]), 20, 0), 20, 1)
  orders = set()
  for seed in range(20):
    got = np.asarray(gin(image, jax.random.key(seed), 1.0))
    inner = [got[i + 5 : i + 15, j + 5 : j + 15] for i in (0, 20) for j in (0, 20)]
    assert max(np.ptp(region) for region in inner) < 1e-4
    orders.add(tuple(np.argsort([region.mean() for region in inner]).tolist()))
  assert len(orders) > 3


def test_gin_of_no_share_is_the_image_on_its_range(image):
  got = gin(image, KEY, 0.0)
  np.testing.assert_allclose(got, (image - image.min()) / (image.max() - image.min()), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_a_blend_is_a_mean_by_shares_from_none_to_all_that_change_smoothly(seed):
  key, nothing = jax.random.key(seed), jnp.zeros((32, 40))
  share = np.asarray(blend(nothing + 1.0, nothing, key))
  np.testing.assert_allclose([share.min(), share.max()], [0.0, 1.0], atol=1e-6)
  steps = [np.abs(np.diff(share, axis=axis)).max() for axis in (0, 1)]
  assert max(steps) < 0.25  # the steepest cubic: 1.5 · IPA_POINTS / 32
  one, other = jax.random.uniform(jax.random.key(1), (2, 32, 40))
  np.testing.assert_allclose(blend(one, other, key), share * one + (1.0 - share) * other, atol=1e-6)


@pytest.mark.parametrize(("ipa", "least", "most"), [(0.0, 0, 0), (0.5, 30, 70), (1.0, 98, 100)])
def test_two_networks_share_as_many_images_as_ipa_says_and_one_makes_the_others(image, ipa, least, most):
  def views(ipa):
    view = lambda key: augment({"image": image}, key, (24, 20), ConfigDict(OFF | {"gin": 1.0, "ipa": ipa}))["image"]
    return jax.vmap(view)(jax.random.split(KEY, 100))

  shared = jnp.abs(views(ipa) - views(0.0)).max((1, 2)) > 1e-2
  assert least <= int(shared.sum()) <= most


def heart():
  """A bright cavity in a dark ring, beside a right ventricle."""
  y, x = np.mgrid[:64, :64]
  radius = np.hypot(y - 32, x - 36)
  label = np.where(radius < 10, 2, np.where(radius < 16, 1, np.where((x < 24) & (radius < 30), 3, 0))).astype(np.uint8)
  return jnp.asarray(np.array([0.3, 0.15, 0.6, 0.6], np.float32)[label]), jnp.asarray(label)


def test_scar_is_in_the_myocardium_alone_and_as_bright_as_blood_or_brighter():
  image, label = heart()
  sizes, brightest = [], []
  for seed in range(40):
    got = scar(image, label, jax.random.key(seed), 1.0)
    # Beside a scar that would be brighter than 1, all else is as much darker.
    scale = float(got[0, 0] / image[0, 0])
    outside = (label == 0) | (label == 3)
    np.testing.assert_allclose(got[outside], scale * image[outside], rtol=1e-5)
    middle = (label == 2) & (np.hypot(*(np.mgrid[:64, :64] - np.array([32, 36])[:, None, None])) < 6)
    np.testing.assert_allclose(got[middle], scale * 0.6, rtol=1e-2)
    scarred = (got > 2.0 * 0.15 * scale) & (label == 1)
    sizes.append(int(scarred.sum()) / int((label == 1).sum()))
    if sizes[-1] > 0.3:  # thin ones are soft all over
      brightest.append(float(got[label == 1].max()) / (scale * 0.6))
      assert scale == 1.0 or float(got[label == 1].max()) > 0.9
  assert 0.0 < min(sizes) < 0.3 < 0.6 < max(sizes)
  low, high = SCAR_BRIGHTNESS
  assert low * 0.9 < min(brightest) < 1.2 < 2.0 < max(brightest) < high + 0.2


def test_scars_keep_fine_texture_and_no_more():
  image, label = heart()
  y, x = np.mgrid[:64, :64]
  rings = np.hypot(y - 32, x - 36)
  within = (rings > 13.5) & (rings < 15)  # of the wall, away from what is blurred at its inner edge
  checks = jnp.asarray(np.where((y + x) % 2, 0.05, -0.05), jnp.float32)
  kept = []
  for seed in range(60):
    plain, textured, strong = (
      np.asarray(scar(image + share * checks * (label == 1), label, jax.random.key(seed), 1.0))[within]
      for share in (0.0, 1.0, 2.9)
    )
    scale = float(scar(image, label, jax.random.key(seed), 1.0)[0, 0] / 0.3)
    bright = plain > 0.5 * scale  # scar through and through
    if bright.sum() > 20 and plain[bright].max() < 0.9:
      kept.append(np.abs(textured - plain)[bright].mean() / scale)
      assert np.abs(strong - plain)[bright].max() < 1.25 * SCAR_TEXTURE * scale
  assert len(kept) > 3
  assert 0.02 < np.mean(kept) < 0.06


def test_scar_begins_at_the_endocardium():
  image, label = heart()
  y, x = np.mgrid[:64, :64]
  depth = np.hypot(y - 32, x - 36) - 10.0
  inner, outer = [(label == 1) & (depth >= low) & (depth < low + 2.0) for low in (0.0, 4.0)]
  share = lambda got, where: float(((got > 0.3) & where).sum() / where.sum())
  shares = []
  for seed in range(40):
    got = scar(image, label, jax.random.key(seed), 1.0)
    got = got * (image[0, 0] / got[0, 0])  # as bright as before, beside a scar that darkens all else
    shares.append((share(got, inner), share(got, outer)))
    assert shares[-1][1] <= shares[-1][0] + 0.05
  assert sum(beyond < 0.5 * within for within, beyond in shares) > 5  # subendocardial
  assert sum(beyond > 0.8 * within for within, beyond in shares) > 2  # transmural


def test_the_dark_rim_of_the_cavity_does_not_give_a_scar_away():
  image, label = heart()
  y, x = np.mgrid[:64, :64]
  radius = np.hypot(y - 32, x - 36)
  image = jnp.where((radius >= 8) & (radius < 10), 0.35, image)
  whole_rings = 0
  for seed in range(90):
    got = np.asarray(scar(image, label, jax.random.key(seed), 1.0))
    got = got * float(image[0, 0] / got[0, 0])
    inner = (label == 1) & (radius < 12)
    if float(((got > 0.3) & inner).sum() / inner.sum()) > 0.9:
      whole_rings += 1
      profile = [got[(radius >= r) & (radius < r + 1)].mean() for r in range(6, 12)]  # from the cavity into the scar
      # It was 0.25 darker; what fills it is the cavity's mean, of which it is a part itself.
      assert min(profile) > min(profile[0], profile[-1]) - 0.12
  assert whole_rings > 2


def test_so_many_images_are_scarred_and_none_without_heart():
  image, label = heart()
  changed = lambda seed, label: bool((scar(image, label, jax.random.key(seed), 0.3) != image).any())
  assert 0.15 < np.mean([changed(seed, label) for seed in range(100)]) < 0.45
  for missing in (1, 2):
    assert not any(changed(seed, jnp.where(label == missing, 0, label)) for seed in range(20))


def test_a_plain_image_is_moved_as_the_other_and_keeps_its_intensities(image):
  example = {"image": image, "teacher": jax.nn.softmax(jax.random.normal(KEY, (24, 20, 4)))}
  strong = augment(example, KEY, (16, 16), ConfigDict(STRONG))
  geometry = {name: STRONG[name] for name in ("rotation", "scale", "shift")}
  only_moved = augment(example, KEY, (16, 16), ConfigDict(OFF | geometry))
  np.testing.assert_array_equal(strong["plain"], only_moved["image"])
  assert float(jnp.abs(strong["image"] - strong["plain"]).max()) > 0.05


def test_the_same_key_gives_the_same_view_and_another_key_another(image):
  view = lambda seed: augment({"image": image}, jax.random.key(seed), (16, 16), ConfigDict(STRONG))["image"]
  np.testing.assert_array_equal(view(3), view(3))
  assert float(jnp.abs(view(3) - view(4)).max()) > 0.05


def test_a_contracted_heart_keeps_its_wall_and_loses_of_its_cavity():
  y, x = np.mgrid[:160, :160]
  distance = np.hypot(y - 84, x - 76)
  label = jnp.array(np.select([distance < 28, distance < 40], [2, 1], 0) + 3 * ((distance >= 40) & (x < 40)), jnp.uint8)
  example, before = {"image": label / 3.0, "label": label}, np.bincount(label.ravel(), minlength=4)
  strengths, cavities = ConfigDict(OFF | {"contraction": 0.6}), []
  for seed in range(30):
    view = augment(example, jax.random.key(seed), (160, 160), strengths)
    after = np.bincount(view["label"].ravel(), minlength=4)
    assert after[1] == pytest.approx(before[1], rel=0.08)
    assert after[3] == pytest.approx(before[3], rel=0.05)
    cavities.append(after[2] / before[2])
    middle = np.argwhere(view["label"] == 2).mean(0)
    np.testing.assert_allclose(middle, (84, 76), atol=0.5)
    assert np.abs(view["image"] - view["label"] / 3.0).mean() < 0.05
  assert 1.0 - 0.6 - 0.03 < min(cavities) < 0.5
  assert 1.05 < max(cavities) < 1.0 + 0.6 * RELAXATION + 0.03
  for unlabelled in ({"image": example["image"]}, example | {"label": jnp.where(label == 2, 1, label)}):
    np.testing.assert_allclose(augment(unlabelled, KEY, (160, 160), strengths)["image"], example["image"], atol=1e-5)
