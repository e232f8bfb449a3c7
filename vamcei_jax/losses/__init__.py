"""The losses of VAMCEI and of image translation: pure functions of arrays, which know neither models nor configs.

All of them compute and answer in float32 whatever the dtype of their inputs.

Losses that mix the images of a batch before something nonlinear take `axis_name`: the name of the axis of `jax.pmap`
or `jax.vmap` over which the batch is split in equal shares. They then return, on every device, the value for the global
batch. A caller differentiates on each device with respect to its replica of the parameters and takes `jax.lax.pmean` of
the gradients. That is the gradient of the global loss: the transpose of an all-reduced sum is an all-reduced sum, so a
replica's gradient counts the loss of all N devices, and the mean divides by N. It is right for the other losses as
well, averaged over the local images. (`jax.shard_map`, unless called with `check_vma=False`, sums the gradients of
replicated parameters by itself. There, these losses come out right with or without `pmean`; the others must be averaged
over the axis before they are differentiated.)
"""

from vamcei_jax.losses.adversarial import discriminator_loss, generator_loss
from vamcei_jax.losses.alignment import global_alignment, pairwise_gaussian_kl
from vamcei_jax.losses.distillation import distillation
from vamcei_jax.losses.prior import gaussian_prior_kl
from vamcei_jax.losses.prototypes import class_prototypes, prototype_contrast
from vamcei_jax.losses.reconstruction import reconstruction
from vamcei_jax.losses.segmentation import segmentation
from vamcei_jax.losses.translation import absolute_difference, patch_discriminator_loss, translator_loss

__all__ = [
  "absolute_difference",
  "class_prototypes",
  "discriminator_loss",
  "distillation",
  "gaussian_prior_kl",
  "generator_loss",
  "global_alignment",
  "pairwise_gaussian_kl",
  "patch_discriminator_loss",
  "prototype_contrast",
  "reconstruction",
  "segmentation",
  "translator_loss",
]
