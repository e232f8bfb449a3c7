"""Configurations: what each stage gets, and the errors of fields that do not fit together."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.configs import tiny_adapt, tiny_multistage
from vamcei_jax.config.schema import DistillationConfig, TranslationConfig
from vamcei_jax.errors import InputError
from vamcei_jax.pipeline.resolve import format_config, resolve


@pytest.fixture
def config():
  return tiny_multistage.get_config()


def test_the_section_of_a_stage_replaces_fields_of_this_stage_only(config):
  configs = resolve(config).stages
  assert list(configs) == list(config.stages)
  assert configs["translate"].train.steps == 6
  assert configs["target_vamcei"].train.steps == config.train.steps == 8
  assert configs["translate"].train.log_every == config.train.log_every
  assert configs["distill"].model.widths == (4, 6)
  assert configs["translate"].translation.width == 2
  assert configs["distill"].translation == TranslationConfig()  # another method's settings do not reach a stage
  assert configs["translate"].distillation == DistillationConfig()
  assert config.stage.translate.train.steps == 6


def test_a_student_has_no_latents(config):
  config.model.update(widths=(4, 8, 8), latent_scales=2)
  config.loss.weights.global_alignment = (1e-6, 1e-6)
  config.stage.distill.model.widths = (4, 8)  # one scale below: too few for the teachers' two latents
  assert resolve(config).stages["distill"].model.widths == (4, 8)
  config.model.widths = (4, 8)
  with pytest.raises(InputError, match="latent_scales=2: must be 1 to"):
    resolve(config)
  config.model.widths = (4, 8, 8)
  config.stage.distill.model.widths = ()
  with pytest.raises(InputError, match=r"config.stage.distill.model.widths=\(\)"):
    resolve(config)


def test_crops_are_multiples_of_the_coarsest_latent_pooled_by_four(config):
  config.model.update(widths=(4, 8, 8, 8), latent_scales=3)
  config.loss.weights.global_alignment = (1e-6, 1e-6, 1e-6)
  config.data.update(size=(64, 48), crop=(32, 48))
  assert resolve(config).stages["target_vamcei"].data.crop == (32, 48)
  config.data.crop = (24, 48)  # a multiple of the 8 of the widths
  with pytest.raises(InputError, match=r"data.crop=\(24, 48\): must be two multiples of 16"):
    resolve(config)


def test_a_stage_has_the_weights_and_rates_of_its_method_only(config):
  configs = resolve(config).stages
  assert set(configs["no_adaptation"].loss.weights) == {"segmentation"}
  assert set(configs["translate"].loss.weights) == {"adversarial", "cycle", "identity"}
  assert set(configs["distill"].loss.weights) == {"segmentation", "distillation"}
  vamcei = configs["target_vamcei"]
  assert set(vamcei.optimizer.rates) == {"segmenter", "decoders", "discriminator"}
  assert vamcei.loss.weights["global_alignment"] == (1e-6,)
  assert vamcei.loss.weights["prototypes"] == config.loss.weights.prototypes


def test_a_missing_field_has_its_default_and_all_fields_are_printed(config):
  del config.train["keep"]
  config.stage.distill.distillation = ConfigDict({"teachers": (0.5, 0.5)})
  resolved = resolve(config)
  assert resolved.stages["vamcei" if "vamcei" in config.stages else "distill"].train.keep == 2
  assert resolved.stages["distill"].distillation.temperature == 2.0
  printed = format_config(resolved)
  assert "temperature: 2.0" in printed
  assert printed.count("keep: 2") == len(config.stages)


def test_options_of_version_0_1_are_accepted_where_they_are_off(config):
  with config.unlocked():
    config.data.view = config.data.plane
    del config.data["plane"]
    config.stage.distill.distillation.update(views=False, apex=False, itself=0.0)
  assert resolve(config).stages["distill"].data.plane == "short_axis"
  for field, value in (("views", True), ("apex", True), ("itself", 0.5)):
    changed = ConfigDict(config.to_dict())
    changed.stage.distill.distillation[field] = value
    with pytest.raises(InputError, match=f"config.stage.distill.distillation.{field}={value}: a removed option"):
      resolve(changed)


def test_configurations_are_immutable(config):
  with pytest.raises(dataclasses.FrozenInstanceError):
    resolve(config).stages["distill"].train.steps = 3


CONFIGS = [".".join(path.with_suffix("").parts) for path in sorted(Path("configs").rglob("[a-z]*.py"))]


@pytest.mark.parametrize("module", CONFIGS)
def test_every_config_can_be_used(module):
  configs = resolve(importlib.import_module(module).get_config()).stages
  located = [stage for stage, stage_config in configs.items() if stage_config.data.located]
  assert located == (list(configs)[1:] if "locate" in configs else [])


def test_the_section_of_a_stage_selects_slices_and_crop():
  config = importlib.import_module("configs.mscmrseg_best").get_config()
  data = {stage: stage_config.data for stage, stage_config in resolve(config).stages.items()}
  slices = {stage: (settings.empty_slices, settings.crop) for stage, settings in data.items()}
  assert slices.pop("translate") == ("all", (80, 80))
  assert set(slices.values()) == {("apical", (112, 112))}


def locate(**data):
  return lambda c: c.update(
    stages=("locate", "no_adaptation"), stage=ConfigDict({"locate": {"data": data}} if data else {"locate": {}})
  )


WRONG = {
  "whole images": (locate(), "config.stage.locate: set its data.size or data.spacing or data.zoom"),
  "no section": (
    lambda c: c.update(stages=("locate", "no_adaptation"), stage=ConfigDict()),
    "config.stage.locate: set its data.size or data.spacing or data.zoom",
  ),
  "locate's data": (locate(zoom=0.2, percentiles=(0, 100)), "config.stage.locate.data.percentiles: stages share"),
  "locate's grid": (locate(size=(33, 33)), "config.stage.locate.data.size"),
  "apex": (
    lambda c: c.data.update(plane="axial", empty_slices="apical"),
    "config.data.empty_slices='apical': must be all or none",
  ),
  "unknown": (lambda c: c.update(stages=("vamcei", "nonsense")), "config.stages"),
  "twice": (lambda c: c.update(stages=("vamcei", "vamcei")), "config.stages"),
  "none": (lambda c: c.update(stages=()), "config.stages"),
  "order": (lambda c: c.update(stages=("target_vamcei", "translate")), "translate must come before target_vamcei"),
  "data": (lambda c: c.stage.distill.update(data=ConfigDict({"size": (64, 64)})), "config.stage.distill.data.size"),
  "seed": (lambda c: c.stage.distill.update(seed=3), "config.stage.distill.seed: set it for the run"),
  "located": (lambda c: c.data.update(located=True), "config.data.located=True: set by the run; leave it out"),
  "datasets": (lambda c: c.data.update(datasets=("a", "b")), "config.data.datasets=('a', 'b'): set by the run"),
  "a stage that does not run": (
    lambda c: c.update(stages=("no_adaptation",), stage=ConfigDict({"distill": {"train": {"stepz": 1}}})),
    "config.stage.distill.train.stepz: no such field",
  ),
  "translator": (
    lambda c: (
      c.model.update(widths=(8, 8), latent_scales=1),
      c.stage.translate.update(data=ConfigDict({"crop": (50, 50)})),
    ),
    "config.stage.translate.data.crop=(50, 50): must be two multiples of 4",
  ),
  "init": (lambda c: c.stage.distill.update(init="weights"), "config.stage.distill.init: set it for the run"),
  "group norm": (
    lambda c: (c.model.update(norm="group", widths=(8, 8, 8)), c.stage.distill.model.update(widths=(8, 8, 8))),
    "config.stage.translate.translation.width=2: must be positive, and a multiple of 8",
  ),
  "group norm of decoders": (
    lambda c: c.update(stages=("vamcei",), model={"norm": "group", "widths": (8, 8), "decoder_widths": (12,)}),
    "config.model.decoder_widths=(12,",
  ),
  "group norm of fused maps": (
    lambda c: c.model.update(norm="group", widths=(8, 8), heads="convolution"),
    "config.model.heads='convolution': must be pointwise for group norm",
  ),
  "history": (lambda c: c.stage.translate.translation.update(history=0), "stage.translate.translation.history=0"),
  "steps": (lambda c: c.stage.translate.train.update(steps=0), "config.stage.translate.train.steps=0"),
  "shared": (lambda c: c.train.update(keep=0), "config.train.keep=0"),
  "teachers": (lambda c: c.stage.distill.distillation.update(teachers=(0, 0)), "stage.distill.distillation.teachers"),
  "masks of the same patients": (
    lambda c: c.data.update(same_patients="cine"),
    "config.data.same_patients='cine': must be None",
  ),
  "no such stage": (lambda c: c.stage.update(distil=ConfigDict()), "config.stage.distil: no such stage"),
  "no such field": (lambda c: c.stage.distill.update(modle=1), "config.stage.distill.modle: no such field"),
  "a term of another method": (
    lambda c: c.stage.distill.loss.weights.update(cycle=1.0),
    "config.stage.distill.loss.weights.cycle: the method of distill computes no such term; choose from",
  ),
  "a term of no method": (
    lambda c: c.loss.weights.update(nonsense=1.0),
    "config.loss.weights.nonsense: no method computes such a term; choose from segmentation, reconstruction",
  ),
  "a network of no method": (
    lambda c: c.optimizer.rates.update(nonsense=1.0),
    "config.optimizer.rates.nonsense: no method trains such a network",
  ),
  "a constant network of no method": (
    lambda c: c.optimizer.update(constant=("nonsense",)),
    "config.optimizer.constant=('nonsense',",
  ),
}


@pytest.mark.parametrize("what", WRONG)
def test_fields_that_do_not_fit_together_are_named(config, what):
  change, expected = WRONG[what]
  change(config)
  with pytest.raises(InputError, match=re.escape(expected)):
    resolve(config)


def test_masks_of_the_same_patients_are_not_those_of_the_target():
  config = tiny_adapt.get_config()
  config.data.same_patients = config.data.target
  with pytest.raises(InputError, match="config.data.same_patients='lge': must be another domain than the target"):
    resolve(config)


def test_a_third_teacher_comes_before_its_student(config):
  config.stages = [stage for stage in config.stages if stage != "no_adaptation"]
  config.stage.distill.distillation.teachers = (0.5, 0.5)
  assert "distill" in resolve(config).stages
  config.stage.distill.distillation.teachers = (0.5, 0.3, 0.2)
  with pytest.raises(InputError, match="no_adaptation must come before distill"):
    resolve(config)
