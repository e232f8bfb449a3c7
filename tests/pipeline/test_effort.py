"""Rough efforts of the stages, for the printed estimates."""

from types import ModuleType

import pytest

from configs import multistage
from vamcei_jax.pipeline import effort
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.stages import STAGES, Stage


def test_finished_stages_have_no_steps_left_and_larger_batches_cost_more():
  config = multistage.get_config()
  config.stage.source_vamcei = {"train": {"batch_size": 16}}
  configs = resolve(config).stages
  ahead = effort.workloads(configs, {"translate"}, {"no_adaptation": 20.0})
  assert [each.name for each in ahead] == list(configs)
  assert [each.steps for each in ahead] == [350, 0, 350, 350, 900]
  # The stage that was compiled is under way, and the finished one is not compiled.
  assert [each.compilation > 0 for each in ahead] == [False, False, True, True, True]
  cost = {each.name: each.cost for each in ahead}
  assert cost["source_vamcei"] == 2 * cost["target_vamcei"]
  assert cost["no_adaptation"] < cost["target_vamcei"]


def test_the_time_of_a_compilation_is_expected_from_those_before():
  configs = resolve(multistage.get_config()).stages
  expected = lambda stage, **measured: effort.compilation_seconds(configs, stage, measured)
  assert expected("no_adaptation") is None
  assert expected("source_vamcei", target_vamcei=30.0) == pytest.approx(30)
  assert expected("target_vamcei", no_adaptation=10.0) > 10


def test_a_method_that_was_not_measured_counts_as_vamcei(monkeypatch):
  config = resolve(multistage.get_config()).stages["target_vamcei"]
  before = effort.step_cost(config), effort.compilation_cost(config)
  monkeypatch.setitem(STAGES, "target_vamcei", Stage(ModuleType("mine")))
  assert (effort.step_cost(config), effort.compilation_cost(config)) == before
