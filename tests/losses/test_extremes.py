"""Every loss at the edge of its inputs: finite values and gradients, in float32 and from bfloat16."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vamcei_jax import losses

SHAPE = (2, 4, 4, 4)  # two images, or class maps of four classes
CLASSES = SHAPE[-1]


def prototypes(features_a, map_a, features_b, map_b):
  pairs = losses.class_prototypes(features_a, map_a), losses.class_prototypes(features_b, map_b)
  return losses.prototype_contrast(*pairs[0], *pairs[1], temperature=0.5)


# Name -> loss, and what each of its inputs is.
LOSSES = {
  "prior": (losses.gaussian_prior_kl, ("mu", "logvar")),
  "alignment, paper": (partial(losses.global_alignment, estimator="paper"), ("mu", "logvar") * 2),
  "alignment, pairwise": (partial(losses.global_alignment, estimator="pairwise"), ("mu", "logvar") * 2),
  "pairwise matrix": (losses.pairwise_gaussian_kl, ("mu", "logvar") * 2),
  "prototypes": (prototypes, ("features", "weights") * 2),
  "reconstruction": (losses.reconstruction, ("logits", "image")),
  "segmentation": (losses.segmentation, ("logits", "map")),
  "distillation": (partial(losses.distillation, temperature=2.0), ("logits", "map")),
  "discriminator": (losses.discriminator_loss, ("logits", "logits")),
  "generator": (losses.generator_loss, ("logits",)),
  "patch discriminator": (losses.patch_discriminator_loss, ("logits", "logits")),
  "translator": (losses.translator_loss, ("logits",)),
  "absolute difference": (losses.absolute_difference, ("image", "image")),
}


@cache
def program(name):
  """The jitted loss, the sum of all that it returns, with its gradient by all inputs."""
  loss, kinds = LOSSES[name]
  total = lambda *inputs: sum(jnp.sum(value) for value in jax.tree.leaves(loss(*inputs)))
  return jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(kinds)))))


def draw(rng, kind, extent, shape):
  """An input of a kind: at its edge throughout ("edge"), of one value ("constant"), or anything between ("between")."""
  if kind == "weights" and extent == "constant":  # pseudo-labels of which none is confident
    return np.zeros(shape)
  if kind in ("map", "weights"):  # a class map: one class or another, or one alone
    chosen = rng.integers(0, CLASSES if extent == "edge" else 1, shape[:-1])
    return rng.dirichlet(np.ones(CLASSES), shape[:-1]) if extent == "between" else np.eye(CLASSES)[chosen]
  low, high = {"logvar": (-20, 20), "logits": (-1e4, 1e4), "image": (0, 1), "mu": (-10, 10), "features": (-1, 1)}[kind]
  if extent == "constant":
    return np.full(shape, rng.choice([low, 0.0, high]))
  return rng.choice([low, high], shape) if extent == "edge" else rng.uniform(low, high, shape)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=30)
@given(
  extents=st.lists(st.sampled_from(["edge", "constant", "between"]), min_size=4, max_size=4),
  dtype=st.sampled_from(["float32", "bfloat16"]),
  seed=st.integers(0, 2**32 - 1),
)
def test_extreme_inputs_give_finite_values_and_gradients(name, images, extents, dtype, seed):
  rng, kinds = np.random.default_rng(seed), LOSSES[name][1]
  inputs = [draw(rng, kind, extent, (images, *SHAPE[1:])) for kind, extent in zip(kinds, extents, strict=False)]
  value, grads = program(name)(*(np.asarray(x).astype(jnp.dtype(dtype)) for x in inputs))
  assert value.dtype == jnp.float32
  assert np.isfinite(value)
  assert all(np.isfinite(np.asarray(grad, np.float32)).all() for grad in grads)
