"""VAMCEI: the segmenter learns eq. 4 on labelled source images, and further losses align the two domains.

In a step, segmenter and decoders follow the gradient of eqs. 2-10 and 12, and the discriminator follows that of eq. 11.
For eq. 12 the parameters of the discriminator are constants, and for eq. 11 the class maps are. The code applies the
discriminator twice to the class maps of the target; XLA merges the two.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Int, Key

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.losses import (
  alignment_by_dimension,
  class_prototypes,
  discriminator_loss,
  gaussian_prior_kl,
  generator_loss,
  global_alignment,
  prototype_contrast,
  reconstruction,
)
from vamcei_jax.methods.state import (
  Batch,
  Metrics,
  Params,
  State,
  apply_network,
  create_state,
  make_update,
  ramp_factor,
)
from vamcei_jax.methods.supervised import deep_segmentation, make_predict, make_segmenter
from vamcei_jax.models.decoder import Decoder
from vamcei_jax.models.discriminator import Discriminator
from vamcei_jax.models.layers import average_pool
from vamcei_jax.models.unet import Latent, Segmentation, pool_latent
from vamcei_jax.prng import batch_positions, example_keys

__all__ = ["NETWORKS", "TERMS", "init_state", "make_predict", "make_step"]

NETWORKS = ("segmenter", "decoders", "discriminator")


class Domain(NamedTuple):
  """One domain of a batch after the forward pass of the segmenter; index s of a tuple is the scale 1/2**s.

  Attributes:
    image: in [0, 1].
    class_map: one-hot labels of the source, or predicted probabilities of the target.
    latents: of each scale.
    prior_kl: eq. 2 of each scale, per latent dimension.
    pooled: mean and log variance of each scale, of `pool_latent`.
  """

  image: Float[Array, "B H W 1"]
  class_map: Float[Array, "B H W K"]
  latents: tuple[Latent, ...]
  prior_kl: tuple[Float32[Array, " B"], ...]
  pooled: tuple[tuple[Float32[Array, "B n"], Float32[Array, "B n"]], ...]


class Forward(NamedTuple):
  """The inputs of the unsupervised loss terms.

  Attributes:
    source, target: the two domains.
    decoders: "DOMAIN_SCALE" -> parameters, as "source_0".
    discriminator: parameters.
  """

  source: Domain
  target: Domain
  decoders: Mapping[str, Params]
  discriminator: Params


def reconstruction_term(forward: Forward, config: StageConfig, axis_name: str | None) -> Float32[Array, ""]:
  """Eq. 3: mean over pixels and images, sum over domains and scales."""
  del axis_name
  total = jnp.zeros(())
  for name, domain in (("source", forward.source), ("target", forward.target)):
    for scale, latent in enumerate(domain.latents):
      class_map = average_pool(domain.class_map, 2**scale)
      decoder = make_decoder(config, scale)
      logits = apply_network(decoder, forward.decoders[f"{name}_{scale}"], latent.z, class_map)
      total += reconstruction(logits, average_pool(domain.image, 2**scale)).mean()
  return total


def prior_kl_term(forward: Forward, config: StageConfig, axis_name: str | None) -> Float32[Array, ""]:
  """Eq. 2: mean over latent dimensions and images, sum over domains and scales."""
  del config, axis_name
  return sum((kl.mean() for domain in (forward.source, forward.target) for kl in domain.prior_kl), jnp.zeros(()))


def global_alignment_term(forward: Forward, config: StageConfig, axis_name: str | None) -> Float32[Array, " scales"]:
  """Eqs. 5-8 of each scale: sum over latent dimensions, of which those with a negative value count 0."""
  align = partial(global_alignment, estimator=config.loss.global_kl.estimator, guarded=True, axis_name=axis_name)
  pairs = zip(forward.source.pooled, forward.target.pooled, strict=True)
  return jnp.stack([align(*s, *t) for s, t in pairs])


def alignment_metrics(forward: Forward, axis_name: str | None) -> Metrics:
  """Both estimators of eqs. 5-8 at each scale, mean over latent dimensions: "alignment_pairwise_0", in nats."""
  metrics = {}
  for scale, (s, t) in enumerate(zip(forward.source.pooled, forward.target.pooled, strict=True)):
    for estimator, per_dim in alignment_by_dimension(*s, *t, axis_name=axis_name).items():
      metrics[f"alignment_{estimator}_{scale}"] = per_dim.mean()
  return metrics


def prototypes_term(forward: Forward, config: StageConfig, axis_name: str | None) -> Float32[Array, ""]:
  """Eqs. 9-10 on the latent means of full resolution, with pseudo-labels of confident pixels in the target.

  The pseudo-labels carry no gradient, because neither the largest class nor the comparison does.
  """
  source, target = forward.source, forward.target
  probs = target.class_map
  confident = probs.max(-1, keepdims=True) >= config.loss.prototypes.confidence
  pseudo_labels = jax.nn.one_hot(probs.argmax(-1), probs.shape[-1]) * confident
  prototypes_s = class_prototypes(source.latents[0].mu, source.class_map, axis_name=axis_name)
  prototypes_t = class_prototypes(target.latents[0].mu, pseudo_labels, axis_name=axis_name)
  return prototype_contrast(*prototypes_s, *prototypes_t, temperature=config.loss.prototypes.temperature)


def generator_term(forward: Forward, config: StageConfig, axis_name: str | None) -> Float32[Array, ""]:
  """Eq. 12: the discriminator should take the class maps of the target for those of the source."""
  del axis_name
  logits = apply_network(make_discriminator(config), forward.discriminator, forward.target.class_map)
  return generator_loss(logits)


# Loss term -> function of (forward, config, axis_name) that returns () or (scales,) values. The weight of a term is
# `config.loss.weights[term]`.
UNSUPERVISED = {
  "reconstruction": reconstruction_term,
  "prior_kl": prior_kl_term,
  "global_alignment": global_alignment_term,
  "prototypes": prototypes_term,
  "generator": generator_term,
}
TERMS = ("segmentation", *UNSUPERVISED)


def init_state(config: StageConfig, key: Key[Array, ""]) -> State:
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


def make_step(config: StageConfig, axis_name: str | None = None) -> Callable[[State, Batch], tuple[State, Metrics]]:
  """Makes step(state, batch) -> (state, metrics). `axis_name` may split the batch.

  The batch needs image and label of the source, and the image of the target.
  """
  segmenter, discriminator, update = make_segmenter(config), make_discriminator(config), make_update(config, axis_name)

  def segmenter_loss(params: dict[str, Params], state: State, batch: Batch, key: Array) -> tuple[Array, tuple]:
    images = jnp.concatenate([batch["source"]["image"], batch["target"]["image"]])
    keys = example_keys(key, _global_positions(batch, axis_name))
    output = apply_network(segmenter, params["segmenter"], images, keys, train=True)
    sources = len(batch["source"]["image"])
    logits_s, logits_t = output.logits[:sources], output.logits[sources:]
    probs_s, probs_t = jax.nn.softmax(logits_s), jax.nn.softmax(logits_t)
    labels = jax.nn.one_hot(batch["source"]["label"], logits_s.shape[-1])
    source, target = _split_domains(output, images, (labels, probs_t), sources)
    source_output = jax.tree.map(lambda x: x[:sources], output)
    labelled = source_output, batch["source"]["label"]
    cross_entropy, dice = deep_segmentation(*labelled, axis_name, balanced=config.loss.balanced)

    forward = Forward(source, target, params["decoders"], state.params["discriminator"])
    terms = {name: term(forward, config, axis_name) for name, term in UNSUPERVISED.items()}
    weighted = {name: jnp.sum(state.weights[name] * term) for name, term in terms.items()}
    ramp = ramp_factor(state)
    total = state.weights["segmentation"] * (cross_entropy + dice) + ramp * sum(weighted.values())
    metrics = {"loss": total, "segmentation": cross_entropy + dice, "cross_entropy": cross_entropy, "dice_loss": dice}
    metrics |= {name: jnp.sum(term) for name, term in terms.items()} | {"ramp": ramp}
    metrics |= alignment_metrics(forward, axis_name)
    return total, (metrics, (probs_s, probs_t))

  def eq_11(params: Params, probs_s: Array, probs_t: Array) -> Array:
    logits_s, logits_t = (apply_network(discriminator, params, probs) for probs in (probs_s, probs_t))
    return discriminator_loss(logits_s, logits_t)

  def step(state: State, batch: Batch) -> tuple[State, Metrics]:
    key = jax.random.fold_in(state.key, state.step)
    params = {name: state.params[name] for name in ("segmenter", "decoders")}
    grads, (metrics, probs) = jax.grad(segmenter_loss, has_aux=True)(params, state, batch, key)
    metrics["discriminator"], grads["discriminator"] = jax.value_and_grad(eq_11)(state.params["discriminator"], *probs)
    return update(state, grads, metrics)

  return step


def make_decoder(config: StageConfig, scale: int) -> Decoder:
  """The decoder of either domain at 1/2**scale of the full resolution."""
  model = config.model
  widths = model.decoder_widths or (model.widths[scale],) * 2
  return Decoder(widths, model.norm, model.bias, model.heads, jnp.dtype(model.dtype))


def make_discriminator(config: StageConfig) -> Discriminator:
  """The discriminator on class maps."""
  return Discriminator(width=config.model.discriminator_width, dtype=jnp.dtype(config.model.dtype))


def _global_positions(batch: Batch, axis_name: str | None) -> Int[Array, " B"]:
  """Positions of the images of this device in the global batch: all source images, then all target images."""
  sources, targets = (len(batch[domain]["image"]) for domain in ("source", "target"))
  devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
  return jnp.concatenate([batch_positions(sources, axis_name), sources * devices + batch_positions(targets, axis_name)])


def _split_domains(
  output: Segmentation, images: Array, class_maps: tuple[Array, Array], sources: int
) -> tuple[Domain, Domain]:
  """The two domains of a batch, of which the first `sources` images are the source.

  Args:
    output: of the segmenter for both domains.
    images: of both domains.
    class_maps: of source and target.
    sources: number of source images.
  """
  # Reduced before the split, because a slice of the latents would be a copy.
  prior_kl = tuple(gaussian_prior_kl(latent.mu, latent.logvar) / latent.mu[0].size for latent in output.latents)
  pooled = tuple(pool_latent(latent) for latent in output.latents)
  domains = []
  for part, class_map in zip((slice(None, sources), slice(sources, None)), class_maps, strict=True):
    halves = jax.tree.map(lambda x, part=part: x[part], (images, output.latents, prior_kl, pooled))
    domains.append(Domain(halves[0], class_map, *halves[1:]))
  return domains[0], domains[1]
