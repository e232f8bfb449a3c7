"""VAMCEI eqs. 5–8: global alignment of the latent distributions of the two domains."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32


def global_alignment(
  mu_s: Float[Array, " M_S *dims"],
  logvar_s: Float[Array, " M_S *dims"],
  mu_t: Float[Array, " M_T *dims"],
  logvar_t: Float[Array, " M_T *dims"],
  *,
  estimator: str,
  guarded: bool = False,
  axis_name: str | None = None,
) -> Float32[Array, ""]:
  """Symmetric divergence D(S‖T) + D(T‖S) of the aggregate posteriors of two domains, in nats (VAMCEI eqs. 5–8).

  Eq. 6 is the KL divergence between the mixtures q_S = mean_j q_S(·|x_Sj) and q_T = mean_i q_T(·|x_Ti). There are two
  estimators, where KL(a‖b) is the matrix of `pairwise_gaussian_kl` between the images of domains a and b:

      "pairwise"  D(S‖T) = mean KL(S‖T)                  an upper bound of eq. 6 by convexity, never negative
      "paper"     D(S‖T) = mean KL(S‖T) − mean KL(S‖S)   eq. 8: no bound, and it can be negative

  The second estimator is the expression that follows from eq. 7 (the printed eq. 8 has its two denominators exchanged):

      1/M² Σ_k Σ_ij [   ln(σ_Tik/σ_Sik) − (σ_Sjk² + (μ_Sjk − μ_Sik)²) / (2σ_Sik²)
                                        + (σ_Sjk² + (μ_Sjk − μ_Tik)²) / (2σ_Tik²)   ]

  With one image in each domain, the two estimators agree.

  The result is exact, in time and memory linear in the number of images: every term is quadratic in μ_j, so the mean
  over j depends only on the moments of the domain.

  Args:
    mu_s, logvar_s: (M_S, ...) mean and log variance of the latents of the source images at one scale, any trailing
      shape.
    mu_t, logvar_t: (M_T, ...) the same for the target images; M_T and M_S may differ.
    estimator: "paper" or "pairwise".
    guarded: whether a dimension with a negative value counts 0, without a gradient. Otherwise, "paper" falls without
      end while latents of one domain spread and sharpen, and those of the other concentrate and broaden.
    axis_name: axis over which the batch is split. The moments are then averaged over it (see the docstring of the
      package): at most 24 floats per latent dimension, for any number of images.

  Returns:
    float32 scalar, summed over all latent dimensions.

  Raises:
    ValueError: for another estimator.
  """
  if estimator not in ("paper", "pairwise"):
    raise ValueError(f"estimator: {estimator!r}; expected 'paper' or 'pairwise'.")
  per_dim = alignment_by_dimension(mu_s, logvar_s, mu_t, logvar_t, axis_name=axis_name)[estimator]
  return (jnp.maximum(per_dim, 0.0) if guarded else per_dim).sum()


def alignment_by_dimension(
  mu_s: Float[Array, " M_S *dims"],
  logvar_s: Float[Array, " M_S *dims"],
  mu_t: Float[Array, " M_T *dims"],
  logvar_t: Float[Array, " M_T *dims"],
  *,
  axis_name: str | None = None,
) -> dict[str, Float32[Array, " *dims"]]:
  """Both estimators of `global_alignment` for each latent dimension: estimator -> nats. Arguments as there."""
  mu = {"s": mu_s.astype(jnp.float32), "t": mu_t.astype(jnp.float32)}
  logvar = {"s": logvar_s.astype(jnp.float32), "t": logvar_t.astype(jnp.float32)}
  pairs = [("s", "t"), ("t", "s"), ("s", "s"), ("t", "t")]

  def batch_mean(images):
    means = jax.tree.map(lambda x: x.mean(0, keepdims=True), images)
    return means if axis_name is None else jax.lax.pmean(means, axis_name)

  # Subtract before squaring and before exponentiating. The subtracted centre and level change only the rounding of the
  # result. So they need no gradient, and they may be rounded themselves: `offset` and `growth` correct for it.
  centre, variance = jax.lax.stop_gradient(batch_mean((mu, jax.tree.map(jnp.exp, logvar))))
  level = jax.tree.map(jnp.log, variance)
  moments = {a: _moments(mu[a], logvar[a], centre[a], level[a]) for a in "st"}
  cross = {a + b: _cross_moments(mu[b], logvar[b], centre[a], level[a]) for a, b in pairs}
  moments, cross = batch_mean((moments, cross))

  # 2 mean KL(a‖b) of every dimension without its log σ, which cancel between the two directions and within a domain.
  twice_kl = {a + b: _mean_ratio(moments[a], moments[b], cross[a + b]) for a, b in pairs}
  pairwise = 0.5 * (twice_kl["st"] + twice_kl["ts"])[0]
  return {"pairwise": pairwise, "paper": pairwise - 0.5 * (twice_kl["ss"] + twice_kl["tt"])[0]}


def pairwise_gaussian_kl(
  mu_a: Float[Array, " M_a *dims"],
  logvar_a: Float[Array, " M_a *dims"],
  mu_b: Float[Array, " M_b *dims"],
  logvar_b: Float[Array, " M_b *dims"],
) -> Float32[Array, "M_a M_b"]:
  """KL( N(μ_ai, σ_ai²) ‖ N(μ_bj, σ_bj²) ) of all pairs of diagonal Gaussians, in nats.

      ½ Σ_k [ σ_aik²/σ_bjk² − ln(σ_aik²/σ_bjk²) − 1 + (μ_aik − μ_bjk)²/σ_bjk² ]

  Means are subtracted before they are squared, pair by pair: an expanded square would cost less, but cancels in
  float32. Rows are computed one after the other and recomputed for the gradient, so memory stays at (M_b, n). For
  training, see `global_alignment`.

  Args:
    mu_a, logvar_a: (M_a, ...) means and log variances, any trailing shape.
    mu_b, logvar_b: (M_b, ...) of the same trailing shape.

  Returns:
    (M_a, M_b) float32, summed over all latent dimensions.
  """
  mu_a, logvar_a, mu_b, logvar_b = (x.astype(jnp.float32).reshape(len(x), -1) for x in (mu_a, logvar_a, mu_b, logvar_b))

  @jax.checkpoint
  def row(a):
    mu, logvar = (x[None] for x in a)
    log_ratio = logvar - logvar_b
    return 0.5 * (jnp.expm1(log_ratio) - log_ratio + (mu - mu_b) ** 2 * jnp.exp(-logvar_b)).sum(-1)

  return jax.lax.map(row, (mu_a, logvar_a))


def _moments(mu, logvar, centre, level):
  """The terms of a domain about its centre and level, per image; their means over the images are its moments."""
  offset = mu - centre
  return {"offset": offset, "spread": offset**2, "growth": jnp.expm1(logvar - level), "precision": jnp.exp(-logvar)}


def _cross_moments(mu, logvar, centre, level):
  """The terms of domain b (right of ‖) about the centre and level of domain a (left of ‖), per image of b."""
  offset, precision = mu - centre, jnp.exp(-logvar)
  return {"lever": precision * offset, "gap": precision * offset**2, "excess": jnp.expm1(level - logvar)}


def _mean_ratio(moments_a, moments_b, cross):
  """mean_ij [ (σ_aj² + (μ_aj − μ_bi)²) / σ_bi² − 1 ] from the moments of domain a, of domain b, and of b about a."""
  variances = moments_a["growth"] + cross["excess"] + moments_a["growth"] * cross["excess"]
  distances = moments_a["spread"] * moments_b["precision"] - 2.0 * moments_a["offset"] * cross["lever"] + cross["gap"]
  return variances + distances
