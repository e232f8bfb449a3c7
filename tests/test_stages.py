"""Stages: what each is given to learn from, and what a run says of settings that do not fit together."""

import importlib
from functools import partial
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.configs import tiny_multistage
from vamcei_jax.errors import InputError
from vamcei_jax.stages import remove_stages, stage_config, stage_configs, stale_stages


@pytest.fixture
def config():
  return tiny_multistage.get_config()


def test_a_stage_s_section_is_laid_over_the_run_and_over_no_other_stage(config):
  configs = stage_configs(config)
  assert list(configs) == list(config.stages)
  assert configs["translate"].train.steps == 6
  assert configs["target_vamcei"].train.steps == config.train.steps == 8
  assert configs["translate"].train.log_every == config.train.log_every
  assert configs["distill"].model.widths == (4, 8, 8)
  assert "translation" not in configs["distill"]
  assert config.stage.translate.train.steps == 6


def test_a_student_has_no_latents(config):
  config.stage.distill.model.widths = (4, 8)  # one scale below: too few for the teachers' two latents
  assert stage_configs(config)["distill"].model.widths == (4, 8)
  config.model.widths = (4, 8)
  with pytest.raises(InputError, match="latent_scales=2: must be 1 to"):
    stage_configs(config)
  config.model.widths = (4, 8, 8)
  config.stage.distill.model.widths = ()
  with pytest.raises(InputError, match=r"config.stage.distill.model.widths=\(\)"):
    stage_configs(config)


def test_a_stage_s_configuration_is_that_of_a_run_of_it_alone(config):
  own = stage_config(config, "translate")
  assert own.stages == ("translate",)
  assert stage_config(own, "translate") == own


@pytest.mark.parametrize("path", sorted(Path("configs").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_config_can_be_used(path):
  configs = stage_configs(importlib.import_module(f"configs.{path.stem}").get_config())
  located = [stage for stage, own in configs.items() if own.data.located]
  assert located == (list(configs)[1:] if "locate" in configs else [])


def test_a_stage_takes_of_the_data_what_its_section_says():
  config = importlib.import_module("configs.mscmrseg_best").get_config()
  took = {stage: (own.data.empty_slices, own.data.crop) for stage, own in stage_configs(config).items()}
  assert took.pop("translate") == ("all", (80, 80))
  assert set(took.values()) == {("apical", (112, 112))}


def locate(**data):
  return lambda c: c.update(
    stages=("locate", "no_adaptation"), stage=ConfigDict({"locate": {"data": data}} if data else {"locate": {}})
  )


WRONG = {
  "whole images": (locate(), "config.stage.locate: set its data.size or data.spacing or data.zoom"),
  "locate's data": (locate(zoom=0.2, percentiles=(0, 100)), "config.stage.locate.data.percentiles: stages share"),
  "locate's grid": (locate(size=(33, 33)), "config.stage.locate.data.size"),
  "apex": (
    lambda c: c.data.update(view="axial", empty_slices="apical"),
    "config.data.empty_slices='apical': must be all or none",
  ),
  "tapered": (
    lambda c: (c.data.update(view="axial"), c.stage.distill.distillation.update(apex=True)),
    "distillation.apex=True: must be False but for short_axis views",
  ),
  "unknown": (lambda c: c.update(stages=("vamcei", "nonsense")), "config.stages"),
  "twice": (lambda c: c.update(stages=("vamcei", "vamcei")), "config.stages"),
  "none": (lambda c: c.update(stages=()), "config.stages"),
  "order": (lambda c: c.update(stages=("target_vamcei", "translate")), "translate must come before target_vamcei"),
  "data": (lambda c: c.stage.distill.update(data=ConfigDict({"size": (64, 64)})), "config.stage.distill.data.size"),
  "seed": (lambda c: c.stage.distill.update(seed=3), "config.stage.distill.seed: set it for the run"),
  "group norm": (
    lambda c: (c.model.update(norm="group", widths=(8, 8, 8)), c.stage.distill.model.update(widths=(8, 8, 8))),
    "config.stage.translate.translation.width=2: must be positive, and a multiple of 8",
  ),
  "history": (lambda c: c.stage.translate.translation.update(history=0), "stage.translate.translation.history=0"),
  "steps": (lambda c: c.stage.translate.train.update(steps=0), "config.stage.translate.train.steps=0"),
  "shared": (lambda c: c.train.update(keep=0), "config.train.keep=0"),
  "teachers": (lambda c: c.stage.distill.distillation.update(teachers=(0, 0)), "stage.distill.distillation.teachers"),
  "no such stage": (lambda c: c.stage.update(distil=ConfigDict()), "config.stage.distil: no such stage"),
  "no such field": (lambda c: c.stage.distill.update(modle=1), "config.stage.distill.modle: no such field"),
  "no section": (lambda c: c.stage.__delitem__("translate"), "config.stage.translate.loss.weights.adversarial"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_named(config, what):
  change, expected = WRONG[what]
  change(config)
  with pytest.raises(InputError, match=expected.replace(".", r"\.").replace("(", r"\(")):
    stage_configs(config)


def test_what_was_built_upon_a_stage_goes_with_it(config):
  config.stage.distill.distillation.teachers = (0.5, 0.5)
  stale = partial(stale_stages, stage_configs(config))
  upon_translate = {"target_vamcei", "source_vamcei", "distill"}
  assert stale([], []) == set()
  assert stale(["distill"], []) == {"distill"}
  assert stale(["source_vamcei"], []) == {"source_vamcei", "distill"}
  assert stale(["translate"], []) == {"translate", *upon_translate}
  # A stage that is to be resumed stays; what is there of later ones was built upon another.
  assert stale([], ["translate"]) == upon_translate
  assert stale(["no_adaptation"], []) == {"no_adaptation"}

  config.stage.distill.distillation.teachers = (0.5, 0.3, 0.2)
  assert stale_stages(stage_configs(config), ["no_adaptation"], []) == {"no_adaptation", "distill"}

  config.stages = ("no_adaptation", "translate", "target_vamcei")  # the folder may hold later ones of another run
  assert stale_stages(stage_configs(config), ["translate"], []) == {"translate", *upon_translate}


def test_a_third_teacher_comes_before_its_student(config):
  config.stages = [stage for stage in config.stages if stage != "no_adaptation"]
  config.stage.distill.distillation.teachers = (0.5, 0.5)
  assert "distill" in stage_configs(config)
  config.stage.distill.distillation.teachers = (0.5, 0.3, 0.2)
  with pytest.raises(InputError, match="no_adaptation must come before distill"):
    stage_configs(config)


def test_removed_stages_are_gone_and_others_stay(tmp_path):
  for name in ("translate/checkpoints", "no_adaptation", ".translate.removed/left by a kill"):
    (tmp_path / name).mkdir(parents=True)
  remove_stages(tmp_path, {"translate", "distill"})
  assert [path.name for path in tmp_path.iterdir()] == ["no_adaptation"]
