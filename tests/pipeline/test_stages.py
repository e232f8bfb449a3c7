"""What the stages are made of."""

import jax

from tests.configs import tiny_multistage
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.stages import STAGES, stage_key, teacher_weights


def test_every_stage_has_a_key_of_its_own_for_every_seed():
  keys = [jax.random.key_data(stage_key(seed, stage)).tolist() for stage in STAGES for seed in (0, 1)]
  assert len(set(map(tuple, keys))) == 2 * len(STAGES)


def test_the_first_weight_is_that_of_the_teacher_on_target_images():
  config = tiny_multistage.get_config()
  config.stage.distill.distillation.teachers = (0.5, 0.3, 0.2)
  expected = {"target_vamcei": 0.5, "source_vamcei": 0.3, "no_adaptation": 0.2}
  assert teacher_weights(resolve(config).stages["distill"]) == expected
