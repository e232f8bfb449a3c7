"""Plans: what a run trains, resumes and discards, from its configuration and what lies in its workdir."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest

from tests.configs import tiny_multistage
from vamcei_jax.config.files import stage_content, write_config
from vamcei_jax.errors import InputError
from vamcei_jax.pipeline.plan import Folder, dependent_stages, inspect_folders, make_plan, remove_stages
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.stages import needed_stages

ORDER = ("no_adaptation", "translate", "target_vamcei", "source_vamcei", "distill")
FINISHED = Folder(exists=True, finished=True)
STARTED = Folder(exists=True)


@pytest.fixture
def config():
  return tiny_multistage.get_config()


def needs_of(config):
  return {stage: needed_stages(stage, of_stage) for stage, of_stage in resolve(config).stages.items()}


def plan(configs, retrain=(), **folders):
  """The plan of a run whose stages are finished, but for those given."""
  found = dict.fromkeys(configs, FINISHED) | folders
  return make_plan(configs, found, retrain, Path("runs/a"))


def test_stages_depend_on_those_that_they_need(config):
  config.stage.distill.distillation.teachers = (0.5, 0.5)
  dependent = partial(dependent_stages, needs_of(config))
  upon_translate = {"target_vamcei", "source_vamcei", "distill"}
  assert dependent([], []) == set()
  assert dependent(["distill"], []) == {"distill"}
  assert dependent(["source_vamcei"], []) == {"source_vamcei", "distill"}
  assert dependent(["translate"], []) == {"translate", *upon_translate}
  # A stage that is resumed is not discarded; later stages depended on an earlier state of it.
  assert dependent([], ["translate"]) == upon_translate
  assert dependent(["no_adaptation"], []) == {"no_adaptation"}

  config.stage.distill.distillation.teachers = (0.5, 0.3, 0.2)
  assert dependent_stages(needs_of(config), ["no_adaptation"], []) == {"no_adaptation", "distill"}


def test_of_the_stages_of_an_earlier_run_those_that_need_a_changed_one_are_discarded(config, tmp_path):
  config.stage.distill.distillation.teachers = (0.5, 0.5)
  for stage, of_stage in resolve(config).stages.items():
    write_config(tmp_path / stage, stage_content(of_stage))
  config.stages = ("no_adaptation",)
  configs = resolve(config).stages
  folders = inspect_folders(configs, tmp_path)
  assert make_plan(configs, folders, ["no_adaptation"], tmp_path).discard == {"no_adaptation"}
  config.stages = ("translate",)
  configs = resolve(config).stages
  folders = inspect_folders(configs, tmp_path)
  expected = {"translate", "target_vamcei", "source_vamcei", "distill"}
  assert make_plan(configs, folders, ["translate"], tmp_path).discard == expected


def test_a_finished_run_is_skipped_and_keeps_its_results(config):
  finished = plan(resolve(config).stages)
  assert set(finished.actions.values()) == {"skip"}
  assert finished.discard == frozenset()
  assert finished.keeps_results
  assert not finished.starts_over


def test_a_new_run_trains_all_stages(config):
  configs = resolve(config).stages
  new = make_plan(configs, dict.fromkeys(configs, Folder()), (), Path("runs/a"))
  assert set(new.actions.values()) == {"train"}
  assert not new.keeps_results


def test_an_interrupted_stage_is_resumed_and_those_that_need_it_are_discarded(config):
  interrupted = plan(resolve(config).stages, translate=STARTED)
  expected = dict(zip(ORDER, ("skip", "resume", "train", "train", "train"), strict=True))
  assert interrupted.actions == expected
  assert interrupted.discard == {"target_vamcei", "source_vamcei", "distill"}
  assert not interrupted.keeps_results
  last = plan(resolve(config).stages, distill=STARTED)
  assert (last.actions["distill"], last.discard) == ("resume", frozenset())
  assert not last.keeps_results


def test_a_retrained_stage_is_discarded_with_those_that_need_it(config):
  configs = resolve(config).stages
  assert plan(configs, ["source_vamcei"]).discard == {"source_vamcei", "distill"}
  assert plan(configs, ["source_vamcei"]).actions["target_vamcei"] == "skip"
  assert plan(configs, ORDER).starts_over
  assert not plan(configs, ["source_vamcei"]).starts_over  # the record keeps the stages that stay
  with pytest.raises(InputError, match="--stages=nosuch: not a stage of this run; choose from no_adaptation, tr"):
    plan(configs, ["nosuch"])


def test_all_stages_depend_on_the_locator(config):
  config.stages = ("locate", "no_adaptation", "vamcei")
  config.stage.locate = {"data": {"zoom": 0.2}}
  configs = resolve(config).stages
  assert plan(configs, ["locate"]).discard >= {"locate", "no_adaptation", "vamcei"}
  assert plan(configs, locate=STARTED).actions == {"locate": "resume", "no_adaptation": "train", "vamcei": "train"}


def test_a_changed_configuration_is_refused_unless_the_stage_is_retrained(config):
  configs = resolve(config).stages
  changed = dataclasses.replace(FINISHED, changed="train.steps was 8, is 9")
  with pytest.raises(InputError, match="runs/a/translate: made with another configuration: train.steps was 8, is 9"):
    plan(configs, translate=changed)
  with pytest.raises(InputError, match="--stages=no_adaptation,source_vamcei"):
    plan(configs, ["source_vamcei"], no_adaptation=changed)
  assert plan(configs, ["translate"], target_vamcei=changed).actions["target_vamcei"] == "train"


def test_removed_stages_are_gone_and_others_stay(tmp_path):
  for name in ("translate/checkpoints", "no_adaptation", ".translate.removed/left by a kill"):
    (tmp_path / name).mkdir(parents=True)
  remove_stages(tmp_path, {"translate", "distill"})
  assert [path.name for path in tmp_path.iterdir()] == ["no_adaptation"]
