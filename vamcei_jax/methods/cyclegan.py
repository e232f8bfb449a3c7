"""CycleGAN: translators between source and target images, learned without pairs (Zhu et al., ICCV 2017).

One step trains both directions: the two translators on the adversarial, the cycle and the identity loss, then the two
discriminators on real images and on translated images from a history.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.losses import absolute_difference, patch_discriminator_loss, translator_loss
from vamcei_jax.methods.state import Metrics, Params, State, apply_network, create_state, make_update
from vamcei_jax.models.translator import PatchDiscriminator, Translator
from vamcei_jax.prng import batch_positions

NETWORKS = ("translators", "discriminators")
TERMS = ("adversarial", "cycle", "identity")
DIRECTIONS = {"to_target": ("source", "target"), "to_source": ("target", "source")}  # name -> from, to


def init_state(config: StageConfig, key: Array) -> State:
  """The state before the first step."""
  init, key = jax.random.split(key)
  image = jnp.zeros((1, *config.data.crop, 1))
  translator, discriminator = make_translator(config), make_discriminator(config)
  keys = iter(jax.random.split(init, 2 * len(DIRECTIONS)))
  params = {
    "translators": {name: translator.init(next(keys), image)["params"] for name in DIRECTIONS},
    "discriminators": {to: discriminator.init(next(keys), image)["params"] for _, to in DIRECTIONS.values()},
  }
  state = create_state(params, key, config, terms=TERMS, averaged="translators")
  empty = lambda: {
    "images": jnp.zeros((config.translation.history, *config.data.crop, 1)),
    "count": jnp.zeros((), jnp.int32),
  }
  return state.replace(memory={domain: empty() for domain in params["discriminators"]})


def make_step(config: StageConfig, axis_name: str | None = None) -> Callable[[State, dict], tuple[State, Metrics]]:
  """Returns step(state, batch) -> (state, metrics); batch: {"source": {image}, "target": {image}}; no label is read.

  The batch may be split over `axis_name`. Every device then keeps the whole history, through which the images of all of
  them go.
  """
  translator, discriminator = make_translator(config), make_discriminator(config)
  update = make_update(config, axis_name)
  discriminate = lambda params, domain, images: apply_network(discriminator, params[domain], images)

  def translators_loss(params: Params, state: State, images: dict[str, Array]) -> tuple[Array, tuple]:
    translate = lambda direction, x: apply_network(translator, params[direction], x)
    discriminators = state.params["discriminators"]
    terms, translated = dict.fromkeys(TERMS, jnp.zeros(())), {}
    for direction, (source, target) in DIRECTIONS.items():
      (back,) = set(DIRECTIONS) - {direction}
      translated[target] = translate(direction, images[source])
      terms["adversarial"] += translator_loss(discriminate(discriminators, target, translated[target]))
      terms["cycle"] += absolute_difference(translate(back, translated[target]), images[source])
      terms["identity"] += absolute_difference(translate(direction, images[target]), images[target])
    total = sum((state.weights[name] * term for name, term in terms.items()), jnp.zeros(()))
    return total, ({"loss": total, **terms}, translated)

  def discriminators_loss(params: Params, images: dict[str, Array], fakes: dict[str, Array]) -> Array:
    logits = lambda domain, x: discriminate(params, domain, x)
    losses = [patch_discriminator_loss(logits(name, images[name]), logits(name, fakes[name])) for name in fakes]
    return sum(losses, jnp.zeros(()))

  def exchange_globally(history: dict[str, Array], images: Array, key: Array) -> tuple[dict[str, Array], Array]:
    if axis_name is None:
      return exchange(history, images, key)
    history, fakes = exchange(history, jax.lax.all_gather(images, axis_name, tiled=True), key)
    return history, fakes[batch_positions(len(images), axis_name)]

  def step(state: State, batch: dict) -> tuple[State, Metrics]:
    key = jax.random.fold_in(state.key, state.step)
    images = {domain: batch[domain]["image"] for domain in ("source", "target")}
    gradient = jax.grad(translators_loss, has_aux=True)
    grads, (metrics, translated) = gradient(state.params["translators"], state, images)
    memory, fakes = {}, {}
    for number, (domain, history) in enumerate(sorted(state.memory.items())):
      memory[domain], fakes[domain] = exchange_globally(history, translated[domain], jax.random.fold_in(key, number))
    gradient = jax.value_and_grad(discriminators_loss)
    metrics["discriminator"], discriminator_grads = gradient(state.params["discriminators"], images, fakes)
    state, metrics = update(state, {"translators": grads, "discriminators": discriminator_grads}, metrics)
    return state.replace(memory=memory), metrics

  return step


def make_predict(config: StageConfig) -> Callable[[Params, Array], Array]:
  """Returns predict(translator, images (B, H, W, 1)) -> images (B, H, W, 1) in the other domain's contrast.

  `translator` is `State.ema_params["translators"][direction]`, the direction a key of DIRECTIONS.
  """
  network = make_translator(config)
  return lambda translator, images: apply_network(network, translator, images)


def make_translator(config: StageConfig) -> Translator:
  """The translator of either direction."""
  settings, model = config.translation, config.model
  return Translator(settings.width, settings.blocks, model.norm, jnp.dtype(model.dtype))


def make_discriminator(config: StageConfig) -> PatchDiscriminator:
  """The discriminator of either domain."""
  settings, model = config.translation, config.model
  return PatchDiscriminator(settings.discriminator_width, model.norm, jnp.dtype(model.dtype))


def exchange(history: dict[str, Array], images: Array, key: Array) -> tuple[dict[str, Array], Array]:
  """Replaces some images by earlier ones, so that a discriminator does not forget them (Shrivastava et al., CVPR 2017).

  The images are taken one after the other. While the history is not full, an image is stored and returned. Afterwards,
  with probability ½, it replaces a random stored image, which is returned instead; otherwise it is returned and not
  stored.

  Args:
    history: {"images": (N, H, W, 1), "count": () int32, how many of them are filled}.
    images: (B, H, W, 1).
    key: PRNG key; that of each image is folded from it and the image's index.

  Returns:
    The new history, and the returned images (B, H, W, 1).
  """
  size = len(history["images"])

  def one(history, indexed):
    index, image = indexed
    place, coin = jax.random.split(jax.random.fold_in(key, index))
    stored, count = history["images"], history["count"]
    full = count >= size
    slot = jnp.where(full, jax.random.randint(place, (), 0, size), count)
    swap = full & jax.random.bernoulli(coin)
    back = jnp.where(swap, stored[slot], image)
    stored = stored.at[slot].set(jnp.where(swap | ~full, image, stored[slot]))
    return {"images": stored, "count": jnp.minimum(count + 1, size)}, back

  return jax.lax.scan(one, history, (jnp.arange(len(images)), images))
