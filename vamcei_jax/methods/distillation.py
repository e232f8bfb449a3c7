"""Distillation: a plain U-Net learns the teachers' predictions on target images, and eq. 4 on translated source.

The student is what a user ships: no latent noise, no decoders, one forward pass.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.losses import distillation, segmentation
from vamcei_jax.methods.state import Metrics, Params, State, apply_network, create_state, make_update
from vamcei_jax.models.unet import UNet

NETWORKS = ("segmenter",)
TERMS = ("segmentation", "distillation")


def make_student(config: StageConfig) -> UNet:
  """The student."""
  model = config.model
  return UNet(len(config.data.label_values), tuple(model.widths), model.norm, jnp.dtype(model.dtype))


def init_state(config: StageConfig, key: Array) -> State:
  """The state before the first step."""
  init, key = jax.random.split(key)
  params = make_student(config).init(init, jnp.zeros((1, *config.data.crop, 1)))["params"]
  return create_state({"segmenter": params}, key, config, terms=TERMS)


def make_step(config: StageConfig, axis_name: str | None = None) -> Callable[[State, dict], tuple[State, Metrics]]:
  """Returns step(state, batch) -> (state, metrics).

  The batch, {"source": {image, label}, "target": {image, teacher}}, may be split over `axis_name`. `teacher`
  (B, H, W, K) are the teachers' class probabilities, under the same geometric transform as the image.
  """
  student, update = make_student(config), make_update(config, axis_name)

  def loss(params: Params, state: State, source: dict, target: dict) -> tuple[Array, Metrics]:
    logits = apply_network(student, params, jnp.concatenate([source["image"], target["image"]]))
    logits_s, logits_t = jnp.split(logits, [len(source["image"])])
    labels = jax.nn.one_hot(source["label"], logits_s.shape[-1])
    cross_entropy, dice = segmentation(logits_s, labels, axis_name=axis_name)
    eq_16 = distillation(logits_t, target["teacher"], temperature=config.distillation.temperature).mean()
    terms = {"segmentation": cross_entropy + dice, "distillation": eq_16}
    total = sum((state.weights[name] * term for name, term in terms.items()), jnp.zeros(()))
    return total, {"loss": total, "cross_entropy": cross_entropy, "dice_loss": dice, **terms}

  def step(state: State, batch: dict) -> tuple[State, Metrics]:
    gradient = jax.grad(loss, has_aux=True)
    grads, metrics = gradient(state.params["segmenter"], state, batch["source"], batch["target"])
    return update(state, {"segmenter": grads}, metrics)

  return step


def make_predict(config: StageConfig) -> Callable[[dict[str, Params], Array], Array]:
  """Returns predict(networks, images (B, H, W, 1)) -> class probabilities (B, H, W, K); see supervised.make_predict."""
  student = make_student(config)
  return lambda networks, images: jax.nn.softmax(apply_network(student, networks["segmenter"], images))


def mean_probabilities(probs: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
  """The weighted mean of the teachers' class probabilities (not of logits).

  Args:
    probs: (..., K) of each teacher, all of one shape.
    weights: one for each teacher, not negative; they need not sum to 1.
  """
  mean = np.zeros_like(probs[0])
  for weight, p in zip(weights, probs, strict=True):
    mean = mean + np.float32(weight / sum(weights)) * p
  return mean
