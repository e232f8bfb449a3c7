"""Configurations of stages for the tests of the methods."""

from tests.configs import tiny
from vamcei_jax.config.schema import StageConfig
from vamcei_jax.pipeline.resolve import resolve

# Two values that a step could exchange differ, and no factor is 0 or 1.
UNEVEN = {
  "model": {"logvar_range": (-2.5, -0.5), "discriminator_width": 3},
  "loss": {
    "weights": {
      "segmentation": 0.7,
      "reconstruction": 0.3,
      "prior_kl": 0.2,
      "global_alignment": (0.0005, 0.0012),
      "prototypes": 0.9,
      "generator": 0.4,
      "adversarial": 1.3,
      "cycle": 6.0,
      "identity": 2.5,
      "distillation": 0.6,
    },
    "ramp": (1, 8),
    "global_kl": {"estimator": "pairwise"},
    "prototypes": {"confidence": 0.45, "temperature": 0.35},
  },
  "optimizer": {
    "rates": {
      "segmenter": 2e-3,
      "decoders": 1e-3,
      "discriminator": 5e-4,
      "translators": 3e-3,
      "discriminators": 7e-4,
    },
    "b1": 0.8,
    "clip": 0.3,
  },
  "train": {"steps": 400, "ema_decay": 0.33},
  "translation": {"width": 2, "blocks": 1, "discriminator_width": 3, "history": 3},
  "distillation": {"temperature": 1.7},
}


def stage_config(stage: str, **sections: dict) -> StageConfig:
  """The configuration of a stage of the smallest run.

  Args:
    stage: a key of STAGES.
    **sections: of the run's configuration; only what differs from `tests/configs/tiny.py`.
  """
  run = tiny.get_config()
  run.model.update(widths=(4, 8, 16), latent_scales=2)
  run.loss.weights.global_alignment = (1e-6, 1e-6)
  run.stages = ("no_adaptation", "vamcei", "translate", "target_vamcei", "source_vamcei", "distill")
  run.update(sections)
  return resolve(run).stages[stage]
