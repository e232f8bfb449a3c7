"""No adaptation: the segmenter learns eq. 4 on labelled source images alone."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Int, Key

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.losses import segmentation
from vamcei_jax.methods.state import Batch, Metrics, Params, State, apply_network, create_state, make_update
from vamcei_jax.models.layers import average_pool
from vamcei_jax.models.unet import Segmentation, VariationalUNet
from vamcei_jax.prng import batch_positions, example_keys

NETWORKS = ("segmenter",)
TERMS = ("segmentation",)


def make_segmenter(config: StageConfig) -> VariationalUNet:
  """The segmenter, the same with and without adaptation."""
  model = config.model
  return VariationalUNet(
    classes=len(config.data.label_values),
    widths=model.widths,
    latent_scales=model.latent_scales,
    norm=model.norm,
    logvar_range=model.logvar_range,
    affine=model.affine,
    bias=model.bias,
    dropout=model.dropout,
    latent=model.latent,
    heads=model.heads,
    dtype=jnp.dtype(model.dtype),
  )


def init_state(config: StageConfig, key: Key[Array, ""]) -> State:
  """The state before the first step."""
  init, key = jax.random.split(key)
  params = make_segmenter(config).init(init, jnp.zeros((1, *config.data.crop, 1)))["params"]
  return create_state({"segmenter": params}, key, config, terms=TERMS)


def make_step(config: StageConfig, axis_name: str | None = None) -> Callable[[State, Batch], tuple[State, Metrics]]:
  """Makes step(state, batch) -> (state, metrics). It reads the source alone; `axis_name` may split the batch."""
  segmenter, update = make_segmenter(config), make_update(config, axis_name)

  def loss(params: Params, state: State, source: Mapping[str, Array]) -> tuple[Array, Metrics]:
    positions = batch_positions(len(source["image"]), axis_name)
    keys = example_keys(jax.random.fold_in(state.key, state.step), positions)
    output = apply_network(segmenter, params, source["image"], keys, train=True)
    cross_entropy, dice = deep_segmentation(output, source["label"], axis_name, balanced=config.loss.balanced)
    eq_4 = cross_entropy + dice
    total = state.weights["segmentation"] * eq_4
    return total, {"loss": total, "segmentation": eq_4, "cross_entropy": cross_entropy, "dice_loss": dice}

  def step(state: State, batch: Batch) -> tuple[State, Metrics]:
    grads, metrics = jax.grad(loss, has_aux=True)(state.params["segmenter"], state, batch["source"])
    return update(state, {"segmenter": grads}, metrics)

  return step


def make_predict(config: StageConfig) -> Callable[..., Array]:
  """Makes predict(networks, images (B, H, W, 1), keys=None) -> class probabilities (B, H, W, K).

  `networks` is `State.ema_params`. Without keys, z = μ. With keys (B,), one per image, z is sampled.
  """
  segmenter = make_segmenter(config)

  def predict(
    networks: dict[str, Params], images: Float[Array, "B H W 1"], keys: Key[Array, " B"] | None = None
  ) -> Float32[Array, "B H W K"]:
    return jax.nn.softmax(apply_network(segmenter, networks["segmenter"], images, keys).logits)

  return predict


def deep_segmentation(
  output: Segmentation, labels: Int[Array, "B H W"], axis_name: str | None = None, *, balanced: bool = False
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
  """Eq. 4 with deep supervision: the sum over the fused output and the output of every scale.

  Args:
    output: of the segmenter, for labelled images.
    labels: (B, H, W) class indices. The targets of scale s are the class shares of each 2**s×2**s window.
    axis_name: axis over which the batch is split.
    balanced: whether each class counts alike in the cross-entropy, see losses.segmentation.

  Returns:
    Cross-entropy and soft Dice loss.
  """
  one_hot = jax.nn.one_hot(labels, output.logits.shape[-1])
  terms = [segmentation(output.logits, one_hot, balanced=balanced, axis_name=axis_name)]
  for scale, logits in enumerate(output.scale_logits):
    shares = average_pool(one_hot, 2**scale)
    terms.append(segmentation(logits, shares, balanced=balanced, axis_name=axis_name))
  cross_entropy, dice = zip(*terms, strict=True)
  return sum(cross_entropy, jnp.zeros(())), sum(dice, jnp.zeros(()))
