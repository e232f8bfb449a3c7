"""config.json: the configuration of a run, of a stage or of exported weights, and its upgrade from version 0.1."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vamcei_jax.config.rules import shortened
from vamcei_jax.config.schema import StageConfig, build, find_record, flat_fields
from vamcei_jax.errors import InputError
from vamcei_jax.files import write_text

CONFIG_FILE = "config.json"
# Fields that decide where and how a stage is computed, saved and logged, not what it learns. The names of datasets
# contain a digest of the files below data.root.
_INDIFFERENT = {
  *("data.root", "data.prepared_dir", "data.resident"),
  *("train.steps_per_call", "train.max_bad_steps", "train.log_every", "train.eval_every"),
  *("train.checkpoint_every", "train.keep"),
}
# Options of version 0.1 that this version does not have -> the value that switched them off.
_REMOVED = {
  "distillation.views": False,
  "distillation.apex": False,
  "distillation.itself": 0.0,
  "inference.odds": [1.0, 1.0, 1.0],
  "inference.apex": None,
}


def write_config(folder: Path, content: Mapping[str, Any]) -> None:
  """Writes config.json."""
  write_text(folder / CONFIG_FILE, json.dumps(content, indent=2, sort_keys=True) + "\n")


def stage_content(config: StageConfig) -> dict[str, Any]:
  """The configuration of a stage as JSON holds it."""
  content = json.loads(json.dumps(dataclasses.asdict(config)))
  return content | {"stages": [content.pop("name")], "stage": {}}


def read_config(folder: Path) -> dict[str, Any]:
  """The content of config.json, with the fields of this version.

  Raises:
    InputError: the file is missing or damaged, or has an option that this version does not have.
  """
  path = folder / CONFIG_FILE
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, NotADirectoryError):
    raise InputError(
      f"{path}: not found; name the folder of exported weights, of a run or of a stage of a run"
    ) from None
  except (RecursionError, ValueError) as error:
    raise InputError(f"{path}: not valid JSON ({shortened(str(error))}); restore it or use another folder") from None
  stages = content.get("stages") if isinstance(content, dict) else None
  named = isinstance(stages, list) and stages and all(isinstance(stage, str) for stage in stages)
  if not named or not isinstance(content.get("data"), dict):
    raise InputError(f"{path}: not the configuration of a run; restore it or use another folder")
  try:
    return upgrade(content)
  except InputError as error:
    raise InputError(f"{path}: {error}") from None


def read_stage_config(folder: Path) -> StageConfig:
  """The configuration in the folder of a stage.

  Raises:
    InputError: as read_config, or a field has a value that it cannot have.
  """
  content = read_config(folder)
  return build_stage(content, str(folder / CONFIG_FILE))


def build_stage(content: Mapping[str, Any], origin: str) -> StageConfig:
  """The configuration of a stage from the content of its config.json.

  Args:
    content: of read_config.
    origin: the file that an error names.

  Raises:
    InputError: a field is unknown or has a value that it cannot have.
  """
  fields = flat_fields({name: value for name, value in content.items() if name not in ("stages", "stage", "inference")})
  for name, value in fields.items():
    record = find_record(name)
    if record is None or not record.rule.accepts(value):
      expected = "no such field" if record is None else f"must be {record.rule.expected}"
      raise InputError(f"{origin}: damaged ({name}={shortened(value)}: {expected}); restore it or use another folder")
  return build(StageConfig, fields, name=content["stages"][-1])


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
  """A run's, a stage's or weights' configuration of any version as this version writes it.

  Raises:
    InputError: it uses an option that this version does not have.
  """
  stages = content.get("stage")
  upgraded = _upgrade_sections(content, "config")
  if isinstance(stages, Mapping):
    upgraded["stage"] = {
      name: _upgrade_sections(section, f"config.stage.{name}") if isinstance(section, Mapping) else section
      for name, section in stages.items()
    }
  return upgraded


def changed_field(folder: Path, config: StageConfig) -> str | None:
  """The first field that differs from the stage's configuration in `folder`, as "FIELD was X, is Y"; None if none does.

  Fields that decide where and how a stage is computed may differ.

  Args:
    folder: of the stage.
    config: of the stage.
  """
  if not (folder / CONFIG_FILE).exists():
    return None
  content = read_config(folder)
  ours, theirs = flat_fields(stage_content(config)), flat_fields(content)
  # The terms and networks of other methods, which version 0.1 recorded too.
  unused = {name for name in theirs if name.startswith(("loss.weights.", "optimizer.rates.")) and name not in ours}
  fields = (set(ours) | set(theirs)) - _INDIFFERENT - unused
  # Another setting makes another dataset, so the setting is named first.
  for name in sorted(fields, key=lambda name: (name == "data.datasets", name)):
    record = find_record(name)
    default = "not there" if record is None else json.loads(json.dumps(record.default))
    before, now = theirs.get(name, default), ours.get(name, default)
    # Unknown until the stage `locate` has run.
    if name == "data.datasets" and None in (before, now):
      continue
    if before != now:
      return f"{name} was {before}, is {now}"
  return None


def _upgrade_sections(content: Mapping[str, Any], name: str) -> dict[str, Any]:
  sections = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}
  for removed, neutral in _REMOVED.items():
    section, key = removed.split(".")
    if not isinstance(sections.get(section), dict) or key not in sections[section]:
      continue
    value = sections[section].pop(key)
    if (list(value) if isinstance(value, list | tuple) else value) != neutral:
      raise InputError(f"{name}.{removed}={shortened(value)}: a removed option of version 0.1; set it to {neutral}")
  data = sections.get("data")
  if isinstance(data, dict) and "view" in data:
    data["plane"] = data.pop("view")
  return sections
