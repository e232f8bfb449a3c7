"""The equations of the losses, written out with plain sums; tests recompute from them what a step reports."""

import jax
import jax.numpy as jnp


def mean_over_windows(x, size):
  """(B, H, W, C) -> (B, H/size, W/size, C)."""
  return sum(x[:, row::size, column::size] for row in range(size) for column in range(size)) / size**2


def cross_entropy(logits, shares):
  """First summand of eq. 4; the class shares of a pixel sum to 1."""
  return -(shares * jnp.log(jax.nn.softmax(logits))).sum(-1).mean()


def dice_loss(logits, shares):
  """Second summand of eq. 4, without background and smoothed by one pixel."""
  probs = jax.nn.softmax(logits)
  dice = []
  for k in range(1, logits.shape[-1]):
    p, y = probs[..., k], shares[..., k]
    dice.append((2 * jnp.minimum(p, y).sum() + 1) / (p.sum() + y.sum() + 1))
  return 1 - sum(dice) / len(dice)


def prior_kl(mu, logvar):
  """Eq. 2, the mean over images and dimensions."""
  return 0.5 * (jnp.exp(logvar) + mu**2 - logvar - 1).mean()


def binary_cross_entropy(logits, image):
  """Eq. 3, the mean over images and pixels."""
  p = jax.nn.sigmoid(logits)
  return -(image * jnp.log(p) + (1 - image) * jnp.log(1 - p)).mean()


def pooled_gaussians(latent, size=4):
  """Means and variances (M, n) of the averages of a latent over windows."""
  rows = lambda x: x.reshape(len(x), -1)
  return rows(mean_over_windows(latent.mu, size)), rows(mean_over_windows(jnp.exp(latent.logvar), size)) / size**2


def mean_log_density(samples, of):
  """Mean over pairs of E_{z ~ samples_j} ln q(z | of_i), but for the constant."""
  (mu_j, var_j), (mu_i, var_i) = samples, of
  square = var_j[:, None] + (mu_j[:, None] - mu_i[None]) ** 2
  return -(0.5 * jnp.log(var_i)[None] + square / (2 * var_i)[None]).sum(-1).mean()


def alignment(source, target, estimator):
  """Eqs. 5-8 of Gaussians (means, variances): D(S‖T) + D(T‖S)."""
  total = 0.0
  for a, b in ((source, target), (target, source)):
    itself = mean_log_density(a, a) if estimator == "paper" else -(0.5 * jnp.log(a[1]) + 0.5).sum(-1).mean()
    total += itself - mean_log_density(a, b)
  return total


def prototypes(features, weights):
  """Eq. 9 of features (B, H, W, C) and class weights (B, H, W, K): K vectors."""
  of_class = lambda weight: (features * weight[..., None]).sum((0, 1, 2)) / weight.sum()
  return [of_class(weights[..., k]) for k in range(weights.shape[-1])]


def contrast(source, target, temperature):
  """Eq. 10 of K source and K target vectors."""
  similarity = lambda a, b: jnp.exp(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b) / temperature)
  losses = []
  for k in range(len(source)):
    pull = similarity(source[k], target[k])
    others = [target[i] for i in range(len(target)) if i != k]
    push = sum(similarity(source[k], other) + similarity(target[k], other) for other in others)
    losses.append(-jnp.log(pull / (pull + push)))
  return sum(losses) / len(losses)


def discriminator_loss(logits_s, logits_t):
  """Eq. 11."""
  return -jnp.log(jax.nn.sigmoid(logits_s)).mean() - jnp.log(1 - jax.nn.sigmoid(logits_t)).mean()


def generator_loss(logits_t):
  """Eq. 12."""
  return -jnp.log(jax.nn.sigmoid(logits_t)).mean()


def distillation(logits, teacher_probs, temperature):
  """Eq. 16, the mean over images and pixels."""
  teacher = teacher_probs ** (1 / temperature)
  teacher = teacher / teacher.sum(-1, keepdims=True)
  student = jax.nn.softmax(logits / temperature)
  return -(teacher * jnp.log(student)).sum(-1).mean() * temperature**2
