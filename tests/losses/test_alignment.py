"""Facts about the global alignment of domains (eqs. 5–8)."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from vamcei_jax import losses

ESTIMATORS = ("paper", "pairwise")
global_alignment = jax.jit(losses.global_alignment, static_argnames="estimator")
gradients = jax.jit(jax.grad(losses.global_alignment, argnums=(0, 1, 2, 3)), static_argnames="estimator")
pairwise_gaussian_kl = jax.jit(losses.pairwise_gaussian_kl)


def random_gaussians(rng, images_s=4, images_t=4, dims=200, centre=0.0, spread=1.0, gap=0.5):
  """mu_s, logvar_s, mu_t, logvar_t in float32, the domains `gap` spreads apart in every dimension."""
  mu_s = centre + spread * rng.normal(size=(images_s, dims))
  mu_t = centre + spread * (gap + rng.normal(size=(images_t, dims)))
  logvar_s, logvar_t = 0.3 * rng.normal(size=(images_s, dims)), 0.2 + 0.3 * rng.normal(size=(images_t, dims))
  return tuple(np.float32(x) for x in (mu_s, logvar_s, mu_t, logvar_t))


def exact_kl(mu_a, logvar_a, mu_b, logvar_b):
  """The matrix in float64, a pair at a time, from the same float32 numbers."""
  mu_a, logvar_a, mu_b, logvar_b = (np.float64(x) for x in (mu_a, logvar_a, mu_b, logvar_b))
  matrix = np.empty((len(mu_a), len(mu_b)))
  for i, j in np.ndindex(matrix.shape):
    ratio = logvar_a[i] - logvar_b[j]
    matrix[i, j] = np.sum(np.exp(ratio) - ratio - 1 + (mu_a[i] - mu_b[j]) ** 2 * np.exp(-logvar_b[j])) / 2
  return matrix


def exact_alignment(mu_s, logvar_s, mu_t, logvar_t, estimator):
  """Eq. 8 as it should be printed, or the mean of the matrix; in float64."""
  if estimator == "pairwise":
    return exact_kl(mu_s, logvar_s, mu_t, logvar_t).mean() + exact_kl(mu_t, logvar_t, mu_s, logvar_s).mean()

  def one_way(mu_a, logvar_a, mu_b, logvar_b):
    mu_a, mu_b = np.float64(mu_a), np.float64(mu_b)
    var_a, var_b = np.exp(np.float64(logvar_a)), np.exp(np.float64(logvar_b))
    within = [
      (-np.log(var_a[i]) / 2 - (var_a[j] + (mu_a[j] - mu_a[i]) ** 2) / (2 * var_a[i])).sum()
      for i in range(len(mu_a))
      for j in range(len(mu_a))
    ]
    other = [
      (np.log(var_b[i]) / 2 + (var_a[j] + (mu_a[j] - mu_b[i]) ** 2) / (2 * var_b[i])).sum()
      for i in range(len(mu_b))
      for j in range(len(mu_a))
    ]
    return np.mean(within) + np.mean(other)

  return one_way(mu_s, logvar_s, mu_t, logvar_t) + one_way(mu_t, logvar_t, mu_s, logvar_s)


# The matrix.


@settings(max_examples=15)
@given(
  images=st.sampled_from([(1, 1), (4, 4), (2, 3)]),
  centre=st.sampled_from([0.0, -1e3, 1e3]),
  spread=st.floats(1e-2, 10.0),
  seed=st.integers(0, 2**32 - 1),
)
def test_the_matrix_is_the_closed_form_of_every_pair(images, centre, spread, seed):
  latents = random_gaussians(np.random.default_rng(seed), *images, centre=centre, spread=spread)
  got = pairwise_gaussian_kl(*latents)
  assert got.shape == images
  np.testing.assert_allclose(got, exact_kl(*latents), rtol=1e-5, atol=1e-6)


def test_the_matrix_is_the_mean_log_density_ratio_of_samples(rng):
  mu_a, logvar_a, mu_b, logvar_b = random_gaussians(rng, 2, 3, dims=4)
  got = pairwise_gaussian_kl(mu_a, logvar_a, mu_b, logvar_b)
  for i in range(2):
    z = mu_a[i] + np.exp(logvar_a[i] / 2) * rng.normal(size=(100_000, 4))
    ratio = log_densities(z, mu_a, logvar_a)[i] - log_densities(z, mu_b, logvar_b)
    np.testing.assert_array_less(abs(got[i] - ratio.mean(-1)), 4 * ratio.std(-1) / np.sqrt(len(z)))


def test_the_matrix_of_equal_gaussians_is_zero_on_its_diagonal(rng):
  mu, logvar, _, _ = random_gaussians(rng, centre=1e3)
  got = np.asarray(pairwise_gaussian_kl(mu, logvar, mu, logvar))
  np.testing.assert_array_equal(np.diag(got), 0.0)
  assert (got + np.eye(4) > 0).all()


def test_the_matrix_resolves_small_differences_of_large_and_far_means():
  mu = np.array([[1000.0], [-1000.0]])
  near = mu + np.array([[2.0**-10], [-(2.0**-9)]])
  zero = np.zeros((2, 1))
  got = np.diag(pairwise_gaussian_kl(mu, zero, near, zero))
  np.testing.assert_allclose(got, [2.0**-21, 2.0**-19], rtol=1e-6)


def test_the_gradient_of_the_matrix_is_that_of_finite_differences(rng):
  latents = random_gaussians(rng, 2, 3, dims=4)
  check_grads(pairwise_gaussian_kl, latents, order=1, modes=("rev",), eps=1e-2, atol=2e-2, rtol=2e-2)


# The loss.


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("centre", "spread"), [(0.0, 1.0), (1e3, 1.0), (-1e3, 1e-2), (1e3, 30.0)])
@pytest.mark.parametrize("images", [(1, 1), (4, 4), (3, 6)])
def test_it_is_the_sum_over_all_pairs_of_images(rng, estimator, centre, spread, images):
  latents = random_gaussians(rng, *images, centre=centre, spread=spread)
  got = global_alignment(*latents, estimator=estimator)
  np.testing.assert_allclose(got, exact_alignment(*latents, estimator), rtol=1e-5)


@settings(max_examples=30)
@given(
  images=st.sampled_from([1, 4]),
  centre=st.sampled_from([0.0, 1e3]),
  spread=st.floats(0.0, 100.0),
  gap=st.floats(0.0, 10.0),
  seed=st.integers(0, 2**32 - 1),
)
def test_it_is_the_mean_of_the_matrices(images, centre, spread, gap, seed):
  latents = random_gaussians(np.random.default_rng(seed), images, images, 200, centre, spread, gap)
  cross, within = cross_and_within(*latents)
  pairwise = global_alignment(*latents, estimator="pairwise")
  assert pairwise >= 0.0
  np.testing.assert_allclose(pairwise, cross, rtol=1e-5)
  np.testing.assert_allclose(
    global_alignment(*latents, estimator="paper"), cross - within, atol=1e-5 * (cross + within)
  )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_its_gradient_is_that_of_the_matrices(rng, estimator):
  def from_matrices(*latents):
    cross, within = cross_and_within(*latents)
    return cross - within if estimator == "paper" else cross

  expected_gradients = jax.jit(jax.grad(from_matrices, argnums=(0, 1, 2, 3)))
  for centre, spread in ((0.0, 1.0), (1e3, 1.0), (1e3, 1e-2)):
    latents = random_gaussians(rng, centre=centre, spread=spread)
    got, expected = gradients(*latents, estimator=estimator), expected_gradients(*latents)
    for a, b in zip(got, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * abs(b).max())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_its_gradient_is_that_of_finite_differences(rng, estimator):
  loss = lambda *x: global_alignment(*x, estimator=estimator)
  check_grads(loss, random_gaussians(rng), order=1, modes=("rev",), eps=1e-2, atol=5e-2, rtol=1e-2)


def test_the_paper_estimator_is_eq_7(rng):
  """1/M² Σ_ij E_{q_S(z|x_Sj)}[ ln q_S(z|x_Si) − ln q_T(z|x_Ti) ], and the same with the domains exchanged."""
  latents = random_gaussians(rng, 3, 4, dims=2)
  s, t = latents[:2], latents[2:]
  mean, error = 0.0, 0.0
  for a, b in ((s, t), (t, s)):
    for mu, logvar in zip(*a, strict=True):
      z = mu + np.exp(logvar / 2) * rng.normal(size=(100_000, 2))
      ratio = np.mean(log_densities(z, *a), axis=0) - np.mean(log_densities(z, *b), axis=0)
      mean += ratio.mean() / len(a[0])
      error += ratio.var() / len(z) / len(a[0]) ** 2
  got = global_alignment(*latents, estimator="paper")
  np.testing.assert_allclose(got, mean, atol=4 * np.sqrt(error))


def test_the_pairwise_estimator_bounds_eq_6_from_above(rng):
  """Eq. 6, KL between the two mixtures, by sampling; and the same with the domains exchanged."""
  latents = random_gaussians(rng, 3, 4, dims=2)
  s, t = latents[:2], latents[2:]
  mean, error = 0.0, 0.0
  for a, b in ((s, t), (t, s)):
    of = rng.integers(len(a[0]), size=100_000)
    z = a[0][of] + np.exp(a[1][of] / 2) * rng.normal(size=(len(of), 2))
    log_a, log_b = (np.logaddexp.reduce(log_densities(z, *q)) - np.log(len(q[0])) for q in (a, b))
    mean += (log_a - log_b).mean()
    error += (log_a - log_b).var() / len(z)
  assert mean > 10 * np.sqrt(error)  # the bound says something
  assert global_alignment(*latents, estimator="pairwise") >= mean - 4 * np.sqrt(error)


def test_with_one_image_a_domain_both_estimators_are_the_symmetric_kl(rng):
  mu_s, logvar_s, mu_t, logvar_t = latents = random_gaussians(rng, 1, 1)
  expected = ((np.exp(logvar_s) + (mu_s - mu_t) ** 2) / np.exp(logvar_t) - 1).sum() / 2
  expected += ((np.exp(logvar_t) + (mu_s - mu_t) ** 2) / np.exp(logvar_s) - 1).sum() / 2
  for estimator in ESTIMATORS:
    np.testing.assert_allclose(global_alignment(*latents, estimator=estimator), expected, rtol=1e-5)


def test_domains_with_the_same_images_are_aligned_for_the_paper_estimator(rng):
  mu, logvar, _, _ = random_gaussians(rng, centre=1e3)
  np.testing.assert_allclose(global_alignment(mu, logvar, mu, logvar, estimator="paper"), 0.0, atol=1e-4)
  for g in gradients(mu, logvar, mu, logvar, estimator="paper"):
    np.testing.assert_allclose(g, 0.0, atol=1e-5)


def test_nearly_identical_gaussians_are_resolved(rng):
  mu, logvar = np.float32(5 * rng.normal(size=(2, 1, 200)))
  latents = mu, logvar, mu, logvar + np.float32(1e-3 * rng.normal(size=(1, 200)))
  got = global_alignment(*latents, estimator="pairwise")
  expected = exact_alignment(*latents, "pairwise")
  assert expected < 2e-4  # σ²/σ² − 1 in float32 would be wrong by 200 times 1e-7
  np.testing.assert_allclose(got, expected, rtol=1e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_domains_and_images_can_be_exchanged(rng, estimator):
  mu_s, logvar_s, mu_t, logvar_t = random_gaussians(rng)
  value = global_alignment(mu_s, logvar_s, mu_t, logvar_t, estimator=estimator)
  exchanged = global_alignment(mu_t, logvar_t, mu_s, logvar_s, estimator=estimator)
  order = rng.permutation(4)
  permuted = global_alignment(mu_s[order], logvar_s[order], mu_t[::-1], logvar_t[::-1], estimator=estimator)
  np.testing.assert_allclose([exchanged, permuted], value, rtol=1e-6)


def test_it_sums_over_any_trailing_shape(rng):
  latents = random_gaussians(rng)
  maps = [x.reshape(4, 5, 20, 2) for x in latents]
  expected = global_alignment(*latents, estimator="paper")
  np.testing.assert_allclose(global_alignment(*maps, estimator="paper"), expected, rtol=1e-6)
  np.testing.assert_allclose(pairwise_gaussian_kl(*maps), pairwise_gaussian_kl(*latents), rtol=1e-6)


def test_extreme_variances_give_exact_values_and_finite_gradients(rng):
  mu_s, mu_t = np.float32(1e3 * rng.normal(size=(2, 4, 200)))
  logvar_s, logvar_t = np.float32(rng.choice([-20.0, 20.0], size=(2, 4, 200)))
  latents = mu_s, logvar_s, mu_t, logvar_t
  scale = exact_alignment(*latents, "pairwise")
  for estimator in ESTIMATORS:
    got = global_alignment(*latents, estimator=estimator)
    np.testing.assert_allclose(got, exact_alignment(*latents, estimator), atol=1e-5 * scale)
    assert all(np.isfinite(g).all() for g in gradients(*latents, estimator=estimator))
  np.testing.assert_allclose(pairwise_gaussian_kl(*latents), exact_kl(*latents), rtol=1e-5)
  matrix_gradients = jax.jit(jax.grad(lambda *x: losses.pairwise_gaussian_kl(*x).sum(), argnums=(0, 1, 2, 3)))
  assert all(np.isfinite(g).all() for g in matrix_gradients(*latents))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bfloat16_latents_are_compared_in_float32(rng, estimator):
  latents = [x.astype(jnp.bfloat16) for x in random_gaussians(rng)]
  got = global_alignment(*latents, estimator=estimator)
  assert got.dtype == pairwise_gaussian_kl(*latents).dtype == jnp.float32
  np.testing.assert_allclose(got, exact_alignment(*(np.float32(x) for x in latents), estimator), rtol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_array_is_quadratic_in_the_number_of_images(estimator):
  images, dims = 50, 7
  latents = [np.zeros((images, dims))] * 4
  program = jax.make_jaxpr(jax.grad(lambda *x: global_alignment(*x, estimator=estimator)))(*latents)
  assert max(v.aval.size for equation in equations(program.jaxpr) for v in equation.outvars) <= images * dims


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_traffic_between_devices_does_not_grow_with_the_number_of_images(estimator):
  dims = 7
  split = jax.sharding.PartitionSpec("batch")
  loss = jax.shard_map(
    lambda *latents: losses.global_alignment(*latents, estimator=estimator, axis_name="batch")[None],
    mesh=jax.sharding.Mesh(jax.devices()[:1], "batch"),
    in_specs=split,
    out_specs=split,
  )

  def traffic(images):
    program = jax.make_jaxpr(loss)(*[np.zeros((images, dims))] * 4)
    all_reduces = [e for e in equations(program.jaxpr) if e.primitive.name.startswith("psum")]
    return sum(v.aval.size for e in all_reduces for v in e.invars)

  assert 0 < traffic(2) == traffic(64) <= 24 * dims


def test_an_unknown_estimator_is_refused(rng):
  with pytest.raises(ValueError, match=r"estimator: 'exact'; expected 'paper' or 'pairwise'\."):
    global_alignment(*random_gaussians(rng), estimator="exact")


@jax.jit
def cross_and_within(mu_s, logvar_s, mu_t, logvar_t):
  """Mean matrices between the two domains, both ways, and within each of the two."""
  s, t = (mu_s, logvar_s), (mu_t, logvar_t)
  mean_kl = lambda a, b: losses.pairwise_gaussian_kl(*a, *b).mean()
  return mean_kl(s, t) + mean_kl(t, s), mean_kl(s, s) + mean_kl(t, t)


def log_densities(z, mu, logvar):
  """(images, samples) of every Gaussian of a domain."""
  mu, logvar = np.float64(mu)[:, None], np.float64(logvar)[:, None]
  return -0.5 * ((z - mu) ** 2 / np.exp(logvar) + logvar + np.log(2 * np.pi)).sum(-1)


def equations(jaxpr):
  """All equations of a program, those of its inner programs too."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from equations(inner)


def test_free_latents_fall_without_end_by_the_paper_estimator_and_not_with_its_guard(rng):
  """Adam on free latents, log σ² in (−1, 1): one domain spreads and sharpens, the other concentrates and broadens."""
  free = tuple(jnp.asarray(x) for x in np.float32(0.1 * rng.normal(size=(4, 8, 10))))
  bounded = lambda x: (x[0], jnp.tanh(x[1]), x[2], jnp.tanh(x[3]))
  optimizer = optax.adam(0.05)

  def lowest(guarded):
    loss = lambda x: losses.global_alignment(*bounded(x), estimator="paper", guarded=guarded) / 10

    def step(carry, _):
      x, state = carry
      updates, state = optimizer.update(jax.grad(loss)(x), state)
      x = optax.apply_updates(x, updates)
      return (x, state), losses.global_alignment(*bounded(x), estimator="paper") / 10

    (x, _), values = jax.lax.scan(step, (free, optimizer.init(free)), length=400)
    return float(values[-1]), float(losses.global_alignment(*bounded(x), estimator="pairwise") / 10)

  diverged, apart = lowest(guarded=False)
  kept, near = lowest(guarded=True)
  assert diverged < -5.0
  assert apart > 5.0
  assert kept > -0.5
  assert near < apart / 4


def test_the_estimates_by_dimension_add_up(rng):
  latents = [jnp.asarray(x) for x in random_gaussians(rng)]
  for estimator, per_dim in losses.alignment_by_dimension(*latents).items():
    assert per_dim.shape == latents[0].shape[1:]
    np.testing.assert_allclose(per_dim.sum(), global_alignment(*latents, estimator=estimator), rtol=1e-5)
    guarded = losses.global_alignment(*latents, estimator=estimator, guarded=True)
    np.testing.assert_allclose(guarded, np.maximum(per_dim, 0).sum(), rtol=1e-5)
