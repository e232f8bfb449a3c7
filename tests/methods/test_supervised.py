"""The step without adaptation, its predictions, and the labels of coarse scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods import equations
from tests.methods.batches import make_hearts
from tests.methods.devices import assert_two_devices_take_the_step
from tests.methods.settings import UNEVEN, stage_config
from tests.methods.steps import assert_steps, compiled, first_state, moved_state, program
from vamcei_jax.losses import segmentation
from vamcei_jax.methods import supervised
from vamcei_jax.methods.supervised import deep_segmentation
from vamcei_jax.models.unet import Segmentation, VariationalUNet

SEGMENTER = VariationalUNet(4, (4, 8, 16), 2, "instance", (-2.5, -0.5))


@pytest.fixture
def step():
  return program("no_adaptation").step


@compiled
def composed(params, number, batch):
  """Gradient and metrics of a step, from the segmenter alone."""
  source = batch["source"]

  def loss(segmenter):
    key = jax.random.fold_in(jax.random.key(3), number)
    keys = jnp.stack([jax.random.fold_in(key, image) for image in range(4)])
    output = SEGMENTER.apply({"params": segmenter}, source["image"], keys)
    full = jax.nn.one_hot(source["label"], 4)
    half = equations.mean_over_windows(full, 2)
    maps = (output.logits, full), (output.scale_logits[0], full), (output.scale_logits[1], half)
    cross_entropy = sum(equations.cross_entropy(*pair) for pair in maps)
    dice = sum(equations.dice_loss(*pair) for pair in maps)
    total = UNEVEN["loss"]["weights"]["segmentation"] * (cross_entropy + dice)
    return total, {
      "loss": total,
      "segmentation": cross_entropy + dice,
      "cross_entropy": cross_entropy,
      "dice_loss": dice,
    }

  gradient, metrics = jax.grad(loss, has_aux=True)(params["segmenter"])
  return {"segmenter": gradient}, metrics


def test_a_step_is_adams_on_the_gradient_of_eq_4(step):
  schedule = lambda done: (1 - done / 400) ** 0.9
  assert_steps(step, moved_state("no_adaptation"), [make_hearts(0), make_hearts(1)], composed, schedule)


def test_two_devices_take_the_step_of_the_batch():
  assert_two_devices_take_the_step("no_adaptation")


def test_the_target_is_not_read(step):
  batch = make_hearts(0)
  _, metrics = step(moved_state("no_adaptation"), {"source": batch["source"]})
  _, with_target = step(moved_state("no_adaptation"), batch)
  assert metrics == with_target


def test_a_batch_is_learned_by_heart(step):
  state, batch = first_state("no_adaptation"), make_hearts(0)
  state = state.replace(learning_rates={"segmenter": jnp.float32(1e-2)})
  losses = []
  for _ in range(150):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-10:]) < 0.2 * losses[0]
  predict = compiled(supervised.make_predict(program("no_adaptation").config))
  classes, labels = np.asarray(predict(state.params, batch["source"]["image"]).argmax(-1)), batch["source"]["label"]
  for k in (1, 2, 3):
    assert 2 * ((classes == k) & (labels == k)).sum() / ((classes == k).sum() + (labels == k).sum()) > 0.9


def test_a_prediction_is_the_softmax_of_the_fused_logits():
  """At the latent means or, with keys, at a sample for each image."""
  networks, images = moved_state("no_adaptation").params, jnp.asarray(make_hearts(0)["source"]["image"])
  predict = compiled(supervised.make_predict(program("no_adaptation").config))
  logits = compiled(lambda keys: SEGMENTER.apply({"params": networks["segmenter"]}, images, keys).logits)
  at_mean, keys = predict(networks, images), jax.random.split(jax.random.key(0), 4)
  np.testing.assert_allclose(at_mean, jax.nn.softmax(logits(None)), rtol=1e-4, atol=1e-6)
  sampled = predict(networks, images, keys)
  np.testing.assert_allclose(sampled, jax.nn.softmax(logits(keys)), rtol=1e-4, atol=1e-6)
  assert np.abs(at_mean - sampled).max() > 1e-2


def test_the_segmenter_is_the_configured_one():
  model = {"widths": (8, 16, 24), "norm": "group", "dtype": "bfloat16", "logvar_range": (-2.0, 3.0), "latent_scales": 1}
  config = stage_config("no_adaptation", model=model, loss={"weights": {"global_alignment": (1e-6,)}})
  expected = VariationalUNet(4, (8, 16, 24), 1, "group", (-2.0, 3.0), dtype=jnp.bfloat16)
  assert supervised.make_segmenter(config) == expected


def test_every_scale_is_supervised_in_place():
  """Coarse logits that are right where the coarse pixel's window is cost next to nothing; moved by one pixel, a lot."""
  labels, coarse = np.zeros((1, 16, 16), np.int32), np.zeros((1, 4, 4), np.int32)
  labels[:, 4:12, 8:16], coarse[:, 1:3, 2:4] = 2, 2
  certain = lambda classes: jnp.float32(30.0 * np.eye(4)[classes])
  fine, half = certain(labels), certain(labels[:, ::2, ::2])
  targets = jnp.asarray(labels)
  loss = compiled(lambda coarse: sum(deep_segmentation(Segmentation(fine, (fine, half, coarse), ()), targets)))
  assert loss(certain(coarse)) < 1e-3
  assert loss(certain(np.roll(coarse, 1, axis=1))) > 1.0


def test_the_target_of_a_coarse_pixel_is_the_class_shares_of_its_window():
  labels = np.array([[[1, 0, 0, 0], [0, 0, 2, 2], [3, 3, 0, 1], [3, 0, 1, 1]]])
  rng = np.random.default_rng(0)
  logits, fused = (jnp.float32(rng.normal(size=(1, side, side, 4))) for side in (2, 4))
  got = compiled(lambda: deep_segmentation(Segmentation(fused, (fused, logits), ()), jnp.asarray(labels)))()
  shares = np.array([[[[0.75, 0.25, 0, 0], [0.5, 0, 0.5, 0]], [[0.25, 0, 0, 0.75], [0.25, 0.75, 0, 0]]]])
  of = lambda logits, targets: np.array(compiled(segmentation)(logits, targets))
  np.testing.assert_allclose(got, 2 * of(fused, np.eye(4)[labels]) + of(logits, shares), rtol=1e-5)


def test_the_targets_of_every_scale_keep_the_area_of_every_class(monkeypatch):
  targets = []
  nothing = (jnp.zeros(()),) * 2
  monkeypatch.setattr(supervised, "segmentation", lambda logits, y, **_: targets.append(y) or nothing)
  labels = jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, 16, 24)))
  scales = [jnp.zeros((2, 16 // 2**s, 24 // 2**s, 4)) for s in range(4)]
  deep_segmentation(Segmentation(scales[0], tuple(scales), ()), labels)
  assert [y.shape for y in targets] == [logits.shape for logits in (scales[0], *scales)]
  for y, windows in zip(targets, (1, 1, 4, 16, 64), strict=True):
    np.testing.assert_array_equal(windows * np.asarray(y).sum((0, 1, 2)), np.bincount(np.ravel(labels)))
