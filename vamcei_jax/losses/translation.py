"""CycleGAN (Zhu et al., ICCV 2017): least-squares adversarial losses and absolute differences of images."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32


def patch_discriminator_loss(
  answers_real: Float[Array, "..."], answers_fake: Float[Array, "..."]
) -> Float32[Array, ""]:
  """Loss of a PatchGAN discriminator, whose answer should be 1 for real images and 0 for translated ones.

      ½ ( E[(D(x) − 1)²] + E[D(G(y))²] )

  Args:
    answers_real, answers_fake: output of the discriminator on real and on translated images; any shape each.

  Returns:
    float32 scalar; ¼ for a discriminator that answers ½ everywhere.
  """
  real, fake = answers_real.astype(jnp.float32), answers_fake.astype(jnp.float32)
  return 0.5 * (((real - 1.0) ** 2).mean() + (fake**2).mean())


def translator_loss(answers_fake: Float[Array, "..."]) -> Float32[Array, ""]:
  """Loss of a translator, whose images should get the answer 1 of real images: E[(D(G(y)) − 1)²]."""
  return ((answers_fake.astype(jnp.float32) - 1.0) ** 2).mean()


def absolute_difference(image_a: Float[Array, "*shape"], image_b: Float[Array, "*shape"]) -> Float32[Array, ""]:
  """Mean absolute difference of two batches of images: the cycle loss and the identity loss."""
  return jnp.abs(image_a.astype(jnp.float32) - image_b.astype(jnp.float32)).mean()
