"""The losses of VAMCEI and of image translation: pure functions of arrays, independent of models and configs.

    eq.   term                                function                  file
    2     prior KL                            gaussian_prior_kl         prior.py
    3     reconstruction                      reconstruction            reconstruction.py
    4     cross-entropy and soft Dice         segmentation              segmentation.py
    5–8   global alignment                    global_alignment          alignment.py
    5–8   both estimators by dimension        alignment_by_dimension    alignment.py
    5–8   its matrix of all pairs of images   pairwise_gaussian_kl      alignment.py
    9     class prototypes                    class_prototypes          prototypes.py
    10    prototype contrast                  prototype_contrast        prototypes.py
    11    discriminator                       discriminator_loss        adversarial.py
    12    generator                           generator_loss            adversarial.py
    16    distillation                        distillation              distillation.py
    –     CycleGAN: discriminators            patch_discriminator_loss  translation.py
    –     CycleGAN: translators               translator_loss           translation.py
    –     CycleGAN: cycle and identity        absolute_difference       translation.py

All losses compute in float32 and return float32, whatever the dtype of their inputs.

A loss that combines the images of a batch before a nonlinear function takes `axis_name`: the name of the axis of
`jax.pmap` or `jax.vmap` over which the batch is split in equal shares. On every device, the loss then returns the value
for the global batch. The caller differentiates on each device with respect to the parameters of that device, and takes
`jax.lax.pmean` of the gradients. The result is the gradient of the global loss: the transpose of an all-reduced sum is
an all-reduced sum, so the gradient on one device counts the loss of all N devices, and the mean divides by N. The same
`pmean` is right for the losses without `axis_name`, which are averaged over the images of each device.

`jax.shard_map`, unless called with `check_vma=False`, sums the gradients of replicated parameters itself. There, the
losses with `axis_name` are right with or without `pmean`; the others must be averaged over the axis before they are
differentiated.
"""

from vamcei_jax.losses.adversarial import discriminator_loss, generator_loss
from vamcei_jax.losses.alignment import alignment_by_dimension, global_alignment, pairwise_gaussian_kl
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
  "alignment_by_dimension",
  "global_alignment",
  "pairwise_gaussian_kl",
  "patch_discriminator_loss",
  "prototype_contrast",
  "reconstruction",
  "segmentation",
  "translator_loss",
]
