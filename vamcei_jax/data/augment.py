"""Random views of images: pure functions of (image, key), one image at a time, vmapped and run inside the jitted step.

Images are (H, W) in [0, 1] and stay there. A strength of 0 switches a transform off.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates
from ml_collections import ConfigDict

from vamcei_jax.data.labels import CLASSES

GIN_LAYERS, GIN_WIDTH = 4, 2
IPA_POINTS = 5  # random values along each side of an image, between which the share of two networks is interpolated
SCAR_BRIGHTNESS = (0.8, 2.5)  # relative to the LV cavity's blood
SCAR_TEXTURE = 0.1  # what scars keep of an intensity's distance from its local mean, at most
RELAXATION = 0.25  # of the largest contraction: how far hearts go the other way
SCAR_REACH = 4.0  # pixels over which the depth in the wall is told: about half of a usual wall


def augment(example: dict[str, Array], key: Array, size: tuple[int, int], strengths: ConfigDict) -> dict[str, Array]:
  """A random view of an example, all of whose maps are moved alike.

  Args:
    example: "image" (H, W) in [0, 1] and, where there are any, "label" (H, W) class indices and "teacher" (H, W, K)
      class probabilities. What comes from outside of them is 0, background.
    key: PRNG key.
    size: (h, w) of the view, a random crop where it is smaller than the image.
    strengths: `config.augment`: rotation (radians), scale (relative), shift (pixels), flip (axes of the image that
      anatomy allows to be mirrored; none in the heart), gamma (log), contrast, bias (log), noise (standard deviation),
      blur (pixels) and gin (share of the random network's image), each the largest amount drawn; ipa (probability
      that two such networks share an image), scar (probability that an image with a label is given some) and
      contraction (share of the LV cavity's area that a labelled heart squeezes out).

  Returns:
    The maps of the example, seen so; beside a "teacher", "plain" is the image with its intensities as they were.
  """
  # What is drawn for one transform does not depend on which others there are: their keys stay where they are.
  geometry, *keys, wound = jax.random.split(key, 8)
  where = random_coordinates(geometry, example["image"].shape, size, strengths)
  if "label" in example and strengths.contraction:
    where = contract(where, example["label"], jax.random.fold_in(key, 8), strengths.contraction)
  sample = lambda map, order: map_coordinates(map, where, order=order, mode="constant")
  view = {"image": sample(example["image"], 1)}
  if "label" in example:
    view["label"] = sample(example["label"], 0)
    if strengths.scar:
      view["image"] = scar(view["image"], view["label"], wound, strengths.scar)
  if "teacher" in example:
    view["plain"] = view["image"]
    structures = jnp.moveaxis(example["teacher"][..., 1:].astype(jnp.float32), -1, 0)
    structures = jnp.moveaxis(jax.vmap(lambda map: sample(map, 1))(structures), 0, -1)
    view["teacher"] = jnp.concatenate([1.0 - structures.sum(-1, keepdims=True), structures], -1)

  *keys, network = keys
  amounts = (strengths.gamma, strengths.contrast, strengths.bias, strengths.blur, strengths.noise)
  for transform, amount, own_key in zip((gamma, contrast, bias_field, blur, noise), amounts, keys, strict=True):
    if amount:
      view["image"] = transform(view["image"], own_key, amount)
  if strengths.gin:
    seen = gin(view["image"], network, strengths.gin)
    if strengths.ipa:
      other, place, shared = jax.random.split(jax.random.fold_in(key, 9), 3)
      blended = blend(seen, gin(view["image"], other, strengths.gin), place)
      seen = jnp.where(jax.random.bernoulli(shared, strengths.ipa), blended, seen)
    view["image"] = seen
  return view


def random_coordinates(key: Array, shape: tuple[int, int], size: tuple[int, int], strengths: ConfigDict) -> Array:
  """Where in an image of `shape` each pixel of a random view of `size` comes from: (2, h, w) coordinates in pixels."""
  keys = jax.random.split(key, 4)
  shape, size = jnp.array(shape, jnp.float32), tuple(size)
  room = jnp.maximum((shape - jnp.array(size)) / 2.0, 0.0)
  centre = (shape - 1.0) / 2.0 + jax.random.uniform(keys[0], (2,), minval=-1.0, maxval=1.0) * (room + strengths.shift)
  angle = strengths.rotation * jax.random.uniform(keys[1], minval=-1.0, maxval=1.0)
  zoom = jnp.exp(jnp.log1p(strengths.scale) * jax.random.uniform(keys[2], minval=-1.0, maxval=1.0))
  mirrored = jax.random.bernoulli(keys[3], 0.5, (2,)) & jnp.array([axis in strengths.flip for axis in (0, 1)])
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  matrix = jnp.array([[cos, -sin], [sin, cos]]) / zoom * jnp.where(mirrored, -1.0, 1.0)[None]
  return sample_grid(matrix, centre, size)


def sample_grid(matrix: Array, centre: Array, size: tuple[int, int]) -> Array:
  """(2, h, w) coordinates of a grid of `size` about its middle, turned by a (2, 2) matrix and put on `centre`."""
  grid = jnp.stack(jnp.meshgrid(*(jnp.arange(n) - (n - 1) / 2.0 for n in size), indexing="ij"))
  return jnp.einsum("ij,jhw->ihw", matrix, grid) + centre[:, None, None]


def contract(where: Array, label: Array, key: Array, strength: float) -> Array:
  """Where the pixels of a view come from, if the heart in it has contracted, or relaxed, beforehand.

  Hearts of a target may have smaller cavities and thicker walls than those of the source, be it for their phase. The
  cavity, as if it were round, becomes smaller by πc, and what lies about it follows and keeps its area, as what is
  incompressible does: a pixel at the distance r from its middle comes from sqrt(r² + c). So its wall thickens as it
  would, and the further away something lies, the less it moves.

  Args:
    where: (2, h, w) coordinates in the image.
    label: (H, W) class indices. Without an LV, nothing moves.
    key: PRNG key.
    strength: the largest share of the cavity that is squeezed out; of what is let in, RELAXATION times as much.
  """
  cavity = label == CLASSES.index("LV")
  away = where - _middle(cavity)[:, None, None]
  square_radius, square_distance = cavity.sum() / jnp.pi, (away**2).sum(0)
  squeezed = strength * jax.random.uniform(key, minval=-RELAXATION, maxval=1.0) * square_radius
  stretch = jnp.sqrt(1.0 + squeezed / jnp.maximum(square_distance, square_radius - squeezed + 1e-3))
  return where + away * (stretch - 1.0)[None]


def gamma(image: Array, key: Array, strength: float) -> Array:
  """image ** γ, ln γ uniform in ±strength."""
  exponent = jnp.exp(strength * jax.random.uniform(key, minval=-1.0, maxval=1.0))
  return image**exponent


def contrast(image: Array, key: Array, strength: float) -> Array:
  """Scales the image about its mean and shifts it, by up to `strength` and half of it."""
  scale, shift = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0) * strength
  return jnp.clip((image - image.mean()) * (1.0 + scale) + image.mean() + shift / 2.0, 0.0, 1.0)


def bias_field(image: Array, key: Array, strength: float) -> Array:
  """Multiplies by the exponential of a random cubic polynomial of the position, at most ±strength."""
  y, x = (jnp.linspace(-1.0, 1.0, n) for n in image.shape)
  powers = lambda t: jnp.stack([t**n for n in range(4)])
  coefficients = jax.random.normal(key, (4, 4)).at[0, 0].set(0.0)
  field = jnp.einsum("ij,ih,jw->hw", coefficients, powers(y), powers(x))
  return jnp.clip(image * jnp.exp(strength * field / jnp.abs(field).max()), 0.0, 1.0)


def blur(image: Array, key: Array, strength: float) -> Array:
  """Gaussian blur of a width uniform in [0, strength] pixels, cut off at three pixels."""
  sigma = strength * jax.random.uniform(key) + 1e-3
  offsets = jnp.arange(-3, 4)
  kernel = jax.nn.softmax(-0.5 * (offsets / sigma) ** 2)
  for axis, size in enumerate(image.shape):
    padded = jnp.pad(image, [(3, 3) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
    image = sum(kernel[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(7))
  return image


def noise(image: Array, key: Array, strength: float) -> Array:
  """Adds white noise of a standard deviation uniform in [0, strength]."""
  amount, white = jax.random.split(key)
  return jnp.clip(image + strength * jax.random.uniform(amount) * jax.random.normal(white, image.shape), 0.0, 1.0)


def scar(image: Array, label: Array, key: Array, probability: float) -> Array:
  """Paints infarct scar as late gadolinium shows it into the myocardium: as bright as blood, or brighter.

  bSSFP has none, and a network that has seen none takes it for blood. One or two sectors about the cavity, of any width
  up to almost the whole ring, from the endocardium outwards (the wavefront of Reimer et al., Circulation 1977) to a
  depth between a fifth of the wall and all of it, with ragged edges. Within them, local means become about that of the
  LV cavity, times a factor that is log-uniform in SCAR_BRIGHTNESS; where the product is more than 1, the whole image is
  divided by it, so that blood is grey beside a bright scar. In walls that are thinner than SCAR_REACH, and about
  the small cavities of the apex, depth is told badly, and scars are fainter or missing. Without myocardium or cavity,
  the image stays as it is.

  Args:
    image: (H, W) in [0, 1].
    label: (H, W) class indices.
    key: PRNG key.
    probability: of a scar in an image.
  """
  keys = jax.random.split(key, 5)
  myo, cavity = label == CLASSES.index("Myo"), label == CLASSES.index("LV")
  y, x = jnp.mgrid[: image.shape[0], : image.shape[1]].astype(jnp.float32)
  middle = _middle(cavity)
  direction = jnp.arctan2(y - middle[0], x - middle[1])
  # How near the cavity and what lies outside are: from about 0 at the endocardium to about 1 at the epicardium.
  within, beyond = _smooth(cavity, SCAR_REACH), _smooth(~(cavity | myo), SCAR_REACH)
  depth = beyond / jnp.maximum(within + beyond, 1e-6)
  ragged = _smooth(jax.random.normal(keys[4], image.shape), 2.0)
  ragged /= jnp.maximum(ragged.std(), 1e-6)
  alpha = jnp.zeros_like(image)
  for number in range(2):
    turn, width, reach, there = jax.random.split(keys[number], 4)
    away = (direction - jax.random.uniform(turn, maxval=2.0 * jnp.pi)) % (2.0 * jnp.pi)
    away = jnp.minimum(away, 2.0 * jnp.pi - away)
    half = jnp.exp(jax.random.uniform(width, minval=jnp.log(0.2), maxval=jnp.log(jnp.pi)))
    outer = jax.random.uniform(reach, minval=0.2, maxval=1.1)
    edge = lambda inside: jax.nn.sigmoid(10.0 * inside + ragged)
    patch = edge(outer - depth) * edge(half - away)
    alpha = jnp.maximum(alpha, jnp.where(jax.random.bernoulli(there, 1.0 if number == 0 else 0.5), patch, 0.0))
  low, high = (math.log(end) for end in SCAR_BRIGHTNESS)
  blood = (cavity * image).sum() / jnp.maximum(cavity.sum(), 1)
  bright = blood * jnp.exp(jax.random.uniform(keys[2], minval=low, maxval=high))
  # Nothing but brightness may tell scar from blood: nothing is left in it of the edge between wall and cavity, which is
  # a rim of pixels on both sides that are part of both.
  near = _smooth(myo, 2.0)
  rim = jnp.minimum(4.0 * jnp.minimum(near, _smooth(cavity, 2.0)), 1.0)
  usual = jnp.where(myo, _smooth(myo * image, 2.0) / jnp.maximum(near, 1e-6), blood)
  texture = (1.0 - rim) * jnp.clip(image - usual, -SCAR_TEXTURE, SCAR_TEXTURE)
  filled = blood + _smooth(alpha * myo, 0.7) * (bright - blood) + texture
  painted = image + alpha * jnp.where(myo, 1.0, cavity * rim) * (filled - image)
  painted = jnp.clip(painted / jnp.maximum(bright, 1.0), 0.0, 1.0)
  wanted = jax.random.bernoulli(keys[3], probability) & myo.any() & cavity.any()
  return jnp.where(wanted, painted, image)


def _middle(mask: Array) -> Array:
  """(2,) row and column of the middle of a mask (H, W); 0 of an empty one."""
  y, x = jnp.mgrid[: mask.shape[0], : mask.shape[1]].astype(jnp.float32)
  return jnp.stack([(mask * at).sum() / jnp.maximum(mask.sum(), 1) for at in (y, x)])


def _smooth(map: Array, sigma: float) -> Array:
  """A map (H, W) under a Gaussian of any width, as two products of matrices."""
  gaussian = lambda n: jax.nn.softmax(-0.5 * ((jnp.arange(n)[:, None] - jnp.arange(n)[None]) / sigma) ** 2)
  return gaussian(map.shape[0]) @ map.astype(jnp.float32) @ gaussian(map.shape[1]).T


def gin(image: Array, key: Array, strength: float) -> Array:
  """Mixes the image with what a random shallow network makes of it, and scales the result to [0, 1].

  Global intensity non-linear augmentation (Ouyang et al., IEEE TMI 2022, section III-B): the mapping of intensities
  and the local texture become random, shapes stay. Four convolutions of GIN_WIDTH channels, each 1×1 or 3×3, with
  weights and biases from N(0, 1) and leaky ReLUs between them; the share α of its output is uniform in [0, strength].
  Unlike the published code: the image is standardised first, edges are continued rather than padded with 0, the ReLU's
  slope is 0.2 rather than 0.01, and the result has the range [0, 1], which eq. 3 needs, rather than the image's norm.
  """
  share, *keys = jax.random.split(key, 1 + GIN_LAYERS)
  share = strength * jax.random.uniform(share)
  centred = (image - image.mean()) / jnp.maximum(image.std(), 1e-3)
  x, widths = centred[None], (1, *[GIN_WIDTH] * (GIN_LAYERS - 1), 1)
  for layer, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
    weights, biases, small = jax.random.split(keys[layer], 3)
    kernel = jax.random.normal(weights, (3, 3, fan_out, fan_in))
    middle = jnp.zeros((3, 3)).at[1, 1].set(1.0)
    kernel *= jnp.where(jax.random.bernoulli(small), middle, 1.0)[..., None, None]
    # Shifts and small products: under vmap, a convolution would become a grouped one, which is slow on CPUs.
    padded, (height, width) = jnp.pad(x, [(0, 0), (1, 1), (1, 1)], mode="edge"), image.shape
    shifted = [[padded[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]
    x = sum(jnp.einsum("oc,chw->ohw", kernel[i, j], shifted[i][j]) for i in range(3) for j in range(3))
    x += jax.random.normal(biases, (fan_out, 1, 1))
    if layer < GIN_LAYERS - 1:
      x = jax.nn.leaky_relu(x, 0.2)
  mixed = share * x[0] + (1.0 - share) * centred
  low, high = mixed.min(), mixed.max()
  return (mixed - low) / jnp.maximum(high - low, 1e-3)


def blend(one: Array, other: Array, key: Array) -> Array:
  """Two images in one: pixels are weighted means, by shares that change smoothly from place to place.

  Interventional pseudo-correlation augmentation (Ouyang et al., IEEE TMI 2022), of what `gin` makes of an image twice:
  what is equally bright in an image no longer is, so that a structure cannot be told by the brightness of something
  else. The share of `one` is interpolated by cubics between IPA_POINTS × IPA_POINTS values from U(0, 1) and then scaled
  to [0, 1]. The published code interpolates logarithms by B-splines, and has two more views of an image, one of
  opposite shares and one by `gin` alone, with a loss that holds the predictions of all three together.
  """
  share = jax.image.resize(jax.random.uniform(key, (IPA_POINTS, IPA_POINTS)), one.shape, "cubic")
  share = (share - share.min()) / jnp.maximum(share.max() - share.min(), 1e-6)
  return share * one + (1.0 - share) * other
