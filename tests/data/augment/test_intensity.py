import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vamcei_jax.data.augment.intensity import bias_field, blend, blur, contrast, gamma, gin, noise

KEY = jax.random.key(0)


@pytest.fixture
def image():
  return jax.random.uniform(jax.random.key(1), (24, 20))


def over_keys(transform, image, strength, count=200):
  """(count, H, W) images of as many keys."""
  return np.asarray(jax.vmap(lambda key: transform(image, key, strength))(jax.random.split(KEY, count)))


def test_gamma_is_a_power_of_either_side_of_1(image):
  exponents = np.log(over_keys(gamma, image, 0.5)) / np.log(np.asarray(image))
  np.testing.assert_allclose(exponents, np.broadcast_to(exponents[:, :1, :1], exponents.shape), rtol=1e-3)
  logarithms = np.log(exponents[:, 0, 0])
  assert -0.5 <= logarithms.min() < -0.47
  assert 0.47 < logarithms.max() <= 0.5


def test_contrast_is_affine_in_the_intensity(image):
  dull = np.asarray(0.4 + 0.2 * image)
  slopes, shifts = [], []
  for got in over_keys(contrast, dull, 0.2):
    slope, offset = np.polyfit(dull.ravel(), got.ravel(), 1)
    np.testing.assert_allclose(got, slope * dull + offset, atol=1e-5)
    slopes.append(slope)
    shifts.append(got.mean() - dull.mean())
  assert 0.8 <= min(slopes) < 0.82
  assert 1.18 < max(slopes) <= 1.2 + 1e-5
  assert -0.1 - 1e-5 <= min(shifts) < -0.09
  assert 0.09 < max(shifts) <= 0.1 + 1e-5
  assert abs(np.corrcoef(slopes, shifts)[0, 1]) < 0.25


def test_bias_field_is_smooth_and_bounded():
  flat = jnp.full((32, 32), 0.3)
  log_fields = np.log(over_keys(bias_field, flat, 0.4, count=10) / 0.3)
  np.testing.assert_allclose(np.abs(log_fields).max((1, 2)), 0.4, rtol=1e-3)
  for axis in (1, 2):
    assert np.abs(np.diff(log_fields, axis=axis)).max() < 0.2
    assert np.abs(np.diff(log_fields, axis=axis)).max((1, 2)).min() > 1e-3


def test_blur_keeps_constants_and_lowers_the_variance(image):
  np.testing.assert_allclose(blur(jnp.full((9, 9), 0.7), KEY, 2.0), 0.7, rtol=1e-5)
  assert float(blur(image, KEY, 2.0).var()) < float(image.var())


def test_blur_is_as_wide_along_both_axes_and_at_most_as_wide_as_stated():
  point = jnp.zeros((21, 21)).at[10, 10].set(1.0)
  spread = over_keys(blur, point, 0.9)
  np.testing.assert_allclose(spread, spread.transpose(0, 2, 1), atol=1e-6)
  sigmas = np.sqrt((spread.sum(2) * (np.arange(21) - 10.0) ** 2).sum(1))
  assert 0.85 < sigmas.max() < 0.92  # the kernel ends at 3 pixels, and is sampled
  assert sigmas.min() < 0.05


def test_noise_is_white_with_at_most_the_stated_deviation():
  flat = jnp.full((128, 128), 0.5)
  noises = over_keys(noise, flat, 0.1, count=40) - 0.5
  deviations = noises.std((1, 2))
  assert 0.09 < max(deviations) < 0.102
  assert min(deviations) < 0.02
  loud = noises[np.argmax(deviations)]
  for axis in (0, 1):
    neighbours = np.corrcoef(loud.ravel(), np.roll(loud, 1, axis).ravel())[0, 1]
    assert abs(neighbours) < 0.04  # 5 standard errors


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), scale=st.floats(0.2, 1.0))
def test_gin_does_not_depend_on_the_unit_of_the_intensities(seed, scale):
  key, image = jax.random.key(seed), jax.random.uniform(jax.random.key(1), (40, 40))
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


def test_gin_of_no_share_is_the_image_on_its_range():
  image = jax.random.uniform(jax.random.key(1), (40, 40))
  got = gin(image, KEY, 0.0)
  np.testing.assert_allclose(got, (image - image.min()) / (image.max() - image.min()), atol=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31 - 1))
def test_a_blend_is_a_mean_by_shares_from_none_to_all_that_change_smoothly(seed):
  key, nothing = jax.random.key(seed), jnp.zeros((32, 40))
  share = np.asarray(blend(nothing + 1.0, nothing, key))
  np.testing.assert_allclose([share.min(), share.max()], [0.0, 1.0], atol=1e-6)
  steps = [np.abs(np.diff(share, axis=axis)).max() for axis in (0, 1)]
  assert max(steps) < 0.25  # the steepest cubic: 1.5 · IPA_POINTS / 32
  first, second = jax.random.uniform(jax.random.key(1), (2, 32, 40))
  np.testing.assert_allclose(blend(first, second, key), share * first + (1.0 - share) * second, atol=1e-6)
