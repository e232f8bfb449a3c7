"""Distillation: a plain U-Net learns eq. 16 on target images and, if there are source images, eq. 4 on these.

The student is the network for use: no latent noise, no decoders, one forward pass.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Key

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.losses import distillation, segmentation
from vamcei_jax.methods.state import Batch, Metrics, Params, State, apply_network, create_state, make_update
from vamcei_jax.models.unet import UNet

NETWORKS = ("segmenter",)
TERMS = ("segmentation", "distillation")


def make_student(config: StageConfig) -> UNet:
  """The student."""
  model = config.model
  return UNet(len(config.data.label_values), model.widths, model.norm, jnp.dtype(model.dtype))


def init_state(config: StageConfig, key: Key[Array, ""]) -> State:
  """The state before the first step."""
  init, key = jax.random.split(key)
  params = make_student(config).init(init, jnp.zeros((1, *config.data.crop, 1)))["params"]
  return create_state({"segmenter": params}, key, config, terms=TERMS)


def make_step(config: StageConfig, axis_name: str | None = None) -> Callable[[State, Batch], tuple[State, Metrics]]:
  """Makes step(state, batch) -> (state, metrics). `axis_name` may split the batch.

  The batch needs image and teacher of the target and, if it has a source, image and label of that. The teacher's class
  probabilities must have the same geometric transform as the image.
  """
  student, update = make_student(config), make_update(config, axis_name)

  def loss(params: Params, state: State, batch: Batch) -> tuple[Array, Metrics]:
    source, target, metrics = batch.get("source"), batch["target"], {}
    images = target["image"] if source is None else jnp.concatenate([source["image"], target["image"]])
    logits = apply_network(student, params, images)
    logits_s, logits_t = jnp.split(logits, [len(logits) - len(target["image"])])
    eq_16 = distillation(logits_t, target["teacher"], temperature=config.distillation.temperature).mean()
    terms = {"distillation": eq_16}
    if source is not None:
      labels = jax.nn.one_hot(source["label"], logits_s.shape[-1])
      cross_entropy, dice = segmentation(logits_s, labels, balanced=config.loss.balanced, axis_name=axis_name)
      terms["segmentation"] = cross_entropy + dice
      metrics = {"cross_entropy": cross_entropy, "dice_loss": dice}
    total = sum((state.weights[name] * term for name, term in terms.items()), jnp.zeros(()))
    return total, {"loss": total, **metrics, **terms}

  def step(state: State, batch: Batch) -> tuple[State, Metrics]:
    grads, metrics = jax.grad(loss, has_aux=True)(state.params["segmenter"], state, batch)
    return update(state, {"segmenter": grads}, metrics)

  return step


def make_predict(config: StageConfig) -> Callable[[dict[str, Params], Array], Array]:
  """Makes predict(networks, images (B, H, W, 1)) -> class probabilities (B, H, W, K).

  `networks` is `State.ema_params`.
  """
  student = make_student(config)

  def predict(networks: dict[str, Params], images: Float[Array, "B H W 1"]) -> Float32[Array, "B H W K"]:
    return jax.nn.softmax(apply_network(student, networks["segmenter"], images))

  return predict


def mean_probabilities(
  probs: Sequence[Float[np.ndarray, "*shape K"]], weights: Sequence[float]
) -> Float[np.ndarray, "*shape K"]:
  """Weighted mean of the class probabilities (not of the logits) of several teachers.

  Args:
    probs: (..., K) of each teacher.
    weights: one per teacher, not negative. They are divided by their sum.

  Raises:
    ValueError: the numbers of teachers and of weights differ.
  """
  mean = np.zeros_like(probs[0])
  for weight, p in zip(weights, probs, strict=True):
    mean = mean + np.float32(weight / sum(weights)) * p
  return mean
