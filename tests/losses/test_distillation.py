"""Facts about distillation (eq. 16)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from vamcei_jax import losses

distillation = jax.jit(losses.distillation)
gradient = jax.jit(jax.grad(lambda logits, p, t: losses.distillation(logits, p, temperature=t).sum()))


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@settings(max_examples=20)
@given(
  shape=st.sampled_from([(1, 1, 1, 2), (3, 4, 2, 4)]),
  temperature=st.floats(0.25, 20.0),
  zeros=st.booleans(),
  seed=st.integers(0, 2**32 - 1),
)
def test_it_is_the_cross_entropy_of_tempered_distributions(shape, temperature, zeros, seed):
  rng = np.random.default_rng(seed)
  logits, p = 2 * rng.normal(size=shape), rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])
  if zeros:
    p = np.where(p == p.max(-1, keepdims=True), p, p * rng.integers(2, size=shape))
    p /= p.sum(-1, keepdims=True)
  teacher = p ** (1 / temperature)
  teacher /= teacher.sum(-1, keepdims=True)
  per_pixel = -(teacher * np.log(softmax(logits / temperature))).sum(-1)
  expected = temperature**2 * per_pixel.reshape(len(p), -1).mean(-1)
  got = distillation(np.float32(logits), np.float32(p), temperature=temperature)
  np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_at_temperature_one_it_is_cross_entropy(rng):
  logits, p = rng.normal(size=(2, 3, 3, 4)), rng.dirichlet(np.ones(4), size=(2, 3, 3))
  expected = -(p * np.log(softmax(logits))).sum(-1).mean((1, 2))
  np.testing.assert_allclose(distillation(np.float32(logits), np.float32(p), temperature=1.0), expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_smallest_where_the_student_is_the_teacher(rng, temperature):
  p = np.float32(rng.dirichlet(np.ones(4), size=(1, 3, 3)))
  best = np.log(p) + 7.0  # logits have a free constant
  np.testing.assert_allclose(gradient(best, p, temperature), 0.0, atol=1e-6)
  for _ in range(5):
    elsewhere = best + np.float32(rng.normal(size=p.shape))
    assert distillation(elsewhere, p, temperature=temperature) > distillation(best, p, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_its_gradient_is_the_difference_of_tempered_distributions_times_the_temperature(rng, temperature):
  logits, p = np.float32(rng.normal(size=(2, 3, 4))), np.float32(rng.dirichlet(np.ones(4), size=(2, 3)))
  loss = lambda l: distillation(l, p, temperature=temperature)
  expected = temperature * (softmax(np.asarray(logits) / temperature) - softmax(np.log(p) / temperature)) / 3
  np.testing.assert_allclose(gradient(logits, p, temperature), expected, atol=1e-6)
  check_grads(loss, (logits,), order=1, modes=("rev",), eps=1e-2, atol=2e-2, rtol=2e-2)


def test_the_size_of_its_gradient_does_not_vanish_with_temperature(rng):
  logits, p = np.float32(rng.normal(size=(2, 3, 4))), np.float32(rng.dirichlet(np.ones(4), size=(2, 3)))
  size = lambda t: np.linalg.norm(gradient(logits, p, t))
  np.testing.assert_allclose(size(100.0), size(50.0), rtol=0.05)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_a_certain_teacher_is_a_label_at_every_temperature(rng, temperature):
  logits = np.float32(rng.normal(size=(1, 5, 4)))
  label = np.eye(4, dtype=np.float32)[[[0, 1, 2, 3, 3]]]
  expected = -(temperature**2) * np.log(softmax(np.asarray(logits) / temperature))[np.asarray(label) > 0].mean()
  np.testing.assert_allclose(distillation(logits, label, temperature=temperature), [expected], rtol=1e-5)
  assert np.isfinite(gradient(logits, label, temperature)).all()


def test_the_teacher_is_a_constant(rng):
  logits = np.float32(rng.normal(size=(1, 2, 4)))
  p = np.array([[[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]])
  np.testing.assert_array_equal(jax.grad(lambda p: distillation(logits, p, temperature=2.0).sum())(p), 0.0)


def test_extreme_logits_and_probabilities_give_finite_values_and_gradients():
  logits = np.array([[[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]]])
  p = np.array([[[1e-45, 1e-38, 1.0], [0.0, 1.0, 0.0]]])
  for temperature in (0.1, 1.0, 100.0):
    assert np.isfinite(distillation(logits, p, temperature=temperature)).all()
    assert np.isfinite(gradient(logits, p, temperature)).all()


def test_bfloat16_is_averaged_in_float32(rng):
  logits, p = (x.astype(jnp.bfloat16) for x in (rng.normal(size=(2, 99, 4)), rng.dirichlet(np.ones(4), size=(2, 99))))
  got = distillation(logits, p, temperature=2.0)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, distillation(np.float32(logits), np.float32(p), temperature=2.0), rtol=1e-6)
