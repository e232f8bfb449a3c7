import atexit
import os
import shutil
import tempfile

# Subprocesses, pytest's workers and later tests find what earlier ones have compiled; who made the folder removes it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  compiled = tempfile.mkdtemp(prefix="vamcei-jax-compiled-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
  atexit.register(shutil.rmtree, compiled, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import fcntl  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.configs import tiny  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")  # arrays of different ranks broadcast explicitly or not at all

ROOT = Path(__file__).parent.parent
# A worker takes whole files; these take longest, and one that is begun last is waited for by the others.
LONG_FILES = ("test_multistage.py", "test_own_data.py", "test_ablation_grid.py", "test_training.py", "test_vamcei.py")


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in LONG_FILES)


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
def tiny_run(tmp_path_factory, run_command):
  """The workdir of a finished tiny run, made by the command line, once for all of pytest's workers."""
  folder = tmp_path_factory.getbasetemp()
  folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
  workdir = folder / "tiny"
  with open(folder / "tiny.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (workdir / "report.html").exists():
      where = [f"--config.data.prepared_dir={folder / 'tiny_data'}", f"--workdir={workdir}"]
      finished = run_command("vamcei_jax.main", "--config=tests/configs/tiny.py", *where)
      assert finished.returncode == 0, finished.stderr
  return workdir
