"""The stages that a run can consist of: what each learns, from which datasets, and what it builds upon."""

import dataclasses
import shutil
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from vamcei_jax.config import check_config
from vamcei_jax.errors import InputError
from vamcei_jax.methods import cyclegan, distillation, supervised, vamcei


@dataclasses.dataclass(frozen=True)
class Stage:
  """One training.

  method: a module of vamcei_jax/methods.
  source, target: the datasets it learns from: the "source" and the "target" of the run, or what `translate` has made
    of them, "source_as_target" and "target_as_source". A segmenter is evaluated on images like those of its target.
  needs: stages that come before it.
  """

  method: ModuleType
  source: str = "source"
  target: str = "target"
  needs: tuple[str, ...] = ()


TEACHERS = ("target_vamcei", "source_vamcei")
STAGES = {
  "no_adaptation": Stage(supervised),
  "vamcei": Stage(vamcei),
  # The multi-stage framework.
  "translate": Stage(cyclegan),
  "target_vamcei": Stage(vamcei, source="source_as_target", needs=("translate",)),
  "source_vamcei": Stage(vamcei, target="target_as_source", needs=("translate",)),
  "distill": Stage(distillation, source="source_as_target", needs=("translate", *TEACHERS)),
}
# What `translate` makes: dataset -> the dataset that it is made of, and by which translator.
TRANSLATED = {"source_as_target": ("source", "to_target"), "target_as_source": ("target", "to_source")}


def stage_configs(config: ConfigDict) -> dict[str, ConfigDict]:
  """The configuration of each stage of a run, by stage in order.

  Raises:
    InputError: names the field that cannot be used and what it may be.
  """
  stages = tuple(config.stages)
  if not stages or len(set(stages)) < len(stages) or not set(stages) <= set(STAGES):
    raise InputError(f"config.stages={stages}: must be some of {', '.join(STAGES)}, each once")
  for number, stage in enumerate(stages):
    if missing := [need for need in STAGES[stage].needs if need not in stages[:number]]:
      raise InputError(f"config.stages={stages}: {missing[0]} must come before {stage}")
    if fixed := set(config.stage.get(stage, {}).get("data", {})) - {"crop"}:
      raise InputError(f"config.stage.{stage}.data.{min(fixed)}: stages share their data; only data.crop may differ")
  configs = {stage: stage_config(config, stage) for stage in stages}
  for stage in stages:
    check_config(configs[stage])
  return configs


def stage_config(config: ConfigDict, stage: str) -> ConfigDict:
  """The run's configuration with the section `config.stage.STAGE` laid over it: a run of this stage alone."""
  merged = ConfigDict(config.to_dict())
  sections = merged.stage
  merged.stage = ConfigDict()
  merged.update(sections.get(stage, {}))
  merged.stages = (stage,)
  return merged


def built_upon(again: Collection[str], stages: Collection[str]) -> set[str]:
  """The stages `again`, and those of `stages`, which are in order, that were built upon them.

  Raises:
    InputError: one of `again` is not among `stages`.
  """
  if unknown := [stage for stage in again if stage not in stages]:
    raise InputError(f"--stages={unknown[0]}: not a stage of this run; choose from {', '.join(stages)}")
  stale = set(again)
  for stage in stages:
    if stale & set(STAGES[stage].needs):
      stale.add(stage)
  return stale


def remove_stages(workdir: Path, stages: Collection[str]) -> None:
  """Removes the folders of stages; one that is half removed is not taken for a stage."""
  for stage in stages:
    removed = workdir / f".{stage}.removed"
    shutil.rmtree(removed, ignore_errors=True)
    if (workdir / stage).exists():
      shutil.rmtree((workdir / stage).rename(removed))
