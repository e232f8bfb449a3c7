"""The variables that a command sets before JAX is imported."""

import os

import pytest

from vamcei_jax.environment import SETTINGS, TPU_FLAGS, set_variables


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  for name in ("LIBTPU_INIT_ARGS", *map(str.upper, SETTINGS)):
    monkeypatch.setenv(name, "")  # restored after the test
  return monkeypatch


def flags():
  return os.environ["LIBTPU_INIT_ARGS"]


def test_the_compiler_for_tpus_gets_its_flags():
  set_variables()
  assert flags() == TPU_FLAGS


def test_the_users_flags_come_last_because_the_last_one_counts(environment):
  environment.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_run_space_to_batch=true")
  set_variables()
  assert flags() == f"{TPU_FLAGS} --xla_tpu_run_space_to_batch=true"


def test_a_command_that_starts_another_one_adds_no_flag_twice():
  set_variables()
  set_variables()
  assert flags() == TPU_FLAGS
