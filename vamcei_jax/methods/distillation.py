"""Distillation: one plain U-Net learns what the teachers say of target images, and eq. 4 on translated source images.

The student is what a user ships: no latent noise, no decoders, one forward pass.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from vamcei_jax.losses import distillation, segmentation
from vamcei_jax.methods.state import Metrics, Params, State, create_state, make_update, ramped
from vamcei_jax.models.unet import UNet


def make_student(config: ConfigDict) -> UNet:
  """The student."""
  model = config.model
  return UNet(len(config.data.label_values), tuple(model.widths), model.norm, jnp.dtype(model.dtype))


def init_state(config: ConfigDict, key: Array) -> State:
  """The state before the first step."""
  init, key = jax.random.split(key)
  params = make_student(config).init(init, jnp.zeros((1, *config.data.crop, 1)))["params"]
  return create_state({"segmenter": params}, key, config)


def make_step(config: ConfigDict, axis_name: str | None = None) -> Callable[[State, dict], tuple[State, Metrics]]:
  """Returns step(state, batch) -> (state, metrics).

  The batch, {"source": {image, label}, "target": {image, teacher, plain}}, may be split over `axis_name`. `teacher`
  (B, H, W, K) are class probabilities that went through the same geometric transform as the image.

  With `distillation.itself`, that share of what is taught comes, after `loss.ramp`, from the student's own moving
  average, which sees the plain image (mean teacher; Tarvainen and Valpola 2017). The teachers hold on to the rest:
  alone, an average feeds its own errors.
  """
  student, update = make_student(config), make_update(config, axis_name)

  def loss(params: Params, state: State, source: dict, target: dict) -> tuple[Array, Metrics]:
    logits = student.apply({"params": params}, jnp.concatenate([source["image"], target["image"]]))
    logits_s, logits_t = jnp.split(logits, [len(source["image"])])
    labels = jax.nn.one_hot(source["label"], logits_s.shape[-1])
    cross_entropy, dice = segmentation(logits_s, labels, axis_name=axis_name)
    probs = target["teacher"]
    if config.distillation.itself:
      own = jax.nn.softmax(student.apply({"params": state.ema["segmenter"]}, target["plain"]))
      probs = probs + config.distillation.itself * ramped(state) * (own - probs)
    taught = distillation(logits_t, probs, temperature=config.distillation.temperature).mean()
    terms = {"segmentation": cross_entropy + dice, "distillation": taught}
    total = sum(state.weights[name] * term for name, term in terms.items())
    return total, {"loss": total, "cross_entropy": cross_entropy, "dice_loss": dice, **terms}

  def step(state: State, batch: dict) -> tuple[State, Metrics]:
    gradient = jax.grad(loss, has_aux=True)
    grads, metrics = gradient(state.params["segmenter"], state, batch["source"], batch["target"])
    return update(state, {"segmenter": grads}, metrics)

  return step


def make_predict(config: ConfigDict) -> Callable[[dict[str, Params], Array], Array]:
  """Returns predict(networks, images (B, H, W, 1)) -> class probabilities (B, H, W, K); see supervised.make_predict."""
  student = make_student(config)
  return lambda networks, images: jax.nn.softmax(student.apply({"params": networks["segmenter"]}, images))


def mean_probabilities(probs: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
  """The teachers' weighted mean of class probabilities (not of logits): what the student learns.

  Args:
    probs: of each teacher, (..., K) of the same shape.
    weights: one a teacher, not negative; they need not sum to 1.
  """
  return sum(np.float32(weight / sum(weights)) * p for weight, p in zip(weights, probs, strict=True))
