"""VAMCEI: the segmenter learns on labelled source images, and seven losses align the target with them.

One step is one forward pass of segmenter, decoders and discriminator over both domains (the target is judged twice in
the code, for eqs. 12 and 11, but the inputs are the same and XLA merges the two). Segmenter and decoders follow the
gradient of six losses, the discriminator that of eq. 11, whose inputs carry no gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from vamcei_jax.losses import (
  class_prototypes,
  discriminator_loss,
  gaussian_prior_kl,
  generator_loss,
  global_alignment,
  prototype_contrast,
  reconstruction,
)
from vamcei_jax.methods.state import Metrics, Params, State, create_state, make_update, ramped
from vamcei_jax.methods.supervised import deep_segmentation, make_predict, make_segmenter
from vamcei_jax.models.decoder import Decoder
from vamcei_jax.models.discriminator import Discriminator
from vamcei_jax.models.layers import average_pool
from vamcei_jax.models.unet import Segmentation, pool_latent
from vamcei_jax.prng import batch_positions, example_keys

__all__ = ["init_state", "make_predict", "make_step"]


def init_state(config: ConfigDict, key: Array) -> State:
  """The state before the first step."""
  init, key = jax.random.split(key)
  image = jnp.zeros((1, *config.data.crop, 1))
  output, segmenter = make_segmenter(config).init_with_output(init, image)
  class_map = jax.nn.softmax(output.logits)
  decoders = {}
  for scale, latent in enumerate(output.latents):
    decoder = make_decoder(config, scale)
    for number, domain in enumerate(("source", "target")):
      own_key = jax.random.fold_in(init, 1 + 2 * scale + number)
      decoders[f"{domain}_{scale}"] = decoder.init(own_key, latent.z, average_pool(class_map, 2**scale))["params"]
  discriminator = make_discriminator(config).init(jax.random.fold_in(init, 0), class_map)
  params = {"segmenter": segmenter["params"], "decoders": decoders, "discriminator": discriminator["params"]}
  return create_state(params, key, config)


def make_step(config: ConfigDict, axis_name: str | None = None) -> Callable[[State, dict], tuple[State, Metrics]]:
  """Returns step(state, batch) -> (state, metrics); batch: {"source": {image, label}, "target": {image}}.

  The batch may be split over `axis_name`; the losses are those of the global one.
  """
  segmenter, discriminator, update = make_segmenter(config), make_discriminator(config), make_update(config, axis_name)

  def segment(params: Params, batch: dict, key: Array) -> Segmentation:
    """Of both domains, the source's images first."""
    images = jnp.concatenate([batch["source"]["image"], batch["target"]["image"]])
    sources = len(batch["source"]["image"])
    # Positions in the global batch, whose target images come after all of its source images.
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    source, target = (batch_positions(len(batch[domain]["image"]), axis_name) for domain in ("source", "target"))
    positions = jnp.concatenate([source, sources * devices + target])
    return segmenter.apply({"params": params}, images, example_keys(key, positions))

  def segmenter_loss(params: dict[str, Params], state: State, batch: dict, key: Array) -> tuple[Array, tuple]:
    output = segment(params["segmenter"], batch, key)
    sources = len(batch["source"]["image"])
    split = lambda tree: (jax.tree.map(lambda x: x[:sources], tree), jax.tree.map(lambda x: x[sources:], tree))
    source, target = split(output)
    labels = jax.nn.one_hot(batch["source"]["label"], source.logits.shape[-1])
    probs_s, probs_t = jax.nn.softmax(source.logits), jax.nn.softmax(target.logits)
    domains = {
      "source": (source.latents, batch["source"]["image"], labels),
      "target": (target.latents, batch["target"]["image"], probs_t),
    }
    judged = discriminator.apply({"params": state.params["discriminator"]}, probs_t)

    cross_entropy, dice = deep_segmentation(source, batch["source"]["label"], axis_name)
    # What is reduced anyway is split into domains after that: halves of latents would be copies.
    prior = split([gaussian_prior_kl(latent.mu, latent.logvar) / latent.mu[0].size for latent in output.latents])
    pooled = split([pool_latent(latent) for latent in output.latents])
    unsupervised = {
      "reconstruction": reconstruction_loss(config, params["decoders"], domains),
      "prior_kl": sum(kl.mean() for scales in prior for kl in scales),
      "global_alignment": alignment_loss(config, *pooled, axis_name),
      "prototypes": prototype_loss(config, source.latents[0].mu, labels, target.latents[0].mu, probs_t, axis_name),
      "generator": generator_loss(judged),
    }
    ramp = ramped(state)
    weighted = {name: jnp.sum(state.weights[name] * term) for name, term in unsupervised.items()}
    total = state.weights["segmentation"] * (cross_entropy + dice) + ramp * sum(weighted.values())
    metrics = {"loss": total, "segmentation": cross_entropy + dice, "cross_entropy": cross_entropy, "dice_loss": dice}
    metrics |= {name: jnp.sum(term) for name, term in unsupervised.items()} | {"ramp": ramp}
    return total, (metrics, jax.lax.stop_gradient((probs_s, probs_t)))

  def judge_loss(params: Params, probs_s: Array, probs_t: Array) -> Array:
    judge = lambda probs: discriminator.apply({"params": params}, probs)
    return discriminator_loss(judge(probs_s), judge(probs_t))

  def step(state: State, batch: dict) -> tuple[State, Metrics]:
    key = jax.random.fold_in(state.key, state.step)
    learned = {name: state.params[name] for name in ("segmenter", "decoders")}
    grads, (metrics, probs) = jax.grad(segmenter_loss, has_aux=True)(learned, state, batch, key)
    metrics["discriminator"], grads["discriminator"] = jax.value_and_grad(judge_loss)(
      state.params["discriminator"], *probs
    )
    return update(state, grads, metrics)

  return step


def make_decoder(config: ConfigDict, scale: int) -> Decoder:
  """The decoder of one domain at 1/2**scale of the resolution."""
  model = config.model
  return Decoder(width=model.widths[scale], norm=model.norm, dtype=jnp.dtype(model.dtype))


def make_discriminator(config: ConfigDict) -> Discriminator:
  """The discriminator on class maps."""
  return Discriminator(width=config.model.discriminator_width, dtype=jnp.dtype(config.model.dtype))


def reconstruction_loss(config: ConfigDict, params: dict[str, Params], domains: dict[str, tuple]) -> Array:
  """Eq. 3, the mean over pixels and images, summed over domains and scales.

  Args:
    params: "{domain}_{scale}" -> parameters of its decoder.
    domains: domain -> (latents, images (B, H, W, 1), class map (B, H, W, K)).
  """
  total = 0.0
  for domain, (latents, image, class_map) in domains.items():
    for scale, latent in enumerate(latents):
      pooled = average_pool(class_map, 2**scale)
      logits = make_decoder(config, scale).apply({"params": params[f"{domain}_{scale}"]}, latent.z, pooled)
      total += reconstruction(logits, average_pool(image, 2**scale)).mean()
  return total


def alignment_loss(
  config: ConfigDict, source: list[tuple[Array, Array]], target: list[tuple[Array, Array]], axis_name: str | None = None
) -> Array:
  """Eqs. 5-8 of each scale: (scales,), on latents of `pool_latent`; batch split over `axis_name`."""
  estimator = config.loss.global_kl.estimator
  return jnp.stack([
    global_alignment(*s, *t, estimator=estimator, axis_name=axis_name) for s, t in zip(source, target, strict=True)
  ])


def prototype_loss(
  config: ConfigDict, features_s: Array, labels: Array, features_t: Array, probs_t: Array, axis_name: str | None = None
) -> Array:
  """Eqs. 9-10 on full-resolution features (B, H, W, C), batch split over `axis_name`.

  The target's classes are confident pseudo-labels.
  """
  probs_t = jax.lax.stop_gradient(probs_t)
  confident = probs_t.max(-1, keepdims=True) >= config.loss.prototypes.confidence
  pseudo_labels = jax.nn.one_hot(probs_t.argmax(-1), probs_t.shape[-1]) * confident
  prototypes_s = class_prototypes(features_s, labels, axis_name=axis_name)
  prototypes_t = class_prototypes(features_t, pseudo_labels, axis_name=axis_name)
  return prototype_contrast(*prototypes_s, *prototypes_t, temperature=config.loss.prototypes.temperature)
