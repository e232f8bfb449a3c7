import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamcei_jax.data.labels import CLASSES
from vamcei_jax.evaluation.latents import class_means, measure_gap
from vamcei_jax.losses import pairwise_gaussian_kl
from vamcei_jax.models.unet import POOL, Latent, pool_latent

SHAPE = (5, 8, 8, 3)  # images, h, w, channels


@pytest.fixture
def domain():
  """A latent, and classes, all of which are there."""
  rng = np.random.default_rng(0)
  mu, logvar = rng.uniform(-1, 1, SHAPE), rng.uniform(-3, -1, SHAPE)
  return Latent(mu, logvar, mu), rng.integers(0, len(CLASSES), SHAPE[:3])


def pool(latent):
  return pool_latent(jax.tree.map(jnp.asarray, latent))


def gap(source, target, classes):
  """measure_gap of two domains of one scale and the same classes."""
  latents = {"source": source, "target": target}
  pooled = {role: [pool(latent)] for role, latent in latents.items()}
  return measure_gap(pooled, {role: latent.mu for role, latent in latents.items()}, dict.fromkeys(latents, classes))


def test_a_domain_is_at_no_distance_from_itself(domain):
  latent, classes = domain
  measured = gap(latent, latent, classes)
  assert measured["global_kl"]["paper"] == pytest.approx([0.0], abs=1e-5)
  assert list(measured["prototype_distance"].values()) == pytest.approx([0.0] * 4, abs=1e-6)


def test_distances_are_the_mean_matrix_and_the_cosines(domain):
  source, classes = domain
  rng = np.random.default_rng(1)
  target = Latent(source.mu[::-1] + 0.3, rng.uniform(-2, 0, SHAPE), None)
  measured = gap(source, target, classes)
  s, t = pool(source), pool(target)
  dimensions = np.prod(SHAPE[1:]) // POOL**2
  mean = lambda a, b: float(np.mean(pairwise_gaussian_kl(*a, *b))) / dimensions
  across, within = mean(s, t) + mean(t, s), mean(s, s) + mean(t, t)
  assert measured["global_kl"]["pairwise"] == pytest.approx([across], rel=1e-4)
  assert measured["global_kl"]["paper"] == pytest.approx([across - within], rel=1e-3)
  for k, name in enumerate(CLASSES):
    a, b = (latent.mu[classes == k].mean(0) for latent in (source, target))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert measured["prototype_distance"][name] == pytest.approx(1 - cosine, abs=1e-5)


def test_a_class_that_a_domain_lacks_has_no_distance(domain):
  latent, classes = domain
  assert list(gap(latent, latent, np.minimum(classes, 2))["prototype_distance"]) == ["background", "Myo", "LV"]


def test_a_point_is_a_class_in_a_slice_that_has_enough_of_it(domain):
  features, classes = domain[0].mu, domain[1].copy()
  classes[0] = 0
  classes[1] = np.repeat([[1, 1, 1, 1, 1, 2, 2, 0]], 8, axis=0)  # 40, 16 and 8 pixels
  points, shown = class_means(features[:2], classes[:2])
  assert shown.tolist() == [0, 1]
  np.testing.assert_allclose(points, [features[0].mean((0, 1)), features[1][classes[1] == 1].mean(0)])
