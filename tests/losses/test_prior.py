"""Facts about the prior term (eq. 2)."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from vamcei_jax import losses

gaussian_prior_kl = jax.jit(losses.gaussian_prior_kl)


def test_a_standard_normal_posterior_costs_nothing():
  np.testing.assert_array_equal(gaussian_prior_kl(np.zeros((3, 4, 5, 2)), np.zeros((3, 4, 5, 2))), np.zeros(3))


@settings(max_examples=15)
@given(
  shape=st.sampled_from([(1, 1), (2, 7), (3, 2, 2, 3)]),
  scale=st.floats(0.01, 3.0),
  seed=st.integers(0, 2**32 - 1),
)
def test_it_is_the_sum_over_dimensions_of_the_closed_form(shape, scale, seed):
  rng = np.random.default_rng(seed)
  mu, logvar = scale * rng.normal(size=(2, *shape))
  expected = [
    sum((np.exp(v) + m * m - v - 1) / 2 for m, v in zip(mu[b].ravel(), logvar[b].ravel(), strict=True))
    for b in range(len(mu))
  ]
  got = gaussian_prior_kl(np.float32(mu), np.float32(logvar))
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_it_is_the_mean_log_density_ratio_of_samples(rng):
  mu, logvar = rng.normal(size=(2, 1, 3))
  noise = rng.normal(size=(200_000, 3))
  z = mu + np.exp(logvar / 2) * noise
  log_ratio = (-(noise**2) / 2 - logvar / 2 + z**2 / 2).sum(-1)
  error = log_ratio.std() / np.sqrt(len(log_ratio))
  got = gaussian_prior_kl(np.float32(mu), np.float32(logvar))
  np.testing.assert_allclose(got[0], log_ratio.mean(), atol=4 * error)


def test_it_does_not_cancel_near_its_minimum():
  # σ² − log σ² − 1 = logvar²/2 + …; the naive form in float32 is wrong by 1e-7, ten times the value here.
  logvar = np.full((1, 1), 2e-4, np.float32)
  np.testing.assert_allclose(gaussian_prior_kl(np.zeros((1, 1)), logvar), [1e-8], rtol=1e-2)


def test_its_gradient_is_that_of_finite_differences(rng):
  mu, logvar = np.float32(rng.normal(size=(2, 2, 6)))
  check_grads(gaussian_prior_kl, (mu, logvar), order=1, modes=("rev",), eps=1e-2, atol=1e-2, rtol=1e-2)


def test_extreme_variances_give_finite_values_and_gradients():
  logvar = np.array([[-20.0, 20.0]])
  loss = jax.jit(jax.value_and_grad(lambda m, v: losses.gaussian_prior_kl(m, v).sum(), argnums=(0, 1)))
  value, grads = loss(1e3 + logvar, logvar)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in grads)


def test_bfloat16_latents_are_summed_in_float32(rng):
  mu, logvar = rng.normal(size=(2, 2, 4000)).astype(jnp.bfloat16)
  got = gaussian_prior_kl(mu, logvar)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, gaussian_prior_kl(np.float32(mu), np.float32(logvar)), rtol=1e-6)
