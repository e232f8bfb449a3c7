"""The step with the published layers at a small size; parameters and images are drawn by NumPy."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from configs import vamcei_paper
from vamcei_jax.methods import vamcei
from vamcei_jax.pipeline.resolve import resolve

SHAPE = (48, 32)


def small_config(**sections):
  """configs/vamcei_paper.py with narrow networks on small images, and these fields of sections."""
  config = vamcei_paper.get_config()
  config.data.crop = SHAPE
  config.model.update(widths=(8, 8, 16, 16, 24), decoder_widths=(8, 8, 6, 6, 4, 4), discriminator_width=4)
  # So that each term counts in the gradient.
  config.loss.weights.update(reconstruction=3.0, prior_kl=30.0, prototypes=3.0, generator=3.0)
  config.loss.weights.global_alignment = (1e-2, 1e-2, 1e-3)
  config.train.batch_size = 3
  config.update(sections)
  return resolve(config).stages["vamcei"]


def make_batch(config):
  """Noise, and labels without one class."""
  rng = np.random.default_rng(0)
  shape = (config.train.batch_size, *config.data.crop)
  images = lambda: rng.uniform(size=(*shape, 1)).astype(np.float32)
  labels = rng.integers(0, 4, shape)
  labels[labels == 3] = 1
  return {"source": {"image": images(), "label": labels}, "target": {"image": images()}}


def make_state(config):
  """A state after the ramp, with random biases and scales in place of zeros and ones."""
  state = jax.jit(lambda: vamcei.init_state(config, jax.random.key(1)))()
  params = jax.tree_util.tree_map_with_path(perturbed, state.params)
  return state.replace(step=jnp.int32(1), params=params, ema_params={"segmenter": params["segmenter"]})


def perturbed(path, parameter):
  """Random parameters; up-convolutions have one bias a channel, as in PyTorch."""
  name = jax.tree_util.keystr(path, simple=True, separator="/")
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  if parameter.ndim > 1:
    return (rng.normal(size=parameter.shape) * np.sqrt(2.0 / np.prod(parameter.shape[:-1]))).astype(np.float32)
  channels = parameter.size // 4 if "Upsample" in name and "Dense" in name else parameter.size
  values = np.tile(0.1 * rng.normal(size=channels), parameter.size // channels).astype(np.float32)
  return values + (1.0 if name.endswith("scale") else 0.0)
