"""One record a field: defaults fit their rules, and configs/uda.py explains each field by its record's sentence."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

from configs import multistage, uda
from vamcei_jax.config import schema
from vamcei_jax.config.schema import StageConfig, find_record, flat_fields, records
from vamcei_jax.data.geometry import PLANES
from vamcei_jax.losses import global_alignment
from vamcei_jax.methods import cyclegan, distillation, supervised, vamcei
from vamcei_jax.models.layers import NORMS

RECORDS = dict(records(StageConfig))
INTERNAL = {"data.located", "data.datasets"}  # the run sets them


@pytest.mark.parametrize("kind", [StageConfig, schema.InferenceConfig])
def test_defaults_fit_their_rules_and_every_field_has_a_sentence(kind):
  for name, record in records(kind):
    assert record.rule.accepts(record.default), name
    assert re.fullmatch(r"[A-Za-z].*\.", record.sentence), name


def test_every_value_of_the_demo_fits_its_rule():
  for name, value in flat_fields(uda.get_config()).items():
    if name != "stages":
      record = find_record(name)
      assert record is not None
      assert record.rule.accepts(value), name


def explanations(module):
  """(name of the field, comment) of the assignments of a config file, whose comment stands behind or above them."""
  lines = Path(module.__file__).read_text(encoding="utf-8").splitlines()
  for above, line in zip(lines, lines[1:], strict=False):
    if found := re.match(r" +(?:[\w.]+\.)?(\w+) = (?:[^#\"]|\"[^\"]*\")*(?:# (.*))?$", line):
      yield found[1], found[2] or above.strip().removeprefix("# ")


def test_the_configs_explain_every_field_by_the_sentence_of_its_record():
  written = set(explanations(uda)) | set(explanations(multistage))
  for name, record in RECORDS.items():
    if name not in INTERNAL:
      assert (name.rsplit(".", 1)[-1], record.sentence) in written, name


def test_choices_are_those_of_the_code():
  assert set(schema.PLANES) == set(PLANES)
  assert set(schema.NORMS) == set(NORMS)
  latents = [jnp.zeros((2, 3))] * 4
  assert all(global_alignment(*latents, estimator=estimator) == 0.0 for estimator in schema.ESTIMATORS)


def test_terms_and_networks_of_the_methods_have_records():
  for method in (cyclegan, distillation, supervised, vamcei):
    assert set(method.TERMS) <= set(schema.WEIGHTS)
    assert set(method.NETWORKS) <= set(schema.RATES)
