"""CycleGAN: translators between source and target images, learned without pairs (Zhu et al., ICCV 2017).

One step trains both directions: the two translators on the adversarial, the cycle and the identity loss, then the two
discriminators on real images and on translated images from a history.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Key

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.losses import absolute_difference, patch_discriminator_loss, translator_loss
from vamcei_jax.methods.state import Batch, Metrics, Params, State, apply_network, create_state, make_update
from vamcei_jax.models.translator import PatchDiscriminator, Translator
from vamcei_jax.prng import batch_positions

NETWORKS = ("translators", "discriminators")
TERMS = ("adversarial", "cycle", "identity")
DIRECTIONS = {"to_target": ("source", "target"), "to_source": ("target", "source")}  # name -> from, to

History = dict[str, Array]  # "images" (N, H, W, 1), and "count" () int32: how many of them are filled


def init_state(config: StageConfig, key: Key[Array, ""]) -> State:
  """The state before the first step; the histories are empty."""
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


def make_step(config: StageConfig, axis_name: str | None = None) -> Callable[[State, Batch], tuple[State, Metrics]]:
  """Makes step(state, batch) -> (state, metrics). It reads the images of both domains; `axis_name` may split the batch.

  Every device has the same history, of the images of all devices.
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
    answers = lambda domain, x: discriminate(params, domain, x)
    losses = [patch_discriminator_loss(answers(name, images[name]), answers(name, fakes[name])) for name in fakes]
    return sum(losses, jnp.zeros(()))

  def exchange_globally(history: History, images: Array, key: Array) -> tuple[History, Array]:
    if axis_name is None:
      return exchange(history, images, key)
    history, fakes = exchange(history, jax.lax.all_gather(images, axis_name, tiled=True), key)
    return history, fakes[batch_positions(len(images), axis_name)]

  def step(state: State, batch: Batch) -> tuple[State, Metrics]:
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
  """Makes predict(translator, images (B, H, W, 1)) -> images (B, H, W, 1) in the contrast of the other domain.

  `translator` is `State.ema_params["translators"][direction]`; the direction is a key of DIRECTIONS.
  """
  network = make_translator(config)

  def predict(translator: Params, images: Float[Array, "B H W 1"]) -> Float32[Array, "B H W 1"]:
    return apply_network(network, translator, images)

  return predict


def make_translator(config: StageConfig) -> Translator:
  """The translator of either direction."""
  settings, model = config.translation, config.model
  return Translator(settings.width, settings.blocks, model.norm, jnp.dtype(model.dtype))


def make_discriminator(config: StageConfig) -> PatchDiscriminator:
  """The discriminator of either domain."""
  settings, model = config.translation, config.model
  return PatchDiscriminator(settings.discriminator_width, model.norm, jnp.dtype(model.dtype))


def exchange(
  history: History, images: Float[Array, "B H W 1"], key: Key[Array, ""]
) -> tuple[History, Float[Array, "B H W 1"]]:
  """Exchanges some images for earlier ones, so that a discriminator remembers them (Shrivastava et al., CVPR 2017).

  The images are processed in order. While the history is not full, an image is stored and also returned. Afterwards,
  with probability ½, an image takes the place of a random stored image, and the stored image is returned. Otherwise the
  image is returned and not stored.

  Args:
    history: stored images.
    images: (B, H, W, 1) translated images.
    key: PRNG key. The key of each image is folded from it and the index of the image.

  Returns:
    The new history, and the returned images (B, H, W, 1).
  """
  size = len(history["images"])

  def exchange_one(history: History, indexed: tuple[Array, Array]) -> tuple[History, Array]:
    index, image = indexed
    place, coin = jax.random.split(jax.random.fold_in(key, index))
    stored, count = history["images"], history["count"]
    full = count >= size
    slot = jnp.where(full, jax.random.randint(place, (), 0, size), count)
    swap = full & jax.random.bernoulli(coin)
    returned = jnp.where(swap, stored[slot], image)
    stored = stored.at[slot].set(jnp.where(swap | ~full, image, stored[slot]))
    return {"images": stored, "count": jnp.minimum(count + 1, size)}, returned

  return jax.lax.scan(exchange_one, history, (jnp.arange(len(images)), images))
