import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.augment.inputs import heart, strengths
from vamcei_jax.data.augment import augment
from vamcei_jax.data.augment.cardiac import DILATION, SCAR_BRIGHTNESS, SCAR_TEXTURE, scar

KEY = jax.random.key(0)
paint_scar = jax.jit(scar, static_argnums=3)


def test_scar_is_in_the_myocardium_alone_and_as_bright_as_blood_or_brighter():
  image, label = heart()
  sizes, brightest = [], []
  for seed in range(40):
    got = paint_scar(image, label, jax.random.key(seed), 1.0)
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


def test_scars_have_fine_texture_and_no_more():
  image, label = heart()
  y, x = np.mgrid[:64, :64]
  rings = np.hypot(y - 32, x - 36)
  within = (rings > 13.5) & (rings < 15)  # of the wall, away from what is blurred at its inner edge
  checks = jnp.asarray(np.where((y + x) % 2, 0.05, -0.05), jnp.float32)
  textures = []
  for seed in range(60):
    smooth, textured, strong = (
      np.asarray(paint_scar(image + share * checks * (label == 1), label, jax.random.key(seed), 1.0))[within]
      for share in (0.0, 1.0, 2.9)
    )
    scale = float(paint_scar(image, label, jax.random.key(seed), 1.0)[0, 0] / 0.3)
    bright = smooth > 0.5 * scale  # scar of full opacity
    if bright.sum() > 20 and smooth[bright].max() < 0.9:
      textures.append(np.abs(textured - smooth)[bright].mean() / scale)
      assert np.abs(strong - smooth)[bright].max() < 1.25 * SCAR_TEXTURE * scale
  assert len(textures) > 3
  assert 0.02 < np.mean(textures) < 0.06


def test_scar_begins_at_the_endocardium():
  image, label = heart()
  y, x = np.mgrid[:64, :64]
  depth = np.hypot(y - 32, x - 36) - 10.0
  inner, outer = [(label == 1) & (depth >= low) & (depth < low + 2.0) for low in (0.0, 4.0)]
  share = lambda got, where: float(((got > 0.3) & where).sum() / where.sum())
  shares = []
  for seed in range(40):
    got = paint_scar(image, label, jax.random.key(seed), 1.0)
    got = got * (image[0, 0] / got[0, 0])  # as bright as before, beside a scar that darkens all else
    shares.append((share(got, inner), share(got, outer)))
    assert shares[-1][1] <= shares[-1][0] + 0.05
  assert sum(outside < 0.5 * inside for inside, outside in shares) > 5  # subendocardial
  assert sum(outside > 0.8 * inside for inside, outside in shares) > 2  # transmural


def test_the_dark_rim_of_the_cavity_does_not_distinguish_a_scar():
  image, label = heart()
  y, x = np.mgrid[:64, :64]
  radius = np.hypot(y - 32, x - 36)
  image = jnp.where((radius >= 8) & (radius < 10), 0.35, image)
  rings = 0
  for seed in range(90):
    got = np.asarray(paint_scar(image, label, jax.random.key(seed), 1.0))
    got = got * float(image[0, 0] / got[0, 0])
    inner = (label == 1) & (radius < 12)
    if float(((got > 0.3) & inner).sum() / inner.sum()) > 0.9:
      rings += 1
      profile = [got[(radius >= r) & (radius < r + 1)].mean() for r in range(6, 12)]  # from the cavity into the scar
      # It was 0.25 darker; its filling is the cavity's mean, to which the rim belongs.
      assert min(profile) > min(profile[0], profile[-1]) - 0.12
  assert rings > 2


def test_the_probability_of_a_scar_is_that_which_is_given_and_0_without_a_heart():
  image, label = heart()
  changed = lambda seed, label: bool((paint_scar(image, label, jax.random.key(seed), 0.3) != image).any())
  assert 0.15 < np.mean([changed(seed, label) for seed in range(100)]) < 0.45
  for missing in (1, 2):
    assert not any(changed(seed, jnp.where(label == missing, 0, label)) for seed in range(20))


def test_a_contracted_heart_keeps_the_area_of_its_wall_and_loses_area_of_its_cavity():
  y, x = np.mgrid[:160, :160]
  distance = np.hypot(y - 84, x - 76)
  label = jnp.array(np.select([distance < 28, distance < 40], [2, 1], 0) + 3 * ((distance >= 40) & (x < 40)), jnp.uint8)
  example, before = {"image": label / 3.0, "label": label}, np.bincount(label.ravel(), minlength=4)
  contracted = jax.jit(lambda example, key: augment(example, key, (160, 160), strengths(contraction=0.6)))
  cavities = []
  for seed in range(30):
    got = jax.device_get(contracted(example, jax.random.key(seed)))
    after = np.bincount(got["label"].ravel(), minlength=4)
    assert after[1] == pytest.approx(before[1], rel=0.08)
    assert after[3] == pytest.approx(before[3], rel=0.05)
    cavities.append(after[2] / before[2])
    middle = np.argwhere(got["label"] == 2).mean(0)
    np.testing.assert_allclose(middle, (84, 76), atol=0.5)
    assert np.abs(got["image"] - got["label"] / 3.0).mean() < 0.05
  assert 1.0 - 0.6 - 0.03 < min(cavities) < 0.5
  assert 1.05 < max(cavities) < 1.0 + 0.6 * DILATION + 0.03
  for unlabelled in ({"image": example["image"]}, example | {"label": jnp.where(label == 2, 1, label)}):
    np.testing.assert_allclose(contracted(unlabelled, KEY)["image"], example["image"], atol=1e-5)
