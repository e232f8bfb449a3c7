"""config.json of a stage, compared with the configuration that a run has now."""

import copy
import dataclasses

from tests.configs import tiny
from vamcei_jax.config.files import changed_field, stage_content, write_config
from vamcei_jax.config.schema import flat_fields
from vamcei_jax.pipeline.resolve import resolve

INDIFFERENT = {
  *("data.root", "data.prepared_dir", "data.resident"),
  *("train.steps_per_call", "train.max_bad_steps", "train.log_every", "train.eval_every"),
  *("train.checkpoint_every", "train.keep"),
}


def test_a_change_of_any_field_is_named_but_of_those_that_change_no_result(tmp_path):
  config = resolve(tiny.get_config()).stages["vamcei"]
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=("first", "second")))
  content = stage_content(config)
  write_config(tmp_path, content)
  assert changed_field(tmp_path, config) is None
  fields = flat_fields({name: value for name, value in content.items() if name != "stages"})
  assert {"seed", *INDIFFERENT} < set(fields)
  for name, value in fields.items():
    changed = copy.deepcopy(content)
    *sections, last = name.split(".")
    section = changed
    for part in sections:
      section = section[part]
    section[last] = "other"
    write_config(tmp_path, changed)
    expected = None if name in INDIFFERENT else f"{name} was other, is {value}"
    assert changed_field(tmp_path, config) == expected


def test_a_field_that_an_earlier_version_did_not_write_has_its_default(tmp_path):
  config = resolve(tiny.get_config()).stages["vamcei"]
  content = stage_content(config)
  assert content["data"].pop("empty_slices") == "all"
  write_config(tmp_path, content)
  assert changed_field(tmp_path, config) is None
  changed = dataclasses.replace(config, data=dataclasses.replace(config.data, empty_slices="none"))
  assert changed_field(tmp_path, changed) == "data.empty_slices was all, is none"
