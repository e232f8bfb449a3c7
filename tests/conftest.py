import os
import tempfile

# Subprocesses and later tests find what earlier ones have compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="vamcei-jax-compiled-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import subprocess  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from tests.configs import tiny  # noqa: E402

ROOT = Path(__file__).parent.parent


def command(*arguments):
  """The command line `python -m ARGUMENTS` of this checkout."""
  return [sys.executable, "-m", *map(str, arguments)]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
  """Where tests keep prepared data."""
  return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def tiny_config(prepared):
  config = tiny.get_config()
  config.data.prepared_dir = str(prepared)
  return config


@pytest.fixture(scope="session")
def run_command():
  """Runs `python -m ARGUMENTS` and returns the finished process, its outputs as text."""

  def run(*arguments):
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=600)

  return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, prepared, run_command):
  """The workdir of a finished tiny run, made by the command line."""
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={prepared}", f"--workdir={workdir}"]
  finished = run_command("vamcei_jax.main", *flags)
  assert finished.returncode == 0, finished.stderr
  return workdir
