"""The stages that a run can consist of: what each learns, from which datasets, and what it builds upon."""

import dataclasses
import shutil
import zlib
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType

import jax
from jax import Array
from ml_collections import ConfigDict

from vamcei_jax.config import check_config, check_fields, flat_fields
from vamcei_jax.errors import InputError
from vamcei_jax.methods import cyclegan, distillation, supervised, vamcei
from vamcei_jax.ranges import choice, differing, each, shown


@dataclasses.dataclass(frozen=True)
class Stage:
  """One training.

  method: a module of vamcei_jax/methods.
  source, target: the datasets it learns from: the "source" and the "target" of the run, or what `translate` has made
    of them, "source_as_target" and "target_as_source". A segmenter is evaluated on images like those of its target.
  needs: stages that come before it; for a student, its teachers do, too.
  """

  method: ModuleType
  source: str = "source"
  target: str = "target"
  needs: tuple[str, ...] = ()


TEACHERS = ("target_vamcei", "source_vamcei", "no_adaptation")  # in the order of `distillation.teachers`
LOCATOR = "locate"
STAGES = {
  # Finds the heart in whole images, of coarse pixels: the other stages see a field about it. Trained on the source
  # alone, it takes the target's bright fat for blood.
  LOCATOR: Stage(vamcei),
  "no_adaptation": Stage(supervised),
  "vamcei": Stage(vamcei),
  # The multi-stage framework.
  "translate": Stage(cyclegan),
  "target_vamcei": Stage(vamcei, source="source_as_target", needs=("translate",)),
  "source_vamcei": Stage(vamcei, target="target_as_source", needs=("translate",)),
  "distill": Stage(distillation, source="source_as_target", needs=("translate",)),
}
# What `translate` makes: dataset -> the dataset that it is made of, and by which translator.
TRANSLATED = {"source_as_target": ("source", "to_target"), "target_as_source": ("target", "to_source")}

_TAKEN = {"data.crop", "data.empty_slices"}  # what a stage takes of the prepared data, as it likes
_COARSE = ("data.size", "data.spacing", "data.zoom")  # what the locator's grid differs in

# Fields that a method needs and that configs/uda.py, which has those of the others, has not.
_SETTINGS = {
  cyclegan: (
    *(f"translation.{name}" for name in ("width", "blocks", "discriminator_width", "history")),
    *(f"loss.weights.{name}" for name in ("adversarial", "cycle", "identity")),
    *(f"optimizer.rates.{name}" for name in ("translators", "discriminators")),
  ),
  distillation: (
    *(f"distillation.{name}" for name in ("temperature", "teachers", "views", "smooth", "apex", "itself")),
    "loss.weights.distillation",
  ),
}


def stage_configs(config: ConfigDict) -> dict[str, ConfigDict]:
  """The configuration of each stage of a run, by stage in order.

  Raises:
    InputError: names the field that cannot be used and what it may be.
  """
  if not isinstance(config, ConfigDict):
    raise InputError(f"config={shown(config)}: must be a ConfigDict, as get_config() of configs/uda.py returns it")
  stages = config.get("stages")
  if not differing(each(choice(tuple(STAGES))))[0](stages):
    raise InputError(f"config.stages={shown(stages)}: must be some of {', '.join(STAGES)}, each once")
  stages = tuple(stages)
  for name in ("data", "stage"):
    if not isinstance(section := config.get(name), ConfigDict):
      raise InputError(f"config.{name}={shown(section)}: must be a section, as in configs/uda.py")
  sections = config.stage
  if unknown := set(sections) - set(STAGES):
    raise InputError(f"config.stage.{min(unknown)}: no such stage; choose from {', '.join(STAGES)}")
  if wrong := [stage for stage, section in sections.items() if not isinstance(section, ConfigDict)]:
    raise InputError(f"config.stage.{wrong[0]}={shown(sections[wrong[0]])}: must be a section of what differs for it")
  own = {field: value for field, value in flat_fields(config).items() if not field.startswith("stage.")}
  check_fields(own, "config.{}".format)
  configs = {}
  if LOCATOR in stages[1:] or stages == (LOCATOR,):
    raise InputError(f"config.stages={stages}: {LOCATOR} must come first, with others after it")
  for number, stage in enumerate(stages):
    _check_order(stages, number, STAGES[stage].needs)
    settings = _SETTINGS.get(STAGES[stage].method, ())
    section = flat_fields(sections.get(stage, {}))
    if unknown := set(section) - set(flat_fields(config)) - set(settings):
      raise InputError(f"config.stage.{stage}.{min(unknown)}: no such field")
    if run := {"stages", "seed"} & set(section):
      raise InputError(f"config.stage.{stage}.{min(run)}: set it for the run, config.{min(run)}")
    free = {*_TAKEN, *_COARSE} if stage == LOCATOR else _TAKEN
    if fixed := {field for field in section if field.startswith("data.")} - free:
      rest = ", ".join(sorted(free))
      raise InputError(f"config.stage.{stage}.{min(fixed)}: stages share their data; only {rest} may differ")
    if stage == LOCATOR and not set(_COARSE) & set(section):
      raise InputError(f"config.stage.{stage}: set its {' or '.join(_COARSE)}, so that it sees whole images")
    name_of = partial(_name, stage=stage, section=section)
    check_fields(section, name_of)
    configs[stage] = stage_config(config, stage)
    if missing := set(settings) - set(flat_fields(configs[stage])):
      raise InputError(f"config.stage.{stage}.{min(missing)}: not set; see configs/multistage.py")
    check_config(configs[stage], name_of)
    _check_order(stages, number, needed(stage, configs[stage]))
  return configs


def stage_config(config: ConfigDict, stage: str) -> ConfigDict:
  """The run's configuration with the section `config.stage.STAGE` laid over it: a run of this stage alone.

  Raises:
    InputError: a section stands where the run has a field.
  """
  merged = ConfigDict(config.to_dict())
  sections = merged.stage
  merged.stage = ConfigDict()
  try:
    merged.update(sections.get(stage, {}))
  except TypeError as error:
    raise InputError(f"config.stage.{stage}: {' '.join(str(error).split())}") from None
  merged.stages = (stage,)
  # Whether the field is put on the heart.
  merged.data.located = config.data.get("located", False) or (LOCATOR in config.stages and stage != LOCATOR)
  return merged


def stage_key(seed: int, stage: str) -> Array:
  """The PRNG key of a stage of a run."""
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stage.encode()))


def teacher_weights(config: ConfigDict) -> dict[str, float]:
  """The weight of each teacher of a student; the last of TEACHERS is none of them where only two weights are given."""
  return dict(zip(TEACHERS, config.distillation.teachers, strict=False))


def needed(stage: str, config: ConfigDict | None) -> tuple[str, ...]:
  """The stages that come before a stage of this configuration; without one, all that may."""
  if STAGES[stage].method is not distillation:
    return STAGES[stage].needs
  return (*STAGES[stage].needs, *(TEACHERS if config is None else teacher_weights(config)))


def stale_stages(configs: Mapping[str, ConfigDict], again: Collection[str], unfinished: Collection[str]) -> set[str]:
  """The stages `again`, which are to be trained anew, and all that was built upon them or upon unfinished ones.

  Those of an earlier run in the same folder, which `configs` has not, among them.
  """
  stale = set(again)
  for stage in STAGES:
    if (stale | set(unfinished)) & set(needed(stage, configs.get(stage))):
      stale.add(stage)
  return stale


def remove_stages(workdir: Path, stages: Collection[str]) -> None:
  """Removes the folders of stages; one that is half removed is not taken for a stage."""
  for stage in stages:
    removed = workdir / f".{stage}.removed"
    shutil.rmtree(removed, ignore_errors=True)
    if (workdir / stage).exists():
      shutil.rmtree((workdir / stage).rename(removed))


def _check_order(stages: tuple[str, ...], number: int, needs: Collection[str]) -> None:
  if missing := [need for need in needs if need not in stages[:number]]:
    raise InputError(f"config.stages={stages}: {missing[0]} must come before {stages[number]}")


def _name(field: str, stage: str, section: Collection[str]) -> str:
  """What a field of a stage's configuration is called in that of the run."""
  own = any(f"{field}.".startswith(f"{part}.") for part in section)
  return f"config.stage.{stage}.{field}" if own else f"config.{field}"
