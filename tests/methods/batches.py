"""Batches for the steps of any method, and what a step must do with those at the edge of what images can be."""

import jax
import numpy as np

from tests.runs import assert_same

CLASSES = 4
SOURCES, TARGETS = 4, 2  # images of a batch; two devices have equal shares
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


def make_hearts(seed):
  """A batch of hearts that differ: most pixels are background, the tones of a class depend on domain and image."""
  rng = np.random.default_rng(seed)
  source, target = draw_hearts(rng, SOURCES), draw_hearts(rng, TARGETS)
  teacher = 0.3 * rng.dirichlet(np.ones(CLASSES), target.shape) + 0.7 * np.eye(CLASSES)[target]
  return {
    "source": {"image": paint(rng, source, (0.2, 0.35, 0.9, 0.7)), "label": source},
    "target": {"image": paint(rng, target, (0.4, 0.1, 0.6, 0.75)), "teacher": np.float32(teacher)},
  }


def draw_hearts(rng, images, side=24):
  """Labels (B, H, W): LV, around it Myo, and RV at its side."""
  row, column = np.mgrid[:side, :side]
  labels = []
  for _ in range(images):
    (y, x), radius = rng.uniform(10, 15, 2), rng.uniform(3, 5)
    distance, aside = np.hypot(row - y, column - x), np.hypot(row - y, column - x + radius + 4)
    labels.append(np.where(distance < radius, 2, np.where(distance < radius + 2, 1, np.where(aside < 4, 3, 0))))
  return np.int32(labels)


def paint(rng, labels, tones):
  """Images (B, H, W, 1) of labels."""
  brightness = rng.uniform(0.7, 1.0, (len(labels), 1, 1))
  return np.float32(np.clip(brightness * np.array(tones)[labels] + rng.normal(0, 0.03, labels.shape), 0, 1))[..., None]


def make_batch(rng, source="usual", target="usual", labels="usual", images=(SOURCES, TARGETS), side=24):
  """A batch of random pixels. No method reads what it does not know.

  Args:
    rng: generator.
    source, target: kinds of images, keys of IMAGES.
    labels: one of LABELS.
    images: numbers of source and target images.
    side: of an image.
  """
  shape_s, shape_t = ((count, side, side) for count in images)
  label = rng.integers(0, CLASSES, shape_s) if labels == "usual" else np.zeros(shape_s, np.int64)
  if labels == "single":
    label[:] = rng.integers(1, CLASSES)
  elif labels == "a pixel":
    label[0, rng.integers(side), rng.integers(side)] = rng.integers(1, CLASSES)
  # Teachers that are sure say 0 and 1.
  sure = np.eye(CLASSES)[np.resize(label, shape_t)]
  teacher = rng.dirichlet(np.ones(CLASSES), shape_t) if labels == "usual" else sure
  draw = lambda kind, shape: np.float32(IMAGES[kind](rng, shape)[..., None])
  return {
    "source": {"image": draw(source, shape_s), "label": np.int32(label)},
    "target": {"image": draw(target, shape_t), "teacher": np.float32(teacher)},
  }


def spoilt(batch, domain, value):
  """The batch with one pixel of an image replaced."""
  image = np.array(batch[domain]["image"])
  image[0, 5, 7, 0] = value
  return batch | {domain: batch[domain] | {"image": image}}


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
  learned = after.params, after.opt_state, after.ema_params
  assert all(np.isfinite(leaf).all() for leaf in map(np.asarray, jax.tree.leaves(learned)))
