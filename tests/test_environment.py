"""The variables that a command sets before JAX is imported."""

import os

import pytest

from vamcei_jax.environment import SETTINGS, TPU_FLAGS, set_variables


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  for name in ("LIBTPU_INIT_ARGS", *map(str.upper, SETTINGS)):
    monkeypatch.setenv(name, "")  # restored after the test
  return monkeypatch


def test_the_compiler_for_tpus_gets_its_flags(environment):
  environment.delenv("LIBTPU_INIT_ARGS")
  set_variables()
  assert os.environ["LIBTPU_INIT_ARGS"] == TPU_FLAGS


@pytest.mark.parametrize("chosen", ["", "--xla_tpu_run_space_to_batch=true"])
def test_the_users_flags_stay(environment, chosen):
  environment.setenv("LIBTPU_INIT_ARGS", chosen)
  set_variables()
  assert os.environ["LIBTPU_INIT_ARGS"] == chosen
