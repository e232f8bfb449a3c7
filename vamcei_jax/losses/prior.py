"""VAMCEI eq. 2: the prior term of the variational bound."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32


def gaussian_prior_kl(mu: Float[Array, " B *dims"], logvar: Float[Array, " B *dims"]) -> Float32[Array, " B"]:
  """KL( N(μ, σ²) ‖ N(0, I) ) of each image, in nats (VAMCEI eq. 2).

      ½ Σ_k (σ_k² + μ_k² − log σ_k² − 1)

  Args:
    mu, logvar: (B, ...) mean and log variance of the latents, any trailing shape.

  Returns:
    (B,) float32, summed over all latent dimensions.
  """
  mu, logvar = mu.astype(jnp.float32), logvar.astype(jnp.float32)
  per_dim = 0.5 * (jnp.expm1(logvar) - logvar + mu**2)
  return per_dim.reshape(len(mu), -1).sum(-1)
