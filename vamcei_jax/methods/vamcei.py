"""VAMCEI: the segmenter learns on labelled source images, and seven losses align the target with them.

One step is one forward pass of segmenter, decoders and discriminator over both domains. Segmenter and decoders follow
the gradient of six losses, the discriminator that of eq. 11, whose inputs carry no gradient. (The code applies the
discriminator to the target's maps twice, for eqs. 12 and 11; the inputs are equal, and XLA merges the two.)
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.losses import (
  class_prototypes,
  discriminator_loss,
  gaussian_prior_kl,
  generator_loss,
  global_alignment,
  prototype_contrast,
  reconstruction,
)
from vamcei_jax.methods.state import Metrics, Params, State, apply_network, create_state, make_update, ramp_factor
from vamcei_jax.methods.supervised import deep_segmentation, make_predict, make_segmenter
from vamcei_jax.models.decoder import Decoder
from vamcei_jax.models.discriminator import Discriminator
from vamcei_jax.models.layers import average_pool
from vamcei_jax.models.unet import Latent, Segmentation, pool_latent
from vamcei_jax.prng import batch_positions, example_keys

__all__ = ["NETWORKS", "TERMS", "init_state", "make_predict", "make_step"]

NETWORKS = ("segmenter", "decoders", "discriminator")


class Domain(NamedTuple):
  """One domain of a batch after the segmenter's forward pass."""

  image: Array  # (B, H, W, 1)
  class_map: Array  # (B, H, W, K): one-hot labels of the source, predicted probabilities of the target
  latents: tuple[Latent, ...]  # by scale
  prior_kl: tuple[Array, ...]  # (B,) by scale: eq. 2 per latent dimension
  pooled: tuple[tuple[Array, Array], ...]  # (mu, logvar) (B, n) by scale, of pool_latent


class Forward(NamedTuple):
  """What the unsupervised loss terms are computed from."""

  source: Domain
  target: Domain
  decoders: Mapping[str, Params]  # "{domain}_{scale}" -> parameters
  discriminator: Params


def reconstruction_term(forward: Forward, config: StageConfig, axis_name: str | None) -> Array:
  """Eq. 3, the mean over pixels and images, summed over domains and scales."""
  del axis_name
  total = jnp.zeros(())
  for name, domain in (("source", forward.source), ("target", forward.target)):
    for scale, latent in enumerate(domain.latents):
      class_map = average_pool(domain.class_map, 2**scale)
      decoder = make_decoder(config, scale)
      logits = apply_network(decoder, forward.decoders[f"{name}_{scale}"], latent.z, class_map)
      total += reconstruction(logits, average_pool(domain.image, 2**scale)).mean()
  return total


def prior_kl_term(forward: Forward, config: StageConfig, axis_name: str | None) -> Array:
  """Eq. 2, the mean over latent dimensions and images, summed over domains and scales."""
  del config, axis_name
  return sum((kl.mean() for domain in (forward.source, forward.target) for kl in domain.prior_kl), jnp.zeros(()))


def global_alignment_term(forward: Forward, config: StageConfig, axis_name: str | None) -> Array:
  """Eqs. 5-8 of each scale: (scales,)."""
  estimator = config.loss.global_kl.estimator
  pairs = zip(forward.source.pooled, forward.target.pooled, strict=True)
  return jnp.stack([global_alignment(*s, *t, estimator=estimator, axis_name=axis_name) for s, t in pairs])


def prototypes_term(forward: Forward, config: StageConfig, axis_name: str | None) -> Array:
  """Eqs. 9-10 on the latent means of full resolution. The target's classes are confident pseudo-labels."""
  source, target = forward.source, forward.target
  probs = jax.lax.stop_gradient(target.class_map)
  confident = probs.max(-1, keepdims=True) >= config.loss.prototypes.confidence
  pseudo_labels = jax.nn.one_hot(probs.argmax(-1), probs.shape[-1]) * confident
  prototypes_s = class_prototypes(source.latents[0].mu, source.class_map, axis_name=axis_name)
  prototypes_t = class_prototypes(target.latents[0].mu, pseudo_labels, axis_name=axis_name)
  return prototype_contrast(*prototypes_s, *prototypes_t, temperature=config.loss.prototypes.temperature)


def generator_term(forward: Forward, config: StageConfig, axis_name: str | None) -> Array:
  """Eq. 12."""
  del axis_name
  logits = apply_network(make_discriminator(config), forward.discriminator, forward.target.class_map)
  return generator_loss(logits)


# Loss term -> (forward, config, axis name) -> () or (scales,). `config.loss.weights` weighs each by its name.
UNSUPERVISED = {
  "reconstruction": reconstruction_term,
  "prior_kl": prior_kl_term,
  "global_alignment": global_alignment_term,
  "prototypes": prototypes_term,
  "generator": generator_term,
}
TERMS = ("segmentation", *UNSUPERVISED)


def init_state(config: StageConfig, key: Array) -> State:
  """The state before the first step."""
  init, key = jax.random.split(key)
  image = jnp.zeros((1, *config.data.crop, 1))
  output, segmenter = make_segmenter(config).init_with_output(init, image)
  class_map = jax.nn.softmax(output.logits)
  decoders = {}
  for scale, latent in enumerate(output.latents):
    decoder = make_decoder(config, scale)
    for number, domain in enumerate(("source", "target")):
      decoder_key = jax.random.fold_in(init, 1 + 2 * scale + number)
      decoders[f"{domain}_{scale}"] = decoder.init(decoder_key, latent.z, average_pool(class_map, 2**scale))["params"]
  discriminator = make_discriminator(config).init(jax.random.fold_in(init, 0), class_map)
  params = {"segmenter": segmenter["params"], "decoders": decoders, "discriminator": discriminator["params"]}
  return create_state(params, key, config, terms=TERMS)


def make_step(config: StageConfig, axis_name: str | None = None) -> Callable[[State, dict], tuple[State, Metrics]]:
  """Returns step(state, batch) -> (state, metrics); batch: {"source": {image, label}, "target": {image}}.

  The batch may be split over `axis_name`; the losses are those of the global batch.
  """
  segmenter, discriminator, update = make_segmenter(config), make_discriminator(config), make_update(config, axis_name)

  def segmenter_loss(params: dict[str, Params], state: State, batch: dict, key: Array) -> tuple[Array, tuple]:
    images = jnp.concatenate([batch["source"]["image"], batch["target"]["image"]])
    keys = example_keys(key, _global_positions(batch, axis_name))
    output = apply_network(segmenter, params["segmenter"], images, keys)
    sources = len(batch["source"]["image"])
    logits_s, logits_t = output.logits[:sources], output.logits[sources:]
    probs_s, probs_t = jax.nn.softmax(logits_s), jax.nn.softmax(logits_t)
    labels = jax.nn.one_hot(batch["source"]["label"], logits_s.shape[-1])
    source, target = _split_domains(output, images, (labels, probs_t), sources)
    source_output = jax.tree.map(lambda x: x[:sources], output)
    cross_entropy, dice = deep_segmentation(source_output, batch["source"]["label"], axis_name)

    forward = Forward(source, target, params["decoders"], state.params["discriminator"])
    terms = {name: term(forward, config, axis_name) for name, term in UNSUPERVISED.items()}
    weighted = {name: jnp.sum(state.weights[name] * term) for name, term in terms.items()}
    ramp = ramp_factor(state)
    total = state.weights["segmentation"] * (cross_entropy + dice) + ramp * sum(weighted.values())
    metrics = {"loss": total, "segmentation": cross_entropy + dice, "cross_entropy": cross_entropy, "dice_loss": dice}
    metrics |= {name: jnp.sum(term) for name, term in terms.items()} | {"ramp": ramp}
    return total, (metrics, jax.lax.stop_gradient((probs_s, probs_t)))

  def eq_11(params: Params, probs_s: Array, probs_t: Array) -> Array:
    logits = lambda probs: apply_network(discriminator, params, probs)
    return discriminator_loss(logits(probs_s), logits(probs_t))

  def step(state: State, batch: dict) -> tuple[State, Metrics]:
    key = jax.random.fold_in(state.key, state.step)
    params = {name: state.params[name] for name in ("segmenter", "decoders")}
    grads, (metrics, probs) = jax.grad(segmenter_loss, has_aux=True)(params, state, batch, key)
    metrics["discriminator"], grads["discriminator"] = jax.value_and_grad(eq_11)(state.params["discriminator"], *probs)
    return update(state, grads, metrics)

  return step


def make_decoder(config: StageConfig, scale: int) -> Decoder:
  """The decoder of one domain at 1/2**scale of the resolution."""
  model = config.model
  return Decoder(width=model.widths[scale], norm=model.norm, dtype=jnp.dtype(model.dtype))


def make_discriminator(config: StageConfig) -> Discriminator:
  """The discriminator on class maps."""
  return Discriminator(width=config.model.discriminator_width, dtype=jnp.dtype(config.model.dtype))


def _global_positions(batch: dict, axis_name: str | None) -> Array:
  """Positions of this device's images in the global batch, whose target images follow all of its source images."""
  sources, targets = (len(batch[domain]["image"]) for domain in ("source", "target"))
  devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
  return jnp.concatenate([batch_positions(sources, axis_name), sources * devices + batch_positions(targets, axis_name)])


def _split_domains(
  output: Segmentation, images: Array, class_maps: tuple[Array, Array], sources: int
) -> tuple[Domain, Domain]:
  """The two domains of a batch whose first `sources` images are the source's."""
  # Reduced before they are split: halves of latents would be copies.
  prior_kl = tuple(gaussian_prior_kl(latent.mu, latent.logvar) / latent.mu[0].size for latent in output.latents)
  pooled = tuple(pool_latent(latent) for latent in output.latents)
  domains = []
  for part, class_map in zip((slice(None, sources), slice(sources, None)), class_maps, strict=True):
    halves = jax.tree.map(lambda x, part=part: x[part], (images, output.latents, prior_kl, pooled))
    domains.append(Domain(halves[0], class_map, *halves[1:]))
  return domains[0], domains[1]
