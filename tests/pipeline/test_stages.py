"""What the stages are made of."""

import jax

from vamcei_jax.pipeline.stages import STAGES, stage_key


def test_every_stage_has_a_key_of_its_own_for_every_seed():
  keys = [jax.random.key_data(stage_key(seed, stage)).tolist() for stage in STAGES for seed in (0, 1)]
  assert len(set(map(tuple, keys))) == 2 * len(STAGES)
