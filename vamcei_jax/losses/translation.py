"""Losses of image translation (CycleGAN, Zhu et al., ICCV 2017): least-squares adversaries and absolute differences."""

import jax.numpy as jnp
from jax import Array


def patch_discriminator_loss(answers_real: Array, answers_fake: Array) -> Array:
  """What a PatchGAN minimizes: 1 for real images, 0 for translated ones.

      ½ ( E[(D(x) − 1)²] + E[D(G(y))²] )

  Args:
    answers_real, answers_fake: the discriminator's output on real and on translated images; any shape each.

  Returns:
    float32 scalar; ¼ for a discriminator that answers ½ to everything.
  """
  real, fake = answers_real.astype(jnp.float32), answers_fake.astype(jnp.float32)
  return 0.5 * (((real - 1.0) ** 2).mean() + (fake**2).mean())


def translator_loss(answers_fake: Array) -> Array:
  """What a translator minimizes: its images pass for real ones, E[(D(G(y)) − 1)²], a float32 scalar."""
  return ((answers_fake.astype(jnp.float32) - 1.0) ** 2).mean()


def absolute_difference(image_a: Array, image_b: Array) -> Array:
  """Mean absolute difference of two batches of images, a float32 scalar: the cycle and the identity loss."""
  return jnp.abs(image_a.astype(jnp.float32) - image_b.astype(jnp.float32)).mean()
