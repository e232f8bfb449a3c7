"""Batches at the edge of what images can be, and what a step must do with them."""

import jax
import numpy as np

from tests.runs import assert_same
from vamcei_jax.methods.state import keep_finite

CLASSES = 4
IMAGES = {
  "zero": lambda rng, shape: np.zeros(shape),
  "one": lambda rng, shape: np.ones(shape),
  "constant": lambda rng, shape: np.full(shape, rng.random()),
  "a pixel": lambda rng, shape: np.eye(1, np.prod(shape), rng.integers(np.prod(shape))).reshape(shape),
  "binary": lambda rng, shape: rng.integers(0, 2, shape),
  "tiny": lambda rng, shape: 1e-38 * rng.random(shape),
  "usual": lambda rng, shape: rng.random(shape),
}
FLAT = ("one", "constant")  # see assert_learns
LABELS = ("background", "single", "a pixel", "usual")


def make_batch(rng, images, source="usual", target="usual", labels="usual", side=24):
  """A batch for any method; none reads what it does not know."""
  shape = (images, side, side)
  label = rng.integers(0, CLASSES, shape) if labels == "usual" else np.zeros(shape, np.int64)
  if labels == "single":
    label[:] = rng.integers(1, CLASSES)
  elif labels == "a pixel":
    label[0, rng.integers(side), rng.integers(side)] = rng.integers(1, CLASSES)
  # Teachers that are sure say 0 and 1.
  teacher = rng.dirichlet(np.ones(CLASSES), shape) if labels == "usual" else np.eye(CLASSES)[label]
  draw = lambda kind: np.float32(IMAGES[kind](rng, shape)[..., None])
  return {
    "source": {"image": draw(source), "label": np.int32(label)},
    "target": {"image": draw(target), "teacher": np.float32(teacher), "plain": draw(target)},
  }


def spoilt(batch, domain, value):
  """The batch with one pixel of an image replaced."""
  image = np.array(batch[domain]["image"])
  image[0, 5, 7, 0] = value
  return batch | {domain: batch[domain] | {"image": image}}


def guarded(step):
  """A step of a method as vamcei_jax/parallel.py makes it: skipped where it is not finite."""
  return lambda state, batch: keep_finite(state, *step(state, batch))


def assert_skipped(before, after, metrics):
  assert float(metrics["skipped"]) == 1.0
  assert_same(after, before.replace(step=before.step + 1))


def assert_skips_what_is_not_finite(step, state, batch, domains):
  """A bad batch advances the step and changes nothing else; a good one after it is learned from as if it came first."""
  state, metrics = step(state, batch)  # moments and history are not zero afterwards
  assert float(metrics["skipped"]) == 0.0
  for domain in domains:
    for value in (np.nan, np.inf, -np.inf):
      after, metrics = step(state, spoilt(batch, domain, value))
      assert_skipped(state, after, metrics)
      assert any(not np.isfinite(float(value)) for name, value in metrics.items() if not name.startswith("gradient_"))
  learned, metrics = step(after, batch)
  assert float(metrics["skipped"]) == 0.0
  expected, _ = step(state.replace(step=state.step + 1), batch)
  assert_same(learned, expected)
  changed = jax.tree.map(lambda new, old: bool((np.asarray(new) != old).any()), learned.params, state.params)
  assert any(jax.tree.leaves(changed))


def assert_learns(step, state, batch, *, may_skip=False):
  """Losses, gradients and the state afterwards are finite, and the step is taken.

  Of images of one value, a translator's gradient grows a thousandfold at every norm, by 1/√ε: after seven of them its
  length is beyond float32, and the step may be skipped; its losses are finite.
  """
  after, metrics = step(state, batch)
  wrong = {name for name, value in metrics.items() if not np.isfinite(float(value))}
  if may_skip and float(metrics["skipped"]):
    assert {name for name in wrong if not name.startswith("gradient_")} == set()
    assert_skipped(state, after, metrics)
    return
  assert wrong == set()
  assert float(metrics["skipped"]) == 0.0
  assert all(np.isfinite(leaf).all() for leaf in map(np.asarray, jax.tree.leaves((after.params, after.opt, after.ema))))
