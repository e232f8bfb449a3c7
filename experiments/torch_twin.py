"""A PyTorch twin of VAMCEI's training step, which the JAX step is measured against.

Networks, losses and optimizers are those of `vamcei_jax.methods.vamcei`, with the lean or the published layers, written
in the usual way of PyTorch: NCHW, vectorized losses, fused Adam, nothing that waits for the device. A step has two
passes:

  1. generator pass: segmenter, decoders and discriminator forward, six losses, backward, segmenter and decoders step;
  2. discriminator pass: the updated segmenter once more over both domains, without gradient, eq. 11, backward, step.

Convolutions have the configured dtype, by autocast. Heads and losses are float32, as in JAX; so are latents, which JAX
stores in the configured dtype.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vamcei_jax.config.schema import ModelConfig, StageConfig

POOL = 4  # windows of POOL×POOL latents are averaged before the global alignment
EPSILON = 1e-6  # of the norms, Flax's default
NORMS = {
  "instance": lambda width, affine: nn.InstanceNorm2d(width, EPSILON, affine=affine),
  "group": lambda width, affine: nn.GroupNorm(8, width, EPSILON, affine=affine),
}


class Latent(NamedTuple):
  """q(z | x) at one scale and its sample, each (B, C, h, w)."""

  mu: Tensor
  logvar: Tensor
  z: Tensor


class Segmentation(NamedTuple):
  """Output of the segmenter; `latents[s]` and `scale_logits[s]` have 1/2**s of the full resolution."""

  logits: Tensor  # (B, K, H, W), fused over scales: the prediction
  scale_logits: list[Tensor]
  latents: list[Latent]


class ConvBlock(nn.Module):
  """Several times (3×3 convolution, norm, ReLU)."""

  def __init__(self, channels: int, widths: Sequence[int], norm: str, affine: bool = True, bias: bool = False):
    super().__init__()
    pairs = zip((channels, *widths), widths, strict=False)
    self.convs = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1, bias=bias) for c, width in pairs)
    self.norms = nn.ModuleList(NORMS[norm](width, affine) for width in widths)
    for conv in self.convs:
      nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

  def forward(self, x: Tensor, drop: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Features of x; `drop` is applied after the first ReLU."""
    for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
      x = F.relu(norm(conv(x)), inplace=True)
      x = drop(x) if number == 0 else x
    return x


class _Levels(nn.Module):
  """The parts of both U-Nets: an encoder block of each level, and an up-convolution and a decoder block of each level
  but the coarsest, finest first."""

  def __init__(self, widths: Sequence[int], norm: str, affine: bool = True, bias: bool = False):
    super().__init__()
    block = lambda channels, width: ConvBlock(channels, (width, width), norm, affine, bias)
    self.encoder = nn.ModuleList(block(c, width) for c, width in zip((1, *widths), widths, strict=False))
    self.up = nn.ModuleList(nn.ConvTranspose2d(c, w, 2, 2) for w, c in zip(widths, widths[1:], strict=False))
    self.decoder = nn.ModuleList(block(2 * width, width) for width in widths[:-1])

  def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The coarsest features, and those of every finer level, finest first."""
    x, skips = images, []
    for block in self.encoder[:-1]:
      x = block(x)
      skips.append(x)
      x = F.max_pool2d(x, 2)
    return self.encoder[-1](x), skips

  def decode(self, x: Tensor, skip: Tensor, level: int, **options: Callable) -> Tensor:
    """Features at the level of `skip`, from those one level below."""
    return self.decoder[level](torch.cat([skip, self.up[level](x)], 1), **options)


class VariationalUNet(_Levels):
  """U-Net with Gaussian latents after its last decoder blocks, a head for each latent, and a head that fuses them."""

  def __init__(self, classes: int, model: ModelConfig):
    super().__init__(model.widths, model.norm, model.affine, model.bias)
    widths = model.widths[:-1][: model.latent_scales]
    self.model = model
    norms = lambda: nn.ModuleList(NORMS[model.norm](w, model.affine) for w in widths)
    self.mu_norm, self.logvar_norm = norms(), norms()
    if model.latent == "pointwise":
      self.mu, self.logvar = (nn.ModuleList(nn.Conv2d(w, w, 1, bias=False) for w in widths) for _ in range(2))
    else:
      self.mu = nn.ModuleList(nn.Conv2d(w, 1, 1) for w in widths)
      self.logvar = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in widths)
    if model.heads == "pointwise":
      self.heads = nn.ModuleList(nn.Conv2d(w, classes, 1) for w in widths)
      self.fused = nn.Conv2d(len(widths) * classes, classes, 1)
      # The fusion starts as the mean over scales.
      mean = torch.eye(classes).repeat(1, len(widths)) / len(widths)
      self.fused.weight.data.copy_(mean[:, :, None, None])
      nn.init.zeros_(self.fused.bias)
    else:
      one = lambda channels: ConvBlock(channels, (channels,), model.norm, model.affine, model.bias)
      self.heads = nn.ModuleList(nn.Conv2d(w, classes, 3, padding=1) for w in widths)
      self.fused = nn.Conv2d(len(widths) * classes, classes, 3, padding=1)
      self.head_block, self.fusion_block = one(widths[0]), one(len(widths) * classes)

  def forward(
    self, images: Tensor, noise: Sequence[Tensor] | None = None, dropped: Sequence[Tensor] | None = None
  ) -> Segmentation:
    """Segments images (B, 1, H, W).

    Args:
      images: in [0, 1].
      noise: ε of z = μ + σ·ε, (B, C, h, w) of each scale, finest first. Without it, it is drawn in training mode, and
        z = μ in evaluation mode.
      dropped: a factor (B, C) for each channel of the decoder block of each level, finest first. Without it, channels
        are dropped in training mode.
    """
    x, skips = self.encode(images)
    latents, scale_logits = [], []
    for scale in reversed(range(len(skips))):
      x = self.decode(x, skips[scale], scale, drop=partial(self._drop, scale=scale, dropped=dropped))
      if scale < len(self.heads):
        latent = self._latent(x, scale, None if noise is None else noise[scale])
        x = latent.z
        latents.insert(0, latent)
        features = self.head_block(x) if scale == 0 and self.model.heads == "convolution" else x
        scale_logits.insert(0, _float32(self.heads[scale], features))
    return Segmentation(self._fuse(scale_logits, images.shape[-2:]), scale_logits, latents)

  def _drop(self, x: Tensor, scale: int, dropped: Sequence[Tensor] | None) -> Tensor:
    """Dropout2d, in all blocks but the second coarsest, as published."""
    if scale == len(self.decoder) - 2 or not self.model.dropout:
      return x
    if dropped is None:
      return F.dropout2d(x, self.model.dropout, self.training)
    return x * dropped[scale][:, :, None, None].to(x.dtype)

  def _fuse(self, scale_logits: Sequence[Tensor], size: torch.Size) -> Tensor:
    convolves = self.model.heads == "convolution"
    maps = [F.softmax(logits, 1) if convolves else logits for logits in scale_logits]
    coarse = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in maps[1:]]
    x = torch.cat([maps[0], *coarse], 1)
    return _float32(self.fused, self.fusion_block(x) if convolves else x)

  def _latent(self, x: Tensor, scale: int, noise: Tensor | None) -> Latent:
    features = self.mu[scale](x) if self.model.latent == "pointwise" else x * self.mu[scale](x)
    mu = torch.tanh(self.mu_norm[scale](features.float()))
    low, high = self.model.logvar_range
    bounded = torch.tanh(self.logvar_norm[scale](self.logvar[scale](x).float()))
    logvar = 0.5 * (low + high) + 0.5 * (high - low) * bounded
    if noise is None and self.training:
      noise = torch.randn_like(mu)
    return Latent(mu, logvar, mu if noise is None else torch.addcmul(mu, torch.exp(0.5 * logvar), noise))


class UNet(_Levels):
  """Plain U-Net: (B, 1, H, W) in [0, 1] -> float32 logits (B, classes, H, W)."""

  def __init__(self, classes: int, widths: Sequence[int], norm: str = "instance"):
    super().__init__(widths, norm)
    self.head = nn.Conv2d(widths[0], classes, 1)

  def forward(self, images: Tensor) -> Tensor:
    x, skips = self.encode(images)
    for level in reversed(range(len(skips))):
      x = self.decode(x, skips[level], level)
    return _float32(self.head, x)


class Decoder(nn.Module):
  """Image logits (B, 1, h, w) of one domain at one scale, from z (B, C, h, w) and the class map (B, K, h, w)."""

  def __init__(self, classes: int, scale: int, model: ModelConfig):
    super().__init__()
    width = model.widths[scale]
    widths = model.decoder_widths or (width, width)
    self.block = ConvBlock(width + classes, widths, model.norm, bias=model.bias)
    self.head = nn.Conv2d(widths[-1], 1, 1) if model.heads == "pointwise" else nn.Conv2d(widths[-1], 1, 3, padding=1)

  def forward(self, z: Tensor, class_map: Tensor) -> Tensor:
    return _float32(self.head, self.block(torch.cat([z, class_map], 1)))


class Discriminator(nn.Module):
  """Five strided 4×4 convolutions on class maps (B, K, H, W) -> logits (B, 1, ⌈H/32⌉, ⌈W/32⌉), positive for source."""

  def __init__(self, classes: int, width: int = 64):
    super().__init__()
    channels = (classes, width, 2 * width, 4 * width, 8 * width, 1)
    self.convs = nn.ModuleList(
      nn.Conv2d(c, out, 4, 2, padding=1) for c, out in zip(channels, channels[1:], strict=False)
    )

  def forward(self, class_map: Tensor) -> Tensor:
    x = class_map
    for conv in self.convs[:-1]:
      x = F.leaky_relu(conv(_even(x)), 0.2, inplace=True)
    return _float32(self.convs[-1], _even(x))


class Twin:
  """The published step, and the modules and optimizers that it updates; made by `make_twin`."""

  def __init__(self, config: StageConfig, device: torch.device | str, *, compile: bool, channels_last: bool):
    model, classes = config.model, len(config.data.label_values)
    self.config, self.device = config, torch.device(device)
    self.layout = torch.channels_last if channels_last else torch.contiguous_format
    place = lambda module: module.to(self.device, memory_format=self.layout)
    self.segmenter = place(VariationalUNet(classes, model))
    self.decoders = place(
      nn.ModuleDict(
        {
          f"{domain}_{scale}": Decoder(classes, scale, model)
          for domain in ("source", "target")
          for scale in range(len(self.segmenter.heads))
        }
      )
    )
    self.discriminator = place(Discriminator(classes, model.discriminator_width))
    self.ema = [p.detach().clone() for p in self.segmenter.parameters()]
    self.alignment_weights = torch.tensor(config.loss.weights["global_alignment"], device=self.device)
    self.steps = 0

    def adam(*networks: str) -> torch.optim.Optimizer:
      settings, groups = config.optimizer, []
      for name in networks:
        decay = 0.0 if name in settings.constant else settings.weight_decay
        betas = (settings.b1, settings.b2.get(name, 0.999))
        rates = {"lr": settings.rates[name], "weight_decay": decay, "betas": betas}
        groups.append({"params": getattr(self, name).parameters(), **rates})
      return torch.optim.Adam(groups, fused=True)

    passes = {"generator": ("segmenter", "decoders"), "discriminator": ("discriminator",)}
    self.optimizers = {name: adam(*networks) for name, networks in passes.items()}
    self.schedulers = [
      torch.optim.lr_scheduler.LambdaLR(self.optimizers[name], [_schedule(config, network) for network in networks])
      for name, networks in passes.items()
    ]
    wrap = torch.compile if compile else lambda function: function
    self._generator_terms, self._class_maps = wrap(self.generator_terms), wrap(self.class_maps)
    self._judge_loss = wrap(self.judge_loss)

  def __call__(
    self,
    images_s: Tensor,
    labels_s: Tensor,
    images_t: Tensor,
    noise: Sequence[Tensor] | None = None,
    dropped: Sequence[Tensor] | None = None,
  ) -> dict[str, Tensor]:
    """One step; returns its losses, scalars on the device.

    Args:
      images_s, images_t: (B, 1, H, W) in [0, 1], on the device.
      labels_s: (B, H, W) int64 classes.
      noise, dropped: of the segmenter in both passes, of source images and then of target images; drawn if None.
    """
    generator, discriminator = self.optimizers["generator"], self.optimizers["discriminator"]
    images = torch.cat([images_s, images_t]).contiguous(memory_format=self.layout)

    self.discriminator.requires_grad_(False)
    generator.zero_grad(set_to_none=True)
    terms = self._generator_terms(images, labels_s, noise, dropped)
    losses = self.weigh(terms)
    losses["loss"].backward()
    self._update(generator, self.segmenter, self.decoders)

    self.discriminator.requires_grad_(True)
    discriminator.zero_grad(set_to_none=True)
    with torch.no_grad():
      class_maps = self._class_maps(images, noise, dropped)
    judged = self._judge_loss(class_maps)
    judged.backward()
    self._update(discriminator, self.discriminator)

    for scheduler in self.schedulers:
      scheduler.step()
    # Short memory at the start, so that the average does not remember the initialisation.
    decay = min(self.config.train.ema_decay, (1 + self.steps) / (10 + self.steps))
    with torch.no_grad():
      torch._foreach_lerp_(self.ema, list(self.segmenter.parameters()), 1.0 - decay)
    self.steps += 1
    return {name: loss.detach() for name, loss in losses.items()} | {"discriminator": judged.detach()}

  def generator_terms(
    self, images: Tensor, labels_s: Tensor, noise: Sequence[Tensor] | None, dropped: Sequence[Tensor] | None
  ) -> dict[str, Tensor]:
    """The loss terms of the generator pass before they are weighed: scalars, but (scales,) of the global alignment."""
    classes, sources = len(self.config.data.label_values), len(labels_s)
    labels = F.one_hot(labels_s, classes).movedim(-1, 1).float().contiguous(memory_format=self.layout)
    with self._autocast():
      output = self.segmenter(images, noise, dropped)
    source, target = _split(output, sources)
    probs_t = F.softmax(target.logits, 1)
    domains = {"source": (source, images[:sources], labels), "target": (target, images[sources:], probs_t)}
    with self._autocast():
      reconstructed = {
        f"{domain}_{scale}": self.decoders[f"{domain}_{scale}"](latent.z, _average_pool(class_map, 2**scale))
        for domain, (segmented, _, class_map) in domains.items()
        for scale, latent in enumerate(segmented.latents)
      }
      judged = self.discriminator(probs_t)

    cross_entropy, dice = deep_segmentation(source, labels, self.config.loss.balanced)
    return {
      "cross_entropy": cross_entropy,
      "dice_loss": dice,
      "reconstruction": sum(
        F.binary_cross_entropy_with_logits(reconstructed[f"{domain}_{scale}"], _average_pool(image, 2**scale))
        for domain, (segmented, image, _) in domains.items()
        for scale in range(len(segmented.latents))
      ),
      "prior_kl": sum(prior_kl(latent.mu, latent.logvar) for latent in source.latents + target.latents),
      "global_alignment": torch.stack(
        [
          global_alignment(*_pool_latent(s), *_pool_latent(t), self.config.loss.global_kl.estimator)
          for s, t in zip(source.latents, target.latents, strict=True)
        ]
      ),
      "prototypes": prototype_loss(
        source.latents[0].mu,
        labels,
        target.latents[0].mu,
        probs_t.detach(),
        temperature=self.config.loss.prototypes.temperature,
        confidence=self.config.loss.prototypes.confidence,
      ),
      "generator": F.softplus(-judged).mean(),
    }

  def weigh(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loss terms as the JAX step logs them, with their weighted total under "loss"."""
    weights = self.config.loss.weights
    start, length = self.config.loss.ramp
    ramp = min(max((self.steps - start) / max(length, 1), 0.0), 1.0)
    supervised = terms["cross_entropy"] + terms["dice_loss"]
    unsupervised = (self.alignment_weights * terms["global_alignment"]).sum() + sum(
      weights[name] * terms[name] for name in ("reconstruction", "prior_kl", "prototypes", "generator")
    )
    total = weights["segmentation"] * supervised + ramp * unsupervised
    return terms | {"loss": total, "segmentation": supervised, "global_alignment": terms["global_alignment"].sum()}

  def class_maps(self, images: Tensor, noise: Sequence[Tensor] | None, dropped: Sequence[Tensor] | None) -> Tensor:
    """The segmenter's softmax maps, the discriminator's input."""
    with self._autocast():
      logits = self.segmenter(images, noise, dropped).logits
    return F.softmax(logits, 1)

  def judge_loss(self, class_maps: Tensor) -> Tensor:
    """Eq. 11 on softmax maps, the first half of them of source images."""
    with self._autocast():
      judged_s, judged_t = self.discriminator(class_maps).chunk(2)
    return F.softplus(-judged_s).mean() + F.softplus(judged_t).mean()

  def _update(self, optimizer: torch.optim.Optimizer, *networks: nn.Module) -> None:
    for network in networks:
      nn.utils.clip_grad_norm_(network.parameters(), self.config.optimizer.clip)
    optimizer.step()

  def _autocast(self) -> torch.autocast:
    return _autocast(self.config, self.device)


def make_twin(
  config: StageConfig, device: torch.device | str, compile: bool = False, channels_last: bool = False
) -> Twin:
  """Makes a twin, step(images_s, labels_s, images_t) -> losses by name.

  Args:
    config: of a stage whose method is VAMCEI.
    device: of modules and batches.
    compile: whether the forward passes with their losses go through torch.compile.
    channels_last: whether images and kernels have this memory format.
  """
  return Twin(config, device, compile=compile, channels_last=channels_last)


def make_bare_unet(
  config: StageConfig, device: torch.device | str, compile: bool = False, channels_last: bool = False
) -> Callable[[Tensor], Tensor]:
  """Returns run(images (B, 1, H, W)) -> mean square of a plain U-Net's logits; run makes the backward pass as well.

  The arguments are those of make_twin.
  """
  device = torch.device(device)
  layout = torch.channels_last if channels_last else torch.contiguous_format
  unet = UNet(len(config.data.label_values), config.model.widths, config.model.norm).to(device, memory_format=layout)

  def forward(images: Tensor) -> Tensor:
    with _autocast(config, device):
      logits = unet(images)
    return logits.square().mean()

  loss_of = torch.compile(forward) if compile else forward

  def run(images: Tensor) -> Tensor:
    unet.zero_grad(set_to_none=True)
    loss = loss_of(images.contiguous(memory_format=layout))
    loss.backward()
    return loss.detach()

  return run


def deep_segmentation(output: Segmentation, labels: Tensor, balanced: bool) -> tuple[Tensor, Tensor]:
  """Cross-entropy and soft Dice loss, each the sum over the fused output and every scale (eq. 4).

  Labels are one-hot (B, K, H, W); the targets of a coarse scale are the class shares of its windows.
  """
  terms = [segmentation(output.logits, labels, balanced)]
  for scale, logits in enumerate(output.scale_logits):
    terms.append(segmentation(logits, _average_pool(labels, 2**scale), balanced))
  return tuple(sum(term) for term in zip(*terms, strict=True))


def segmentation(logits: Tensor, targets: Tensor, balanced: bool) -> tuple[Tensor, Tensor]:
  """Cross-entropy and soft Dice loss of a batch, from logits and class shares (B, K, H, W).

  A balanced cross-entropy is the mean over the classes, otherwise it is the mean over the pixels.
  """
  log_p = F.log_softmax(logits, 1)
  p = log_p.exp()
  sizes = (p + targets).sum((0, 2, 3))
  overlaps = torch.minimum(p, targets).sum((0, 2, 3))
  dice = (sizes - 2.0 * overlaps) / (sizes + 1.0)
  nll, pixels = -(targets * log_p).sum((0, 2, 3)), targets.sum((0, 2, 3))
  if not balanced:
    return nll.sum() / pixels.sum(), dice[1:].mean()
  cross_entropy = (nll / pixels.clamp(min=1e-6)).sum() / (pixels > 0.0).sum()
  return cross_entropy, dice[1:].mean()


def prior_kl(mu: Tensor, logvar: Tensor) -> Tensor:
  """KL( N(μ, σ²) ‖ N(0, I) ), the mean over images and latent dimensions (eq. 2)."""
  return 0.5 * (torch.expm1(logvar) - logvar + mu.square()).mean()


def global_alignment(mu_s: Tensor, logvar_s: Tensor, mu_t: Tensor, logvar_t: Tensor, estimator: str) -> Tensor:
  """Eqs. 5-8 by all pairs of images: (M, n) each -> scalar, the sum of the positive values of latent dimensions."""
  source, target = (mu_s, logvar_s), (mu_t, logvar_t)
  divergence = mean_kl(*source, *target) + mean_kl(*target, *source)
  if estimator == "paper":
    divergence = divergence - mean_kl(*source, *source) - mean_kl(*target, *target)
  return divergence.clamp(min=0.0).sum()


def mean_kl(mu_a: Tensor, logvar_a: Tensor, mu_b: Tensor, logvar_b: Tensor) -> Tensor:
  """Mean of KL( N(μ_ai, σ_ai²) ‖ N(μ_bj, σ_bj²) ) over all pairs, by dimension: (M_a, n), (M_b, n) -> (n,)."""
  log_ratio = logvar_a[:, None] - logvar_b
  squares = (mu_a[:, None] - mu_b).square() * torch.exp(-logvar_b)
  return 0.5 * (torch.expm1(log_ratio) - log_ratio + squares).mean((0, 1))


def prototype_loss(
  features_s: Tensor, labels: Tensor, features_t: Tensor, probs_t: Tensor, *, temperature: float, confidence: float
) -> Tensor:
  """Eqs. 9-10: full-resolution features (B, C, H, W), one-hot labels and target probabilities (B, K, H, W)."""
  best, pseudo = probs_t.max(1, keepdim=True)
  pseudo_labels = torch.zeros_like(probs_t).scatter_(1, pseudo, (best >= confidence).float())
  proto_s, present_s = class_prototypes(features_s, labels)
  proto_t, present_t = class_prototypes(features_t, pseudo_labels)

  unit_s, unit_t = F.normalize(proto_s, dim=1, eps=1e-6), F.normalize(proto_t, dim=1, eps=1e-6)
  st, tt = unit_s @ unit_t.T / temperature, unit_t @ unit_t.T / temperature
  same = torch.eye(len(st), dtype=torch.bool, device=st.device)
  others = ~same & present_t
  terms = torch.cat([st.masked_fill(~(same | others), -math.inf), tt.masked_fill(~others, -math.inf)], 1)
  shared = (present_s & present_t).float()
  return ((terms.logsumexp(1) - st.diagonal()) * shared).sum() / shared.sum().clamp(min=1.0)


def class_prototypes(features: Tensor, class_map: Tensor) -> tuple[Tensor, Tensor]:
  """Mean features (K, C) of each class over a batch, 0 for an absent class, and whether it is present (K,) (eq. 9)."""
  total, weight = torch.einsum("bkhw,bchw->kc", class_map, features), class_map.sum((0, 2, 3))
  return total / weight.clamp(min=1.0)[:, None], weight > 0.0


def load_jax_params(module: nn.Module, params: dict) -> None:
  """Copies Flax parameters into a twin.

  Args:
    module: twin of a network, or a ModuleDict of twins.
    params: of the network, or name -> parameters.

  Raises:
    ValueError: the biases of an up-convolution differ between its four pixels. `Upsample` can learn such biases,
      `nn.ConvTranspose2d` has one for each channel.
  """
  parts = list(_parts(module, params))
  for part, part_params in parts:
    load_jax_params(part, part_params)
  if parts:
    return
  arrays = {name: np.asarray(value) for name, value in params.items()}
  if isinstance(module, nn.ConvTranspose2d):
    _, width, height, length = module.weight.shape
    kernel = arrays["kernel"].reshape(-1, height, length, width).transpose(0, 3, 1, 2)
    biases = arrays["bias"].reshape(-1, width)  # of each of the four pixels, or of all
    if not np.allclose(biases, biases[0]):
      raise ValueError("the bias of an up-convolution differs between its pixels; expected one a channel.")
    values = {"weight": kernel, "bias": biases[0]}
  elif isinstance(module, nn.Conv2d):
    kernel = arrays["kernel"][(None,) * (4 - arrays["kernel"].ndim)]  # a Dense is a 1×1 convolution
    values = {"weight": kernel.transpose(3, 2, 0, 1)}
    if "bias" in arrays:
      values["bias"] = arrays["bias"]
  else:
    values = {"weight": arrays["scale"], "bias": arrays["bias"]} if arrays else {}
  with torch.no_grad():
    for name, parameter in module.named_parameters():
      parameter.copy_(torch.tensor(values[name]))


def _parts(module: nn.Module, params: dict) -> Iterator[tuple[nn.Module, dict]]:
  """The parts of a module, each with its Flax parameters; none of a layer."""
  match module:
    case nn.ModuleDict():
      yield from ((part, params[name]) for name, part in module.items())
    case ConvBlock():
      yield from ((conv, params[f"Conv_{i}"]) for i, conv in enumerate(module.convs))
      # Norms without parameters have no entry.
      kind = _kind(module.norms[0])
      yield from ((norm, params.get(f"{kind}_{i}", {})) for i, norm in enumerate(module.norms))
    case Decoder():
      yield from [(module.block, params["ConvBlock_0"]), (module.head, params["Conv_0"])]
    case Discriminator():
      yield from ((conv, params[f"Conv_{i}"]) for i, conv in enumerate(module.convs))
    case _Levels():
      blocks = [*module.encoder, *reversed(module.decoder)]
      yield from ((block, params[f"ConvBlock_{i}"]) for i, block in enumerate(blocks))
      for i, up in enumerate(reversed(module.up)):
        upsample = params[f"Upsample_{i}"]
        yield up, upsample["Dense_0"] | ({"bias": upsample["bias"]} if "bias" in upsample else {})
      yield from _outputs(module, params)


def _outputs(module: UNet | VariationalUNet, params: dict) -> Iterator[tuple[nn.Module, dict]]:
  """The parts of a U-Net after its levels: latents and heads."""
  if isinstance(module, UNet):
    yield module.head, params["head"]
    return
  kind = _kind(module.mu_norm[0])
  for i, scale in enumerate(reversed(range(len(module.heads)))):
    yield from [(module.mu[scale], params[f"mu_{scale}"]), (module.logvar[scale], params[f"logvar_{scale}"])]
    yield module.mu_norm[scale], params.get(f"{kind}_{2 * i}", {})
    yield module.logvar_norm[scale], params.get(f"{kind}_{2 * i + 1}", {})
    yield module.heads[scale], params[f"head_{scale}"]
  yield module.fused, params["head_fused"]
  if module.model.heads == "convolution":
    yield from ((block, params[name]) for name, block in module.named_children() if name.endswith("_block"))


def _kind(norm: nn.Module) -> str:
  """The name of a norm's Flax module."""
  return type(norm).__name__.removesuffix("2d")


def _autocast(config: StageConfig, device: torch.device) -> torch.autocast:
  return torch.autocast(device.type, torch.bfloat16, enabled=config.model.dtype == "bfloat16")


def _float32(module: nn.Module, x: Tensor) -> Tensor:
  """The output of a layer in float32, whatever autocast's type."""
  with torch.autocast(x.device.type, enabled=False):
    return module(x.float())


def _even(x: Tensor) -> Tensor:
  """Pads odd sizes by zeros right and below. With a padding of 1, that is Flax's "SAME" for 4×4 and stride 2."""
  bottom, right = x.shape[-2] % 2, x.shape[-1] % 2
  return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


def _average_pool(x: Tensor, factor: int) -> Tensor:
  return x if factor == 1 else F.avg_pool2d(x, factor)


def _pool_latent(latent: Latent) -> tuple[Tensor, Tensor]:
  """Mean and log variance (B, n) of q(z | x) averaged over POOL×POOL windows."""
  variance = F.avg_pool2d(latent.logvar.exp(), POOL) / POOL**2
  return F.avg_pool2d(latent.mu, POOL).flatten(1), variance.log().flatten(1)


def _split(output: Segmentation, sources: int) -> tuple[Segmentation, Segmentation]:
  """The output of the source images, which come first, and of the target images."""
  # The gradient of `split` is one concatenation. The gradient of two slices is two arrays of zeros, and their sum.
  halves = lambda x: x.split([sources, len(x) - sources])
  logits, scale_logits = halves(output.logits), [halves(l) for l in output.scale_logits]
  latents = [[halves(x) for x in latent] for latent in output.latents]
  return tuple(
    Segmentation(logits[i], [l[i] for l in scale_logits], [Latent(*(x[i] for x in latent)) for latent in latents])
    for i in range(2)
  )


def _schedule(config: StageConfig, network: str) -> Callable[[int], float]:
  """Learning rate of a network relative to its peak, by step."""
  if network in config.optimizer.constant:
    return lambda step: 1.0
  steps, epoch_steps = config.train.steps, config.optimizer.epoch_steps
  return {
    "polynomial": lambda step: (1.0 - min(step, steps) / steps) ** 0.9,
    "exponential": lambda step: 0.9 ** (step // epoch_steps),
  }[config.optimizer.schedule]
