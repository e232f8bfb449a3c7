"""States of runs, and their comparison."""

import jax
import numpy as np

from vamcei_jax.config.files import read_stage_config
from vamcei_jax.datasets import phantom, volumes
from vamcei_jax.pipeline.stages import STAGES
from vamcei_jax.training.checkpoints import open_checkpoints, restore_newest


def final_state(workdir, stage):
  """The state after the last step of a stage, whose checkpoints must be intact."""
  config = read_stage_config(workdir / stage)
  abstract = jax.eval_shape(lambda: STAGES[stage].method.init_state(config, jax.random.key(0)))
  with open_checkpoints(workdir / stage / "checkpoints", 2) as checkpoints:
    state, damaged = restore_newest(checkpoints, abstract)
  assert not damaged
  assert int(state.step) == config.train.steps
  return state


def assert_same(a, b):
  """Bit for bit."""
  plain = lambda leaf: jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(plain(x), plain(y)), a, b)


def mislabel_target(monkeypatch):
  """Gives every voxel of the phantom's target masks another class."""

  def mislabelled(patient, volume, classes, preprocess):
    return volumes.example(patient, volume, (3 - classes).astype(classes.dtype), preprocess)

  original = phantom.Phantom._generate_examples

  def generate(self, *arguments):
    with monkeypatch.context() as patch:
      if self.builder_config.domain == "lge":
        patch.setattr(phantom, "example", mislabelled)
      yield from original(self, *arguments)

  monkeypatch.setattr(phantom.Phantom, "_generate_examples", generate)
