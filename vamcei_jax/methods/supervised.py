"""No adaptation: the segmenter learns eq. 4 from labelled source images alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.losses import segmentation
from vamcei_jax.methods.state import Metrics, Params, State, apply_network, create_state, make_update
from vamcei_jax.models.layers import average_pool
from vamcei_jax.models.unet import Segmentation, VariationalUNet
from vamcei_jax.prng import batch_positions, example_keys

NETWORKS = ("segmenter",)
TERMS = ("segmentation",)


def make_segmenter(config: StageConfig) -> VariationalUNet:
  """The segmenter that every method shares."""
  model = config.model
  return VariationalUNet(
    classes=len(config.data.label_values),
    widths=tuple(model.widths),
    latent_scales=model.latent_scales,
    norm=model.norm,
    logvar_range=model.logvar_range,
    dtype=jnp.dtype(model.dtype),
  )


def init_state(config: StageConfig, key: Array) -> State:
  """The state before the first step."""
  init, key = jax.random.split(key)
  params = make_segmenter(config).init(init, jnp.zeros((1, *config.data.crop, 1)))["params"]
  return create_state({"segmenter": params}, key, config, terms=TERMS)


def make_step(config: StageConfig, axis_name: str | None = None) -> Callable[[State, dict], tuple[State, Metrics]]:
  """Returns step(state, batch) -> (state, metrics); the batch, split over `axis_name`, needs "source" alone."""
  segmenter, update = make_segmenter(config), make_update(config, axis_name)

  def loss(params: Params, state: State, source: dict) -> tuple[Array, Metrics]:
    positions = batch_positions(len(source["image"]), axis_name)
    keys = example_keys(jax.random.fold_in(state.key, state.step), positions)
    output = apply_network(segmenter, params, source["image"], keys)
    cross_entropy, dice = deep_segmentation(output, source["label"], axis_name)
    supervised = cross_entropy + dice
    total = state.weights["segmentation"] * supervised
    return total, {"loss": total, "segmentation": supervised, "cross_entropy": cross_entropy, "dice_loss": dice}

  def step(state: State, batch: dict) -> tuple[State, Metrics]:
    grads, metrics = jax.grad(loss, has_aux=True)(state.params["segmenter"], state, batch["source"])
    return update(state, {"segmenter": grads}, metrics)

  return step


def make_predict(config: StageConfig) -> Callable[..., Array]:
  """Returns predict(networks, images (B, H, W, 1), keys = None) -> class probabilities (B, H, W, K).

  `networks` is `State.ema_params`. With z = μ, or with z drawn by `keys` (B,), one an image.
  """
  segmenter = make_segmenter(config)

  def predict(networks: dict[str, Params], images: Array, keys: Array | None = None) -> Array:
    return jax.nn.softmax(apply_network(segmenter, networks["segmenter"], images, keys).logits)

  return predict


def deep_segmentation(output: Segmentation, labels: Array, axis_name: str | None = None) -> tuple[Array, Array]:
  """Cross-entropy and soft Dice loss, each the sum over the fused output and every scale (VAMCEI eq. 4).

  Args:
    output: of images whose labels are known.
    labels: (B, H, W) class indices; the targets of scale s are the class shares of each 2**s×2**s window.
    axis_name: axis over which the batch is split.
  """
  one_hot = jax.nn.one_hot(labels, output.logits.shape[-1])
  terms = [segmentation(output.logits, one_hot, axis_name=axis_name)]
  for scale, logits in enumerate(output.scale_logits):
    terms.append(segmentation(logits, average_pool(one_hot, 2**scale), axis_name=axis_name))
  return tuple(sum(term) for term in zip(*terms, strict=True))
