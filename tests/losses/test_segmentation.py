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


def reference(logits, targets):
  """Pixel by pixel in float64, with the smoothing of one pixel that the docstring states."""
  classes = logits.shape[-1]
  nll, overlap, sizes = 0.0, np.zeros(classes), np.zeros(classes)
  for pixel in np.ndindex(targets.shape[:-1]):
    p = np.exp(logits[pixel]) / np.exp(logits[pixel]).sum()
    y = np.float64(targets[pixel])
    nll -= sum(share * np.log(q) for share, q in zip(y, p, strict=True))
    overlap += [min(share, q) for share, q in zip(y, p, strict=True)]
    sizes += p + y
  dice = 1 - np.mean([(2 * overlap[c] + 1) / (sizes[c] + 1) for c in range(1, classes)])
  return nll / np.prod(targets.shape[:-1]), dice


def usual_soft_dice(logits, labels):
  """The soft Dice loss of one-hot labels, with the product of probability and label as overlap; as float32 programs."""
  p, y = jnp.exp(jax.nn.log_softmax(logits)), jax.nn.one_hot(labels, logits.shape[-1])
  loss = (p + y - 2.0 * p * y).sum((0, 1, 2)) / ((p + y).sum((0, 1, 2)) + 1.0)
  return loss[1:].mean()


@settings(max_examples=15)
@given(
  shape=st.sampled_from([(1, 1, 1, 2), (2, 5, 5, 4)]),
  soft=st.booleans(),
  seed=st.integers(0, 2**32 - 1),
)
def test_it_is_the_loop_over_pixels(shape, soft, seed):
  rng = np.random.default_rng(seed)
  logits = 2 * rng.normal(size=shape)
  targets = class_shares(rng, shape) if soft else one_hot(rng.integers(shape[-1], size=shape[:-1]), shape[-1])
  got = segmentation(np.float32(logits), targets)
  np.testing.assert_allclose(got, reference(logits, targets), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 10.0, 100.0])
def test_dice_of_one_hot_targets_is_the_usual_soft_dice_bit_for_bit(rng, size):
  logits, labels = np.float32(size * rng.normal(size=(2, 16, 16, 4))), rng.integers(4, size=(2, 16, 16))
  _, dice = segmentation(logits, one_hot(labels))
  np.testing.assert_array_equal(dice, jax.jit(usual_soft_dice)(logits, labels))
  gradient = gradients(logits, one_hot(labels))[1]
  np.testing.assert_allclose(gradient, jax.jit(jax.grad(usual_soft_dice))(logits, labels), atol=1e-9)


def test_both_terms_are_smallest_where_the_prediction_is_the_class_shares(rng):
  shares = class_shares(rng, (2, 4, 4, 4))
  best = np.log(shares)
  ce, dice = segmentation(best, shares)
  np.testing.assert_allclose(ce, -(shares * np.log(shares)).sum(-1).mean(), rtol=1e-6)
  np.testing.assert_allclose(dice, 0.0, atol=1e-6)
  np.testing.assert_allclose(gradients(best, shares)[0], 0.0, atol=1e-8)
  for _ in range(10):
    other = segmentation(best + np.float32(0.1 * rng.normal(size=best.shape)), shares)
    assert other[0] > ce
    assert other[1] > dice + 1e-3
  rounded = segmentation(sure_of(shares.argmax(-1)), shares)
  assert rounded[1] > 0.1


def test_a_perfect_prediction_costs_nothing(rng):
  labels = rng.integers(4, size=(2, 16, 16))
  ce, dice = segmentation(sure_of(labels), one_hot(labels))
  assert ce == 0.0
  assert dice == 0.0


def test_a_disjoint_prediction_has_dice_loss_one():
  labels = np.repeat([[[1], [2], [3], [1]]], 1024, axis=2)
  _, dice = segmentation(sure_of(labels % 3 + 1), one_hot(labels))
  np.testing.assert_allclose(dice, 1.0, atol=1e-3)  # the smoothing is 1 pixel in 2048 or more
  assert dice <= 1.0


def test_a_class_in_neither_labels_nor_prediction_is_not_penalized():
  labels = square(class_=1)
  np.testing.assert_allclose(segmentation(sure_of(labels, 20.0), one_hot(labels)), 0.0, atol=1e-5)


def test_a_class_that_is_predicted_but_absent_is_penalized():
  labels, predicted = square(class_=1), square(class_=1)
  predicted[1, :2] = 2
  _, dice = segmentation(sure_of(predicted), one_hot(labels))
  np.testing.assert_allclose(dice, (32 / 33) / 3, rtol=1e-6)


def test_absent_classes_have_finite_gradients():
  for labels in (square(class_=1), square(class_=0)):
    impossible = sure_of(labels)
    impossible[..., 2:] = -1e4
    for logits in (np.zeros_like(impossible), sure_of(labels, 20.0), sure_of(labels), impossible):
      assert np.isfinite(segmentation(logits, one_hot(labels))).all()
      assert all(np.isfinite(g).all() for g in gradients(logits, one_hot(labels)))


def test_dice_is_of_the_batch_and_not_the_mean_over_images():
  labels, predicted = square(class_=1), square(class_=1)  # the second slice has no heart but one predicted pixel
  predicted[1, 0, 0] = 1
  _, dice = segmentation(sure_of(predicted), one_hot(labels))
  np.testing.assert_allclose(dice, (1 - (2 * 16 + 1) / (16 + 17 + 1)) / 3, rtol=1e-5)


def test_no_pixel_has_an_unbounded_dice_gradient():
  # Through the softmax p (1 − p) ≤ 1/4, and 2 / s = 2: at most 1/2 over the classes, however rare one is.
  labels = square(class_=0)
  for rare in (0.0, -5.0, -10.0, -15.0):
    logits = np.zeros((2, 16, 16, 4), np.float32)
    logits[..., 1] = rare
    _, grad = gradients(logits, one_hot(labels))
    assert abs(grad).max() <= 0.5


@pytest.mark.parametrize("soft", [False, True])
def test_its_gradient_is_that_of_finite_differences(rng, soft):
  logits, labels = np.float32(rng.normal(size=(2, 5, 5, 4))), rng.integers(4, size=(2, 5, 5))
  targets = class_shares(rng, logits.shape) if soft else one_hot(labels)
  loss = lambda l: segmentation(l, targets)
  check_grads(loss, (logits,), order=1, modes=("rev",), eps=1e-2, atol=1e-3, rtol=1e-2)


def test_the_order_of_images_does_not_matter(rng):
  logits, targets = np.float32(rng.normal(size=(2, 5, 5, 4))), one_hot(rng.integers(4, size=(2, 5, 5)))
  np.testing.assert_allclose(segmentation(logits[::-1], targets[::-1]), segmentation(logits, targets), rtol=1e-6)


def test_extreme_logits_give_finite_values_and_gradients(rng):
  logits = np.float32(rng.choice([-1e4, 1e4], size=(2, 16, 16, 4)))
  for targets in (one_hot(rng.integers(4, size=(2, 16, 16))), class_shares(rng, logits.shape)):
    assert np.isfinite(segmentation(logits, targets)).all()
    assert all(np.isfinite(g).all() for g in gradients(logits, targets))


def test_bfloat16_is_summed_in_float32(rng):
  shape = (2, 16, 16, 4)
  logits, shares = (x.astype(jnp.bfloat16) for x in (rng.normal(size=shape), class_shares(rng, shape)))
  got = segmentation(logits, shares)
  assert all(x.dtype == jnp.float32 for x in got)
  np.testing.assert_allclose(got, segmentation(np.float32(logits), np.float32(shares)), rtol=1e-6)


def square(class_):
  """Labels of two slices: 16 pixels of a class in the first, background in the second."""
  labels = np.zeros((2, 16, 16), int)
  labels[0, 4:8, 4:8] = class_
  return labels


def one_hot(labels, classes=4):
  return np.eye(classes, dtype=np.float32)[labels]


def class_shares(rng, shape):
  return np.float32(rng.dirichlet(np.ones(shape[-1]), size=shape[:-1]))


def sure_of(labels, logit=100.0):
  return np.float32(logit) * one_hot(labels)


def test_balanced_cross_entropy_is_the_mean_over_classes_of_the_mean_over_their_pixels():
  """As PyTorch's cross-entropy with the reciprocals of the classes' numbers as weights; a class may be missing."""
  rng = np.random.default_rng(3)
  logits, labels = np.float32(rng.normal(size=(2, 5, 6, 4))), rng.integers(0, 3, (2, 5, 6))
  ce, dice = losses.segmentation(jnp.asarray(logits), jnp.asarray(one_hot(labels)), balanced=True)
  log_p = np.asarray(jax.nn.log_softmax(logits))
  of_class = [-log_p[labels == k][:, k].mean() for k in range(3)]
  np.testing.assert_allclose(ce, np.mean(of_class), rtol=1e-5)
  np.testing.assert_allclose(dice, segmentation(logits, one_hot(labels))[1])
