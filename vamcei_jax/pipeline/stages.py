"""The stages that a run can consist of: what each learns, from which datasets, and which stages it needs."""

import dataclasses
import zlib
from types import ModuleType

import jax
from jax import Array

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.methods import cyclegan, distillation, supervised, vamcei


@dataclasses.dataclass(frozen=True)
class Stage:
  """One training.

  method: a module of vamcei_jax/methods.
  source, target: the datasets that it learns from: the "source" and the "target" of the run, or what `translate` made
    of them, "source_as_target" and "target_as_source". A segmenter is evaluated on images like those of its target.
  needs: stages that come before it. The teachers of a student come before it, too.
  """

  method: ModuleType
  source: str = "source"
  target: str = "target"
  needs: tuple[str, ...] = ()


TEACHERS = ("target_vamcei", "source_vamcei", "no_adaptation")  # in the order of `distillation.teachers`
LOCATOR, DISTILL, ADAPT = "locate", "distill", "adapt"
STAGES = {
  # Finds the heart in whole images of coarse pixels; the other stages see a field centred on it. It adapts, because a
  # locator that is trained on the source alone takes the target's bright fat for blood.
  LOCATOR: Stage(vamcei),
  "no_adaptation": Stage(supervised),
  "vamcei": Stage(vamcei),
  # The multi-stage framework.
  "translate": Stage(cyclegan),
  "target_vamcei": Stage(vamcei, source="source_as_target", needs=("translate",)),
  "source_vamcei": Stage(vamcei, target="target_as_source", needs=("translate",)),
  DISTILL: Stage(distillation, source="source_as_target", needs=("translate",)),
  # Learns what `config.teachers`, or `config.init`, predict for the target, and eq. 4 on the source if there is one.
  ADAPT: Stage(distillation),
}
# Dataset that `translate` makes -> the dataset that it is made of, and the translator.
TRANSLATED = {"source_as_target": ("source", "to_target"), "target_as_source": ("target", "to_source")}


def stage_key(seed: int, stage: str) -> Array:
  """The PRNG key of a stage of a run."""
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stage.encode()))


def teacher_weights(config: StageConfig) -> dict[str, float]:
  """Teacher -> weight, of a student. Where two weights are given, the last of TEACHERS is not a teacher."""
  return dict(zip(TEACHERS, config.distillation.teachers, strict=False))


def needed_stages(stage: str, config: StageConfig | None) -> tuple[str, ...]:
  """The stages that must come before a stage; without a configuration, all that may have to."""
  if stage != DISTILL:
    return STAGES[stage].needs
  return (*STAGES[stage].needs, *(TEACHERS if config is None else teacher_weights(config)))
