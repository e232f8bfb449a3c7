"""Random augmentation: pure functions of (image, key), one image at a time, vmapped and run inside the jitted step.

Images are (H, W) in [0, 1] and stay in that range. A strength of 0 switches a transform off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from jax import Array

from vamcei_jax.data.augment.cardiac import contract, scar
from vamcei_jax.data.augment.geometry import random_coordinates, sample_grid, sample_maps
from vamcei_jax.data.augment.intensity import change_intensities

if TYPE_CHECKING:
  from vamcei_jax.config.schema import AugmentConfig

__all__ = ["augment", "change_intensities", "contract", "random_coordinates", "sample_grid", "sample_maps", "scar"]


def augment(example: dict[str, Array], key: Array, size: tuple[int, int], strengths: AugmentConfig) -> dict[str, Array]:
  """Augments an example. All of its maps go through the same geometric transform.

  Args:
    example: "image" (H, W) in [0, 1] and optionally "label" (H, W) class indices and "teacher" (H, W, K) class
      probabilities. Pixels outside of them are 0, or background.
    key: PRNG key.
    size: (h, w) of the result, a random crop where it is smaller than the image.
    strengths: section `augment` of the configuration. Of each transform, the largest amount: rotation (radians), scale
      (relative), shift (pixels beyond those of the crop), gamma (log), contrast, bias (log), blur (pixels), noise
      (standard deviation), gin (share of the random network's output) and contraction (share of the LV cavity's area,
      of labelled images). Further: flip (axes that are mirrored with probability 1/2), upright (share of images that
      are rotated by a tenth of `rotation` at most, and not mirrored), ipa (probability that two random networks are
      blended) and scar (probability that a labelled image gets scars).

  Returns:
    The augmented maps, under the names of `example`.
  """
  # The key of a transform does not depend on which other transforms are on.
  geometry_key, *intensity_keys, scar_key = jax.random.split(key, 8)
  contraction_key, ipa_key = jax.random.fold_in(key, 8), jax.random.fold_in(key, 9)
  coordinates = random_coordinates(geometry_key, example["image"].shape, size, strengths)
  if "label" in example and strengths.contraction:
    coordinates = contract(coordinates, example["label"], contraction_key, strengths.contraction)
  maps = sample_maps(example, coordinates)
  if "label" in maps and strengths.scar:
    maps["image"] = scar(maps["image"], maps["label"], scar_key, strengths.scar)
  return maps | {"image": change_intensities(maps["image"], intensity_keys, ipa_key, strengths)}
