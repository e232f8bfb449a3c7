"""Facts about class prototypes and their contrast (eqs. 9–10)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from vamcei_jax import losses

class_prototypes = jax.jit(losses.class_prototypes)
prototype_contrast = jax.jit(losses.prototype_contrast)


def one_hot_maps(rng, shape, classes, features):
  labels = rng.integers(classes, size=shape)
  return np.float32(rng.normal(size=(*shape, features))), np.eye(classes, dtype=np.float32)[labels]


# Prototypes.


@settings(max_examples=15)
@given(
  shape=st.sampled_from([(1, 1, 1), (2, 4, 5)]),
  kind=st.sampled_from(["labels", "probabilities", "confident"]),
  seed=st.integers(0, 2**32 - 1),
)
def test_a_prototype_is_the_weighted_mean_over_the_pixels_of_its_class(shape, kind, seed):
  rng = np.random.default_rng(seed)
  features, class_map = one_hot_maps(rng, shape, 4, 3)
  if kind != "labels":
    class_map = rng.dirichlet(np.ones(4), size=shape).astype(np.float32)
  if kind == "confident":
    class_map *= class_map > 0.5
  prototypes, present = class_prototypes(features, class_map)
  assert prototypes.shape == (4, 3)
  for k in range(4):
    pixels = [p for p in np.ndindex(shape) if class_map[p][k] > 0]
    assert present[k] == bool(pixels)
    weight = sum(np.float64(class_map[p][k]) for p in pixels)
    expected = sum(class_map[p][k] * np.float64(features[p]) for p in pixels) / weight if pixels else np.zeros(3)
    np.testing.assert_allclose(prototypes[k], expected, rtol=1e-4, atol=1e-6)


def test_an_absent_class_has_a_zero_prototype_and_no_gradient(rng):
  features, class_map = one_hot_maps(rng, (2, 4, 4), 4, 3)
  class_map[..., 3] = 0.0
  prototypes, present = class_prototypes(features, class_map)
  assert present.tolist() == [True, True, True, False]
  np.testing.assert_array_equal(prototypes[3], 0.0)
  of_the_absent = lambda *x: (losses.class_prototypes(*x)[0][3] + 1).prod()
  for grad in jax.jit(jax.grad(of_the_absent, argnums=(0, 1)))(features, class_map):
    np.testing.assert_array_equal(grad, 0.0)


def test_gradients_are_bounded_however_little_a_class_weighs(rng):
  features, class_map = one_hot_maps(rng, (2, 4, 4), 4, 3)
  gradient = jax.jit(jax.grad(lambda *x: losses.class_prototypes(*x)[0].sum()))
  for weight in (0.0, 1e-38, 1e-9, 1e-5, 1.0):
    class_map[...] = 0.0
    class_map[0, 1, 2, 0] = weight
    expected = np.zeros_like(features)
    expected[0, 1, 2] = weight >= 1e-6
    np.testing.assert_allclose(gradient(features, class_map), expected, rtol=1e-6)


def test_the_gradient_of_prototypes_is_that_of_finite_differences(rng):
  features, class_map = one_hot_maps(rng, (2, 4, 4), 4, 3)
  loss = lambda *x: class_prototypes(*x)[0]
  check_grads(loss, (features, 0.1 + class_map), order=1, modes=("rev",), eps=1e-2, atol=1e-2, rtol=1e-2)


def test_the_order_of_images_does_not_matter_to_prototypes(rng):
  features, class_map = one_hot_maps(rng, (2, 4, 4), 4, 3)
  np.testing.assert_allclose(
    class_prototypes(features[::-1], class_map[::-1])[0], class_prototypes(features, class_map)[0], atol=1e-6
  )


def test_bfloat16_features_are_summed_in_float32(rng):
  features, class_map = one_hot_maps(rng, (2, 4, 4), 4, 3)
  features = features.astype(jnp.bfloat16)
  prototypes, _ = class_prototypes(features, class_map.astype(jnp.bfloat16))
  assert prototypes.dtype == jnp.float32
  np.testing.assert_allclose(prototypes, class_prototypes(np.float32(features), class_map)[0], rtol=1e-6)


# Contrast.


def contrast_reference(proto_s, present_s, proto_t, present_t, temperature):
  """Eq. 10, a class and a summand at a time, in float64."""
  e = lambda a, b: np.exp(a @ b / np.linalg.norm(a) / np.linalg.norm(b) / temperature)
  s, t = np.float64(proto_s), np.float64(proto_t)
  per_class = []
  for k in range(len(s)):
    if present_s[k] and present_t[k]:
      denominator = e(s[k], t[k])
      for i in range(len(s)):
        if i != k and present_t[i]:
          denominator += e(s[k], t[i]) + e(t[k], t[i])
      per_class.append(-np.log(e(s[k], t[k]) / denominator))
  return np.mean(per_class) if per_class else 0.0


@settings(max_examples=30)
@given(
  present_s=st.lists(st.booleans(), min_size=4, max_size=4),
  present_t=st.lists(st.booleans(), min_size=4, max_size=4),
  temperature=st.floats(0.05, 5.0),
  seed=st.integers(0, 2**32 - 1),
)
def test_the_contrast_is_the_loop_over_present_classes(present_s, present_t, temperature, seed):
  s, t = np.random.default_rng(seed).normal(size=(2, 4, 6))
  present_s, present_t = np.array(present_s), np.array(present_t)
  absent = np.float32(np.nan)  # must not be read
  got_s, got_t = (np.where(p[:, None], x, absent).astype(np.float32) for x, p in ((s, present_s), (t, present_t)))
  arguments = (got_s, present_s, got_t, present_t)
  value, grads = contrast_and_grads(*arguments, temperature)
  np.testing.assert_allclose(value, contrast_reference(s, present_s, t, present_t, temperature), rtol=2e-4, atol=1e-6)
  for grad, present in zip(grads, (present_s, present_t), strict=True):
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(np.asarray(grad)[~present], 0.0)


def test_without_a_shared_class_contrast_and_gradient_are_zero(rng):
  s, t = np.float32(rng.normal(size=(2, 4, 6)))
  only_s, only_t, none = np.array([True, True, False, False]), np.array([False, False, True, True]), np.zeros(4, bool)
  for present_s, present_t in ((only_s, only_t), (only_s, none), (none, none)):
    value, grads = contrast_and_grads(s, present_s, t, present_t, 0.1)
    assert value == 0.0
    for grad in grads:
      np.testing.assert_array_equal(grad, 0.0)


def test_one_class_alone_has_nothing_to_be_told_from(rng):
  s, t = np.float32(rng.normal(size=(2, 4, 6)))
  alone = np.array([True, False, False, False])
  assert prototype_contrast(s, alone, t, alone, temperature=0.1) == 0.0


def test_orthogonal_classes_that_agree_across_domains_have_the_least_contrast():
  present, basis = np.ones(4, bool), np.eye(4)
  got = prototype_contrast(basis, present, 3 * basis, present, temperature=0.1)
  np.testing.assert_allclose(got, np.log1p(6 * np.exp(-10)), rtol=1e-2)  # e^-10 is resolved to eps · 10 / e^-10
  swapped = prototype_contrast(basis, present, basis[np.array([1, 0, 2, 3])], present, temperature=0.1)
  assert swapped > 1.0


def test_the_length_of_prototypes_does_not_matter(rng):
  s, t = np.float32(rng.normal(size=(2, 4, 6)))
  present = np.ones(4, bool)
  lengths = np.float32([[1e-4], [1e-2], [1e3], [1e6]])
  np.testing.assert_allclose(
    prototype_contrast(lengths * s, present, lengths[::-1] * t, present, temperature=0.5),
    prototype_contrast(s, present, t, present, temperature=0.5),
    rtol=1e-5,
  )


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-7, 1e-5])
def test_vanishing_prototypes_give_finite_values_and_gradients(rng, length):
  s, t = np.float32(rng.normal(size=(2, 4, 6)))
  present = np.ones(4, bool)
  short = np.float32([[1], [length], [1], [1]])
  value, grads = contrast_and_grads(s * short, present, t * short[::-1], present, 0.1)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("temperature", [1e-4, 1e4])
def test_extreme_temperatures_give_finite_values_and_gradients(rng, temperature):
  s, t = np.float32(rng.normal(size=(2, 4, 6)))
  present = np.ones(4, bool)
  value, grads = contrast_and_grads(s, present, t, present, temperature)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in grads)


def test_the_gradient_of_the_contrast_is_that_of_finite_differences(rng):
  s, t = np.float32(rng.normal(size=(2, 4, 6)))
  present_s, present_t = np.array([True, True, True, False]), np.array([True, False, True, True])
  loss = lambda s, t: prototype_contrast(s, present_s, t, present_t, temperature=0.7)
  check_grads(loss, (s, t), order=1, modes=("rev",), eps=1e-2, atol=1e-2, rtol=1e-2)


def test_the_names_of_classes_do_not_matter(rng):
  s, t = np.float32(rng.normal(size=(2, 4, 6)))
  present_s, present_t = np.array([True, True, True, False]), np.array([True, True, False, True])
  order = np.array([2, 0, 3, 1])
  np.testing.assert_allclose(
    prototype_contrast(s[order], present_s[order], t[order], present_t[order], temperature=0.3),
    prototype_contrast(s, present_s, t, present_t, temperature=0.3),
    rtol=1e-6,
  )


def test_bfloat16_prototypes_are_compared_in_float32(rng):
  s, t = rng.normal(size=(2, 4, 6)).astype(jnp.bfloat16)
  present = np.ones(4, bool)
  got = prototype_contrast(s, present, t, present, temperature=0.1)
  assert got.dtype == jnp.float32
  expected = prototype_contrast(np.float32(s), present, np.float32(t), present, temperature=0.1)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


@jax.jit
def contrast_and_grads(proto_s, present_s, proto_t, present_t, temperature):
  loss = lambda s, t: losses.prototype_contrast(s, present_s, t, present_t, temperature=temperature)
  return jax.value_and_grad(loss, argnums=(0, 1))(proto_s, proto_t)
