"""Global alignment of the two domains' latent distributions (VAMCEI eqs. 5–8)."""

import jax
import jax.numpy as jnp
from jax import Array


def global_alignment(
  mu_s: Array, logvar_s: Array, mu_t: Array, logvar_t: Array, *, estimator: str, axis_name: str | None = None
) -> Array:
  """Symmetric divergence D(S‖T) + D(T‖S) of the aggregate posteriors of two domains, in nats (VAMCEI eqs. 5–8).

  Eq. 6 is the KL divergence between the mixtures q_S = mean_j q_S(·|x_Sj) and q_T = mean_i q_T(·|x_Ti). Two
  estimators, where KL(a‖b) is the matrix of `pairwise_gaussian_kl` between the images of domains a and b:

      "pairwise"  D(S‖T) = mean KL(S‖T)                  an upper bound of eq. 6 by convexity, never negative
      "paper"     D(S‖T) = mean KL(S‖T) − mean KL(S‖S)   eq. 8: no bound, and it can be negative

  The latter is the expression that follows from eq. 7 (where eq. 8 is printed, its two denominators are exchanged):

      1/M² Σ_k Σ_ij [   ln(σ_Tik/σ_Sik) − (σ_Sjk² + (μ_Sjk − μ_Sik)²) / (2σ_Sik²)
                                        + (σ_Sjk² + (μ_Sjk − μ_Tik)²) / (2σ_Tik²)   ]

  With one image in each domain, the two estimators agree.

  Exact, in time and memory linear in the number of images: every summand is quadratic in μ_j, so the mean over j
  needs the domain's moments only.

  Args:
    mu_s, logvar_s: (M_S, ...) mean and log variance of the source images' latents at one scale, any trailing shape.
    mu_t, logvar_t: (M_T, ...) those of the target images; M_T need not be M_S.
    estimator: "paper" or "pairwise".
    axis_name: axis over which the batch is split; the moments are then averaged over it (see the package's
      docstring): at most 24 floats a latent dimension, however many images there are.

  Returns:
    float32 scalar, summed over all latent dimensions.

  Raises:
    ValueError: for another estimator.
  """
  if estimator not in ("paper", "pairwise"):
    raise ValueError(f"estimator: {estimator!r}; expected 'paper' or 'pairwise'.")
  mu = {"s": mu_s.astype(jnp.float32), "t": mu_t.astype(jnp.float32)}
  logvar = {"s": logvar_s.astype(jnp.float32), "t": logvar_t.astype(jnp.float32)}
  pairs = ["st", "ts"] if estimator == "pairwise" else ["st", "ts", "ss", "tt"]

  def batch_mean(images):
    means = jax.tree.map(lambda x: x.mean(0), images)
    return means if axis_name is None else jax.lax.pmean(means, axis_name)

  # Subtract before squaring, and before exponentiating. What is subtracted changes the rounding of the result and
  # nothing else, so it needs no gradient, and it may be rounded itself: `offset` and `growth` make up for it.
  centre, variance = jax.lax.stop_gradient(batch_mean((mu, jax.tree.map(jnp.exp, logvar))))
  level = jax.tree.map(jnp.log, variance)
  own = {a: _own_moments(mu[a], logvar[a], centre[a], level[a]) for a in "st"}
  cross = {a + b: _cross_moments(mu[b], logvar[b], centre[a], level[a]) for a, b in pairs}
  own, cross = batch_mean((own, cross))

  # 2 mean KL(a‖b) of every dimension, but for the log σ, which the two directions cancel, as does a domain with itself.
  twice_kl = {a + b: _mean_ratio(own[a], own[b], cross[a + b]) for a, b in pairs}
  per_dim = twice_kl["st"] + twice_kl["ts"]
  if estimator == "paper":
    per_dim -= twice_kl["ss"] + twice_kl["tt"]
  return 0.5 * per_dim.sum()


def pairwise_gaussian_kl(mu_a: Array, logvar_a: Array, mu_b: Array, logvar_b: Array) -> Array:
  """KL( N(μ_ai, σ_ai²) ‖ N(μ_bj, σ_bj²) ) of all pairs of diagonal Gaussians, in nats.

      ½ Σ_k [ σ_aik²/σ_bjk² − ln(σ_aik²/σ_bjk²) − 1 + (μ_aik − μ_bjk)²/σ_bjk² ]

  Means are subtracted before they are squared, pair by pair: an expanded square would cost less and cancel in
  float32. Rows are mapped one after the other and recomputed for the gradient, so memory stays at (M_b, n). For
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
    mu, logvar = a
    log_ratio = logvar - logvar_b
    return 0.5 * (jnp.expm1(log_ratio) - log_ratio + (mu - mu_b) ** 2 * jnp.exp(-logvar_b)).sum(-1)

  return jax.lax.map(row, (mu_a, logvar_a))


def _own_moments(mu, logvar, centre, level):
  """What the images of a domain say by themselves, about its own centre and level; to be averaged over them."""
  offset = mu - centre
  return {"offset": offset, "spread": offset**2, "growth": jnp.expm1(logvar - level), "precision": jnp.exp(-logvar)}


def _cross_moments(mu, logvar, centre, level):
  """What the images right of ‖ say about the centre and level of the domain left of it; to be averaged over them."""
  offset, precision = mu - centre, jnp.exp(-logvar)
  return {"lever": precision * offset, "gap": precision * offset**2, "excess": jnp.expm1(level - logvar)}


def _mean_ratio(own_a, own_b, cross):
  """mean_ij [ (σ_aj² + (μ_aj − μ_bi)²) / σ_bi² − 1 ] from the moments of domain a, of domain b, and of b about a."""
  variances = own_a["growth"] + cross["excess"] + own_a["growth"] * cross["excess"]
  return variances + own_a["spread"] * own_b["precision"] - 2.0 * own_a["offset"] * cross["lever"] + cross["gap"]
