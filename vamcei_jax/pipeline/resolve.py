"""From a run's ConfigDict to the checked, typed configuration of each stage."""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from vamcei_jax.config.files import stage_content, upgrade
from vamcei_jax.config.rules import STRENGTH, choice, differing, each, either, shortened
from vamcei_jax.config.schema import (
  OTHER_RATE,
  OTHER_WEIGHT,
  DistillationConfig,
  GridConfig,
  StageConfig,
  TranslationConfig,
  build,
  find_record,
  flat_fields,
  is_section,
  records,
  variable_fields,
)
from vamcei_jax.data.labels import CLASSES
from vamcei_jax.errors import InputError
from vamcei_jax.methods import cyclegan, distillation, supervised, vamcei
from vamcei_jax.models.layers import GROUPS
from vamcei_jax.pipeline.stages import ADAPT, DISTILL, LOCATOR, STAGES, needed_stages

_FREE = {"data.crop", "data.empty_slices"}  # data fields in which stages may differ
_OF_THE_RUN = ("data.located", "data.datasets")
_COARSE = ("data.size", "data.spacing", "data.zoom")  # data fields in which the locator may differ as well
_SECTIONS = {"translation": (cyclegan, TranslationConfig), "distillation": (distillation, DistillationConfig)}


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """The resolved configuration of a run.

  stages: name -> configuration, in the order of training.
  grid: rows and seeds of an ablation grid, if the configuration has them.
  content: the run's own configuration as config.json holds it.
  """

  stages: Mapping[str, StageConfig]
  grid: GridConfig | None
  content: Mapping[str, Any]

  @property
  def seed(self) -> int:
    """Seed of the run."""
    return next(iter(self.stages.values())).seed


def resolve(config: ConfigDict) -> RunConfig:
  """Checks the configuration of a run and resolves that of each stage.

  Args:
    config: as get_config() of configs/uda.py returns it.

  Raises:
    InputError: names the field that cannot be used and what it may be.
  """
  if not isinstance(config, ConfigDict):
    raise InputError(f"config={shortened(config)}: must be a ConfigDict, as get_config() of configs/uda.py returns it")
  content = upgrade(_to_dict(config))
  stages = _stage_names(content)
  shared = {name: value for name, value in content.items() if name not in ("stage", "stages", "grid")}
  fields = flat_fields(shared)
  _check_fields(fields, "config.{}".format, {name: stage.method for name, stage in STAGES.items()})
  grid = _resolve_grid(content)
  for name in _OF_THE_RUN:
    if fields.get(name):
      raise InputError(f"config.{name}={shortened(fields[name])}: set by the run; leave it out")
  sections = {name: flat_fields(section) for name, section in _stage_sections(content).items()}
  for name, stage_fields in {**dict.fromkeys(stages, {}), **sections}.items():
    _check_section(name, stage_fields)
  configs = {}
  for number, name in enumerate(stages):
    _check_order(stages, number, STAGES[name].needs)
    stage_fields = sections.get(name, {})
    configs[name] = _build_stage(name, fields | stage_fields | {"data.located": LOCATOR in stages and name != LOCATOR})
    check_relations(configs[name], stage_fields)
    _check_order(stages, number, needed_stages(name, configs[name]))
  _check_grid(grid, configs)
  return RunConfig(configs, grid, json.loads(json.dumps(content)))


def _to_dict(config: ConfigDict) -> dict[str, Any]:
  try:
    return config.to_dict()
  except (RecursionError, TypeError, ValueError) as error:
    raise InputError(f"config: cannot be resolved ({shortened(str(error))}); see configs/uda.py") from None


def _stage_names(content: Mapping[str, Any]) -> tuple[str, ...]:
  stages = content.get("stages", ())
  if not differing(each(choice(tuple(STAGES)))).accepts(stages):
    raise InputError(f"config.stages={shortened(stages)}: must be some of {', '.join(STAGES)}, each once")
  stages = tuple(stages)
  if ADAPT in stages and len(stages) > 1:
    raise InputError(f"config.stages={stages}: {ADAPT} stands alone, as its images are cut out by its teachers")
  if LOCATOR in stages[1:] or stages == (LOCATOR,):
    raise InputError(f"config.stages={stages}: {LOCATOR} must come first, with others after it")
  return stages


def _stage_sections(content: Mapping[str, Any]) -> Mapping[str, Mapping]:
  sections = content.get("stage", {})
  if not isinstance(sections, Mapping):
    raise InputError(f"config.stage={shortened(sections)}: must be a section, as in configs/uda.py")
  for name, section in sections.items():
    if name not in STAGES:
      raise InputError(f"config.stage.{name}: no such stage; choose from {', '.join(STAGES)}")
    if not isinstance(section, Mapping):
      raise InputError(f"config.stage.{name}={shortened(section)}: must be a section of the fields that differ for it")
  return sections


def _check_fields(fields: Mapping[str, Any], name_of: Callable[[str], str], methods: Mapping[str, ModuleType]) -> None:
  """Checks each field (dotted name -> value) alone; loss terms and networks must belong to one of the methods.

  Args:
    fields: dotted name -> value.
    name_of: dotted name -> the name by which the user knows the field.
    methods: stage -> method.
  """
  for name, value in fields.items():
    record = find_record(name)
    if record is None:
      if is_section(name):
        raise InputError(f"{name_of(name)}={shortened(value)}: must be a section")
      raise InputError(f"{name_of(name)}: no such field")
    if not record.rule.accepts(value):
      raise InputError(f"{name_of(name)}={shortened(value)}: must be {record.rule.expected}")
    for prefix, kind in (("loss.weights.", "TERMS"), ("optimizer.rates.", "NETWORKS")):
      if name.startswith(prefix):
        _check_known(name_of(name), name.removeprefix(prefix), kind, methods)
    if name == "optimizer.constant":
      for network in value:
        _check_known(f"{name_of(name)}={shortened(value)}", network, "NETWORKS", methods)


def _check_known(field: str, name: str, kind: str, methods: Mapping[str, ModuleType]) -> None:
  known = {name: None for method in methods.values() for name in getattr(method, kind)}
  if name not in known:
    what = "computes no such term" if kind == "TERMS" else "trains no such network"
    stages = f"the method of {', '.join(methods)}" if len(methods) == 1 else "no method"
    what = what if len(methods) == 1 else what.replace("no such", "such a")
    raise InputError(f"{field}: {stages} {what}; choose from {', '.join(known)}")


def _check_section(stage: str, fields: Mapping[str, Any]) -> None:
  """Checks the fields of `config.stage.STAGE`, and that the stage may differ in them."""
  name_of = lambda name: f"config.stage.{stage}.{name}"
  for name in ("stages", "seed", "init", "teachers"):
    if name in fields:
      raise InputError(f"{name_of(name)}: set it for the run, config.{name}")
  free = {*_FREE, *_COARSE} if stage == LOCATOR else _FREE
  if fixed := {name for name in fields if name.startswith("data.")} - free:
    rest = ", ".join(sorted(free))
    raise InputError(f"{name_of(min(fixed))}: stages share their data; only {rest} may differ")
  if stage == LOCATOR and not set(_COARSE) & set(fields):
    raise InputError(f"config.stage.{stage}: set its {' or '.join(_COARSE)}, so that it sees whole images")
  _check_fields(fields, name_of, {stage: STAGES[stage].method})


def _build_stage(stage: str, fields: Mapping[str, Any]) -> StageConfig:
  """The configuration of a stage, with the loss terms, networks and sections of its method alone."""
  method = STAGES[stage].method
  config = build(StageConfig, fields, name=stage)
  chosen = lambda values, names, other: {name: values.get(name, other.default) for name in names}
  for section, (user, kind) in _SECTIONS.items():
    if method is not user:
      config = dataclasses.replace(config, **{section: kind()})
  loss = dataclasses.replace(config.loss, weights=chosen(config.loss.weights, method.TERMS, OTHER_WEIGHT))
  optimizer = dataclasses.replace(config.optimizer, rates=chosen(config.optimizer.rates, method.NETWORKS, OTHER_RATE))
  return dataclasses.replace(config, loss=loss, optimizer=optimizer)


def check_relations(config: StageConfig, section: Collection[str] = ()) -> None:
  """Checks the fields of a stage that depend on each other.

  Args:
    config: of the stage.
    section: dotted names of the fields that `config.stage.STAGE` sets.

  Raises:
    InputError: names the field and what it may be.
  """
  fields = flat_fields(dataclasses.asdict(config))
  for name, holds, expected in _relations(config):
    if not holds:
      differs = any(f"{name}.".startswith(f"{part}.") for part in section)
      full_name = f"config.stage.{config.name}.{name}" if differs else f"config.{name}"
      raise InputError(f"{full_name}={shortened(fields[name])}: must be {expected}")


def _relations(config: StageConfig) -> Iterator[tuple[str, bool, str]]:
  """(field, whether it fits the other fields, what it must be)."""
  model, method = config.model, STAGES[config.name].method
  free = config.data.source is not None or config.name == ADAPT
  yield "data.source", free, f"a domain with masks; only the stage {ADAPT} can do without"
  masks = config.data.same_patients
  yield "data.same_patients", masks is None or config.name == ADAPT, f"None; only the stage {ADAPT} has teachers"
  yield "data.same_patients", masks is None or masks != config.data.target, "another domain than the target"
  named = config.teachers or ()
  yield "teachers", len(set(named)) == len(named), "different folders"
  yield "teachers", not named or config.name == ADAPT, f"None; only the stage {ADAPT} has teachers of other runs"
  has_latents = method in (supervised, vamcei)
  yield "model.latent_scales", not has_latents or model.latent_scales < len(model.widths), "1 to len(widths) - 1"
  coarsest = 2 ** (len(model.widths) - 1)
  # The global alignment pools the coarsest latent by 4×4.
  divisor = max(coarsest, 4 * 2 ** (model.latent_scales - 1)) if has_latents else coarsest
  divisor = 4 if method is cyclegan else divisor  # of its two convolutions of stride 2
  for name, pixels in (("size", config.data.size), ("crop", config.data.crop)):
    yield f"data.{name}", all(n % divisor == 0 for n in pixels), f"two multiples of {divisor}"
  short_axis = config.data.plane == "short_axis"
  yield "data.empty_slices", short_axis or config.data.empty_slices != "apical", "all or none but for short_axis planes"
  estimated = config.data.orientation == "estimate"
  located = config.data.located or config.name == LOCATOR
  yield "data.orientation", located or not estimated, f"header or file without the stage {LOCATOR}, which estimates it"
  grouped = lambda width: model.norm != "group" or width % GROUPS == 0
  grouping = f"positive, and a multiple of {GROUPS} for group norm"
  yield "model.widths", all(map(grouped, model.widths)), grouping
  if has_latents:
    # Softmax maps of all scales, 4 classes each, go through a norm.
    fused = model.heads == "pointwise" or grouped(len(CLASSES) * model.latent_scales)
    yield "model.heads", fused, "pointwise for group norm with an odd number of latent scales"
  if method is vamcei:
    yield "model.decoder_widths", all(map(grouped, model.decoder_widths)), grouping
    one_each = len(config.loss.weights["global_alignment"]) == model.latent_scales
    yield "loss.weights.global_alignment", one_each, "one weight a latent scale"
  if method is cyclegan:
    yield "translation.width", grouped(config.translation.width), grouping
    yield "translation.discriminator_width", grouped(config.translation.discriminator_width), grouping
  if config.name == ADAPT:
    yield (
      "init",
      bool(config.init or named),
      f"the folder of weights or of a run, as the teacher of {ADAPT}, unless config.teachers is set",
    )
    yield "data.spacing", config.data.spacing is not None, f"the pixel size of the network in mm, for {ADAPT}"
  if config.name == DISTILL:
    teachers = config.distillation.teachers
    expected = "weights of target_vamcei, source_vamcei and, if it is a teacher, no_adaptation, some of them positive"
    yield "distillation.teachers", len(teachers) in (2, 3) and sum(teachers) > 0, expected


def _resolve_grid(content: Mapping[str, Any]) -> GridConfig | None:
  if "grid" not in content:
    return None
  if not isinstance(content["grid"], Mapping):
    raise InputError(f"config.grid={shortened(content['grid'])}: must be a section, as in configs/ablation.py")
  fields, known = flat_fields(content["grid"]), dict(records(GridConfig))
  for name, value in fields.items():
    if name not in known:
      raise InputError(f"config.grid.{name}: no such field")
    if not known[name].rule.accepts(value):
      raise InputError(f"config.grid.{name}={shortened(value)}: must be {known[name].rule.expected}")
  return build(GridConfig, fields)


def _check_grid(grid: GridConfig | None, configs: Mapping[str, StageConfig]) -> None:
  if grid is None:
    return
  names = [name for name, _ in grid.rows]
  if len(set(names)) < len(names):
    raise InputError(f"config.grid.rows: rows must have different names, not {shortened(names)}")
  for name, changes in grid.rows:
    _check_row(f"config.grid.rows: {shortened(name)} changes", changes, configs)


def _check_row(row: str, changes: Mapping[str, Any], configs: Mapping[str, StageConfig]) -> None:
  """Checks the fields that a row of a grid changes; errors begin with `row`."""
  known = dict.fromkeys(name for config in configs.values() for name in variable_fields(config))
  weights = {term: weight for config in configs.values() for term, weight in config.loss.weights.items()}
  for name, value in changes.items():
    if name not in known:
      raise InputError(f"{row} {shortened(name)}; choose from {_abridged(known)}")
    weight, record = weights.get(name.removeprefix("loss.weights.")), find_record(name)
    assert record is not None, name
    # The weights of all rows have one shape, as they are mapped.
    scales = either(STRENGTH, each(STRENGTH, len(weight))) if isinstance(weight, tuple) else STRENGTH
    rule = record.rule if weight is None else scales
    if not rule.accepts(value):
      raise InputError(f"{row} {name} to {shortened(value)}: must be {rule.expected}")


def _abridged(names: Collection[str]) -> str:
  """Dotted names with each section written once: "loss.weights.(segmentation, generator), loss.ramp"."""
  sections: dict[str, list[str]] = {}
  for name in names:
    section, _, field = name.rpartition(".")
    sections.setdefault(section, []).append(field)
  group = lambda fields: fields[0] if len(fields) == 1 else f"({', '.join(fields)})"
  return ", ".join(f"{section}.{group(fields)}" for section, fields in sections.items())


def _check_order(stages: tuple[str, ...], number: int, needs: Collection[str]) -> None:
  if missing := [need for need in needs if need not in stages[:number]]:
    raise InputError(f"config.stages={stages}: {missing[0]} must come before {stages[number]}")


def format_config(config: RunConfig) -> str:
  """The resolved configuration of each stage as YAML."""
  stages = {}
  for name, stage in config.stages.items():
    content = stage_content(stage)
    stages[name] = {key: value for key, value in content.items() if key not in ("stage", "stages")}
  return str(ConfigDict({"stages": stages})).rstrip()
