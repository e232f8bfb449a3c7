"""Rough efforts of the stages, for the printed estimates."""

from types import ModuleType

from configs import multistage
from vamcei_jax.pipeline import effort
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.stages import STAGES, Stage


def test_finished_stages_have_no_steps_left_and_larger_batches_cost_more():
  config = multistage.get_config()
  config.stage.source_vamcei = {"train": {"batch_size": 16}}
  configs = resolve(config).stages
  ahead = effort.workloads(configs, {"translate"})
  assert [each.name for each in ahead] == list(configs)
  assert [each.steps for each in ahead] == [350, 0, 350, 350, 900]
  cost = {each.name: each.cost for each in ahead}
  assert cost["source_vamcei"] == 2 * cost["target_vamcei"]
  assert cost["no_adaptation"] < cost["target_vamcei"]


def test_a_method_that_was_not_measured_has_a_cost_and_no_expected_compilation(monkeypatch):
  config = resolve(multistage.get_config()).stages["target_vamcei"]
  assert effort.compilation_seconds(config, "cpu") > 0
  assert effort.compilation_seconds(config, "gpu") is None
  before = effort.step_cost(config)
  monkeypatch.setitem(STAGES, "target_vamcei", Stage(ModuleType("mine")))
  assert effort.compilation_seconds(config, "cpu") is None
  assert effort.step_cost(config) == before
