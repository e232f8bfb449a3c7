"""Every field of a configuration that is out of its range, of another type or missing is named before anything runs."""

import copy
import dataclasses
import re

import pytest
from ml_collections import ConfigDict

from configs import ablation, folder, multistage, uda
from tests.commands import error_of
from tests.faults.corpus import broken_fields
from vamcei_jax.config.rules import shortened
from vamcei_jax.config.schema import StageConfig, flat_fields
from vamcei_jax.errors import InputError
from vamcei_jax.pipeline.resolve import resolve


def framework() -> ConfigDict:
  """The configuration of all stages but the locator, and of a grid."""
  config = multistage.get_config()
  config.grid = ablation.get_config().grid
  return config


def located() -> ConfigDict:
  config = folder.get_config()
  config.stages = ("locate", "no_adaptation", "vamcei")
  config.data.spacing = 1.5
  return config


def with_field(config: dict, field: str, value: object) -> ConfigDict:
  """The config with a field set to any value, as a config file can set it; `...` removes it."""
  *sections, name = field.split(".")
  tree = section = copy.deepcopy(config)
  for part in sections:
    section = section.setdefault(part, {})
  if value is ...:
    del section[name]
  else:
    section[name] = value
  return ConfigDict(tree)


@pytest.mark.parametrize(("base", "least"), [(framework, 1200), (located, 900)])
def test_every_broken_field_is_named_in_one_line(base, least):
  resolve(base())
  good, tries, wrong = base().to_dict(), 0, []
  for field, value in broken_fields(flat_fields(good)):
    tries += 1
    try:
      resolve(with_field(good, field, value))
    except InputError as error:
      message = str(error)
    else:
      wrong.append((field, shortened(value), "accepted"))
      continue
    if not re.match(rf"config\.(stage\.\w+\.)?{re.escape(field)}[=:.]", message):
      wrong.append((field, shortened(value), message))
    assert message.isprintable(), message
    assert len(message) < 300, message
  assert wrong == []
  assert tries >= least, tries


def test_a_missing_field_has_the_default_of_its_record():
  good = uda.get_config().to_dict()
  defaults = flat_fields(dataclasses.asdict(StageConfig("vamcei")))
  fields = [field for field in flat_fields(good) if field != "stages" and not field.startswith("data.options.")]
  assert len(fields) > 50
  for field in fields:
    stage = resolve(with_field(good, field, ...)).stages["vamcei"]
    assert flat_fields(dataclasses.asdict(stage))[field] == defaults[field]


SLOW = pytest.mark.slow
FILES = {
  "train.steps": "2.5",
  "optimizer.rates.segmenter": "float('nan')",
  "data.label_values": "(0, 1, 2)",
  "model.widths": "'16, 32'",
  "stage": "None",
}


@pytest.mark.parametrize("field", [field if field == "stage" else pytest.param(field, marks=SLOW) for field in FILES])
def test_a_broken_file_ends_the_command_before_anything_is_written(run_command, tmp_path, field):
  file = tmp_path / "wrong.py"
  lines = [
    "from tests.configs import tiny",
    "def get_config():",
    "  config = tiny.get_config()",
    "  with config.ignore_type():",
    f"    config.{field} = {FILES[field]}",
    "  return config",
  ]
  file.write_text("\n".join(lines))
  flags = [f"--config={file}", f"--config.data.prepared_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}"]
  error = error_of(run_command("vamcei_jax.main", *flags))
  assert f"config.{field}=" in error
  assert [path for path in tmp_path.iterdir() if path.name != "__pycache__"] == [file]
