import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.augment.inputs import strengths
from vamcei_jax.data.augment import augment
from vamcei_jax.data.augment.geometry import random_coordinates, sample_maps

SHAPE, SIZE = (20, 31), (12, 8)


def many_coordinates(count=600, shape=SHAPE, size=SIZE, **amounts):
  """(count, 2, h, w) coordinates of as many keys."""
  draw = lambda key: random_coordinates(key, shape, size, strengths(**amounts))
  return np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), count)))


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_a_crop_stays_in_the_image_but_for_the_shift_and_reaches_both_of_its_ends(shift):
  coordinates = many_coordinates(shift=shift)
  for axis, (pixels, crop) in enumerate(zip(SHAPE, SIZE, strict=True)):
    first, last = coordinates[:, axis].min((1, 2)), coordinates[:, axis].max((1, 2))
    np.testing.assert_allclose(last - first, crop - 1, atol=1e-4)
    room = pixels - crop + 2 * shift
    # Of 600 uniform draws, the extremes are within 2 % of the range but for a probability of 1e-5.
    assert -shift - 1e-4 < first.min() < -shift + 0.02 * room
    assert pixels - 1 + shift - 0.02 * room < last.max() < pixels - 1 + shift + 1e-4
    assert first.mean() == pytest.approx((pixels - crop) / 2, abs=0.05 * room)
    assert first.std() == pytest.approx(room / np.sqrt(12), rel=0.1)
  assert abs(np.corrcoef(coordinates[:, :, 0, 0].T)[0, 1]) < 0.15


def test_without_rotation_and_scale_a_crop_moves_by_whole_pixels():
  coordinates = many_coordinates(count=50, shift=3.0)
  np.testing.assert_allclose(coordinates, np.round(coordinates), atol=1e-5)
  turned = many_coordinates(count=50, shift=3.0, rotation=0.1)
  assert np.abs(turned - np.round(turned)).max() > 0.1


def test_a_crop_is_a_part_of_its_image_and_of_its_label():
  image = jnp.arange(np.prod(SHAPE), dtype=jnp.float32).reshape(SHAPE) / np.prod(SHAPE)
  for seed in range(5):
    coordinates = random_coordinates(jax.random.key(seed), SHAPE, SIZE, strengths())
    crop = augment({"image": image}, jax.random.key(seed), SIZE, strengths())["image"]
    rows, columns = np.diff(np.asarray(crop), axis=0), np.diff(np.asarray(crop), axis=1)
    np.testing.assert_allclose(rows, SHAPE[1] / np.prod(SHAPE), atol=1e-5)
    np.testing.assert_allclose(columns, 1.0 / np.prod(SHAPE), atol=1e-5)
    row, column = coordinates[:, 0, 0]
    np.testing.assert_allclose(
      sample_maps({"image": image}, coordinates)["image"][0, 0], (row * SHAPE[1] + column) / np.prod(SHAPE), atol=1e-5
    )


def test_a_field_of_the_size_of_the_image_or_larger_is_centred_on_it():
  whole = random_coordinates(jax.random.key(0), SHAPE, SHAPE, strengths())
  np.testing.assert_allclose(whole, np.mgrid[: SHAPE[0], : SHAPE[1]], atol=1e-4)
  larger = random_coordinates(jax.random.key(0), SHAPE, (SHAPE[0] + 4, SHAPE[1] + 2), strengths())
  np.testing.assert_allclose(larger[:, 2:-2, 1:-1], whole, atol=1e-4)


def test_images_are_rotated_and_scaled_by_the_strengths_at_most():
  """The area of a disc tells the scale, its centre the rotation about the middle of the image."""
  y, x = np.mgrid[:81, :81]
  disc = jnp.asarray((y - 40) ** 2 + (x - 60) ** 2 < 100, jnp.float32)
  areas, angles = [], []
  for seed in range(40):
    image = augment({"image": disc}, jax.random.key(seed), (81, 81), strengths(rotation=0.4, scale=0.2))["image"]
    image = np.asarray(image)
    areas.append(image.sum() / disc.sum())
    angles.append(np.arctan2((image * (y - 40)).sum(), (image * (x - 40)).sum()))
  assert min(areas) > 1.2**-2 * 0.95
  assert max(areas) < 1.2**2 * 1.05
  assert max(areas) > 1.15
  assert min(areas) < 0.87
  assert max(np.abs(angles)) < 0.42
  assert max(angles) > 0.3
  assert min(angles) < -0.3


def test_images_are_mirrored_only_along_the_axes_that_are_given():
  image = jax.random.uniform(jax.random.key(1), (24, 20))
  reflections = {(False, False): image, (True, False): image[::-1], (False, True): image[:, ::-1]}
  reflections[True, True] = image[::-1, ::-1]

  def found(flip):
    images = [augment({"image": image}, jax.random.key(seed), (24, 20), strengths(flip=flip)) for seed in range(16)]
    equal = lambda a, b: bool(jnp.allclose(a, b, atol=1e-5))
    return {next(name for name, other in reflections.items() if equal(each["image"], other)) for each in images}

  assert found(()) == {(False, False)}
  assert found((0,)) == {(False, False), (True, False)}
  assert found((1,)) == {(False, False), (False, True)}
  assert found((0, 1)) == set(reflections)


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_upright_images_are_hardly_rotated_and_not_mirrored(share):
  """The linear map of the coordinates has the rotation, and a negative determinant where one axis is mirrored."""
  maps = many_coordinates(2000, (9, 9), (9, 9), rotation=3.0, flip=(0,), upright=share)
  rows, columns = maps[:, :, 1, 0] - maps[:, :, 0, 0], maps[:, :, 0, 1] - maps[:, :, 0, 0]  # of one pixel down, right
  angles = np.abs(np.arctan2(columns[:, 0], columns[:, 1]))
  mirrored = rows[:, 0] * columns[:, 1] < rows[:, 1] * columns[:, 0]
  hardly_turned = (angles <= 0.3 + 1e-5) & ~mirrored
  # Of the others, a tenth is rotated that little, and half is not mirrored.
  assert hardly_turned.mean() == pytest.approx(share + (1 - share) * 0.1 / 2, abs=0.03)
  assert angles[hardly_turned].max() > 0.29
