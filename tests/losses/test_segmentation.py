"""Facts about cross-entropy and soft Dice (eq. 4)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from vamcei_jax import losses

segmentation, gradients = jax.jit(losses.segmentation), jax.jit(jax.jacrev(losses.segmentation))


def reference(logits, labels, weights):
  """Pixel by pixel in float64, with the smoothing of one pixel that the docstring states."""
  classes = logits.shape[-1]
  nll = weight = 0.0
  overlap, sizes = np.zeros(classes), np.zeros(classes)
  for pixel in np.ndindex(labels.shape):
    p = np.exp(logits[pixel]) / np.exp(logits[pixel]).sum()
    y = labels[pixel]
    nll -= weights[y] * np.log(p[y])
    weight += weights[y]
    overlap[y] += p[y]
    sizes += p
    sizes[y] += 1
  return nll / weight, 1 - np.mean([(2 * overlap[c] + 1) / (sizes[c] + 1) for c in range(1, classes)])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
  shape=st.sampled_from([(1, 1, 1, 2), (2, 5, 5, 4)]),
  weighted=st.booleans(),
  seed=st.integers(0, 2**32 - 1),
)
def test_it_is_the_loop_over_pixels(shape, weighted, seed):
  rng = np.random.default_rng(seed)
  logits, labels = 2 * rng.normal(size=shape), rng.integers(shape[-1], size=shape[:-1])
  weights = rng.uniform(0.1, 3, size=shape[-1]) if weighted else np.ones(shape[-1])
  got = segmentation(np.float32(logits), labels, class_weights=np.float32(weights) if weighted else None)
  np.testing.assert_allclose(got, reference(logits, labels, weights), rtol=2e-5, atol=1e-6)


def test_a_perfect_prediction_costs_nothing(rng):
  labels = rng.integers(4, size=(2, 16, 16))
  ce, dice = segmentation(sure_of(labels), labels)
  assert ce == 0.0
  assert dice == 0.0


def test_a_disjoint_prediction_has_dice_loss_one():
  labels = np.repeat([[[1], [2], [3], [1]]], 1024, axis=2)
  _, dice = segmentation(sure_of(labels % 3 + 1), labels)
  np.testing.assert_allclose(dice, 1.0, atol=1e-3)  # the smoothing is 1 pixel in 2048 or more
  assert dice <= 1.0


def test_a_class_in_neither_labels_nor_prediction_is_not_penalized():
  labels = square(class_=1)
  np.testing.assert_allclose(segmentation(sure_of(labels, 20.0), labels), 0.0, atol=1e-5)


def test_a_class_that_is_predicted_but_absent_is_penalized():
  labels, predicted = square(class_=1), square(class_=1)
  predicted[1, :2] = 2
  _, dice = segmentation(sure_of(predicted), labels)
  np.testing.assert_allclose(dice, (32 / 33) / 3, rtol=1e-6)


def test_absent_classes_have_finite_gradients():
  for labels in (square(class_=1), square(class_=0)):
    impossible = sure_of(labels)
    impossible[..., 2:] = -1e4
    for logits in (np.zeros_like(impossible), sure_of(labels, 20.0), sure_of(labels), impossible):
      assert np.isfinite(segmentation(logits, labels)).all()
      assert all(np.isfinite(g).all() for g in gradients(logits, labels))


def test_dice_is_of_the_batch_and_not_the_mean_over_images():
  labels, predicted = square(class_=1), square(class_=1)  # the second slice has no heart, and one pixel is taken for it
  predicted[1, 0, 0] = 1
  _, dice = segmentation(sure_of(predicted), labels)
  np.testing.assert_allclose(dice, (1 - (2 * 16 + 1) / (16 + 17 + 1)) / 3, rtol=1e-5)


def test_no_pixel_has_an_unbounded_dice_gradient():
  # Through the softmax p (1 − p) ≤ 1/4, and 2 / s = 2: at most 1/2 over the classes, however rare one is.
  labels = square(class_=0)
  for rare in (0.0, -5.0, -10.0, -15.0):
    logits = np.zeros((2, 16, 16, 4), np.float32)
    logits[..., 1] = rare
    _, grad = gradients(logits, labels)
    assert abs(grad).max() <= 0.5


def test_equal_class_weights_change_nothing(rng):
  logits, labels = np.float32(rng.normal(size=(2, 5, 5, 4))), rng.integers(4, size=(2, 5, 5))
  np.testing.assert_allclose(
    segmentation(logits, labels, class_weights=np.full(4, 7.0)), segmentation(logits, labels), rtol=1e-6
  )


def test_labels_of_weight_zero_alone_cost_nothing(rng):
  logits, labels = np.float32(rng.normal(size=(2, 5, 5, 4))), np.zeros((2, 5, 5), int)
  weights = np.float32([0, 1, 1, 1])
  assert segmentation(logits, labels, class_weights=weights)[0] == 0.0
  np.testing.assert_array_equal(gradients(logits, labels, class_weights=weights)[0], 0.0)


@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 0.0, 3.0)])
def test_its_gradient_is_that_of_finite_differences(rng, weights):
  logits, labels = np.float32(rng.normal(size=(2, 5, 5, 4))), rng.integers(4, size=(2, 5, 5))
  loss = lambda l: segmentation(l, labels, class_weights=weights and np.float32(weights))
  check_grads(loss, (logits,), order=1, modes=("rev",), eps=1e-2, atol=1e-3, rtol=1e-2)


def test_the_order_of_images_does_not_matter(rng):
  logits, labels = np.float32(rng.normal(size=(2, 5, 5, 4))), rng.integers(4, size=(2, 5, 5))
  np.testing.assert_allclose(segmentation(logits[::-1], labels[::-1]), segmentation(logits, labels), rtol=1e-6)


def test_extreme_logits_give_finite_values_and_gradients(rng):
  logits = np.float32(rng.choice([-1e4, 1e4], size=(2, 16, 16, 4)))
  labels = rng.integers(4, size=(2, 16, 16))
  assert np.isfinite(segmentation(logits, labels)).all()
  assert all(np.isfinite(g).all() for g in gradients(logits, labels))


def test_bfloat16_is_summed_in_float32(rng):
  logits, labels = rng.normal(size=(2, 16, 16, 4)).astype(jnp.bfloat16), rng.integers(4, size=(2, 16, 16))
  got = segmentation(logits, labels)
  assert all(x.dtype == jnp.float32 for x in got)
  np.testing.assert_allclose(got, segmentation(np.float32(logits), labels), rtol=1e-6)


def square(class_):
  """Labels of two slices: 16 pixels of a class in the first, background in the second."""
  labels = np.zeros((2, 16, 16), int)
  labels[0, 4:8, 4:8] = class_
  return labels


def sure_of(labels, logit=100.0):
  return np.float32(logit) * np.eye(4, dtype=np.float32)[labels]
