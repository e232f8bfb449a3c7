"""Facts about the adversarial pair (eqs. 11–12)."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from vamcei_jax import losses

discriminator_loss, generator_loss = jax.jit(losses.discriminator_loss), jax.jit(losses.generator_loss)


@settings(max_examples=15)
@given(shape=st.sampled_from([(1,), (3, 2, 2, 1)]), seed=st.integers(0, 2**32 - 1))
def test_they_are_the_means_of_the_printed_logarithms(shape, seed):
  logits_s, logits_t = 4 * np.random.default_rng(seed).normal(size=(2, *shape))
  dis_s, dis_t = 1 / (1 + np.exp(-logits_s)), 1 / (1 + np.exp(-logits_t))
  got = discriminator_loss(np.float32(logits_s), np.float32(logits_t))
  np.testing.assert_allclose(got, -np.log(dis_s).mean() - np.log(1 - dis_t).mean(), rtol=1e-5)
  np.testing.assert_allclose(generator_loss(np.float32(logits_t)), -np.log(dis_t).mean(), rtol=1e-5)


def test_a_discriminator_that_cannot_tell_loses_two_bits():
  source, target = np.zeros((2, 5, 5, 1)), np.zeros((3, 5, 5, 1))
  np.testing.assert_allclose(discriminator_loss(source, target), 2 * np.log(2), rtol=1e-6)
  np.testing.assert_allclose(generator_loss(target), np.log(2), rtol=1e-6)


def test_each_domain_is_a_mean_of_its_own(rng):
  logits_s, logits_t = np.float32(rng.normal(size=(1, 8))), np.float32(rng.normal(size=(1, 4)))
  repeated = discriminator_loss(np.tile(logits_s, (3, 1)), logits_t)
  np.testing.assert_allclose(repeated, discriminator_loss(logits_s, logits_t), rtol=1e-6)


def test_the_two_pull_target_logits_in_opposite_directions(rng):
  logits = np.float32(rng.normal(size=(2, 8)))
  dis = 1 / (1 + np.exp(-logits))
  np.testing.assert_allclose(jax.grad(discriminator_loss, argnums=1)(logits, logits), dis / 16, atol=1e-7)
  np.testing.assert_allclose(jax.grad(discriminator_loss, argnums=0)(logits, logits), (dis - 1) / 16, atol=1e-7)
  np.testing.assert_allclose(jax.grad(generator_loss)(logits), (dis - 1) / 16, atol=1e-7)


def test_the_generator_learns_from_a_certain_discriminator():
  # The saturating form, E[log(1 − Dis)], has a gradient of e^-1000 here.
  np.testing.assert_allclose(jax.grad(generator_loss)(np.array([-1e3])), [-1.0])


def test_extreme_logits_give_finite_values_and_gradients():
  logits = np.array([-1e4, 1e4])
  assert discriminator_loss(logits, logits) == generator_loss(logits) * 2 == 1e4
  assert all(np.isfinite(g).all() for g in jax.grad(discriminator_loss, argnums=(0, 1))(logits, logits))
  assert np.isfinite(jax.grad(generator_loss)(logits)).all()


def test_their_gradients_are_those_of_finite_differences(rng):
  logits_s, logits_t = np.float32(rng.normal(size=(2, 5)))
  for loss, arguments in ((discriminator_loss, (logits_s, logits_t)), (generator_loss, (logits_t,))):
    check_grads(loss, arguments, order=1, modes=("rev",), eps=1e-2, atol=1e-2, rtol=1e-2)


def test_bfloat16_logits_are_averaged_in_float32(rng):
  logits = rng.normal(size=(2, 8)).astype(jnp.bfloat16)
  assert discriminator_loss(logits, logits).dtype == generator_loss(logits).dtype == jnp.float32
  np.testing.assert_allclose(generator_loss(logits), generator_loss(np.float32(logits)), rtol=1e-6)
