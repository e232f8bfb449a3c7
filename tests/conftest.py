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
# Tiny networks: XLA's optimizations take longer than they save. Tests about these turn them on.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Two CPU devices, for this process and those that it starts; a batch of odd size stays on one. XLA's older code for
# fused operations is compiled in half the time, and dividing that among threads only costs, as the cores are busy.
COMPILATION = "--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"
for flag in ("--xla_force_host_platform_device_count=2", *COMPILATION):
  if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".lstrip()

import fcntl  # noqa: E402
import gc  # noqa: E402
import subprocess  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from tests.commands import ROOT, command, run_in_process  # noqa: E402
from tests.configs import tiny  # noqa: E402

gc.set_threshold(100_000, 20, 20)  # traced programs are many small objects, and few of them garbage
jax.config.update("jax_numpy_rank_promotion", "raise")  # arrays of different ranks broadcast explicitly or not at all

# The same examples in each run; a first one waits for its compilation.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")

# A worker takes whole files; these take longest, and one that starts last is waited for by the others.
LONG_FILES = ("test_multistage.py", "test_own_data.py", "test_ablation_grid.py", "test_loop.py", "test_vamcei.py")
LONG_FILES += ("test_signals.py", "test_cyclegan.py", "test_hostile_files.py", "test_distributed.py", "test_record.py")


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
  """Where tests keep prepared data."""
  return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def tiny_config(prepared):
  config = tiny.get_config()
  config.data.prepared_dir = str(prepared)
  return config


@pytest.fixture
def without_pictures(monkeypatch):
  """Runs in this process draw nothing: of a small run, pictures are a third of the time."""
  for name in ("results.save_panels", "results.write_report", "validation.save_panels"):
    monkeypatch.setattr(f"vamcei_jax.pipeline.{name}", lambda *_, **__: None)


@pytest.fixture(scope="session")
def run_command():
  """Runs `python -m ARGUMENTS` in this process; returns its exit code and outputs, see tests/commands.py."""
  return run_in_process


@pytest.fixture(scope="session")
def run_process():
  """Runs `python -m ARGUMENTS` in a process, and returns it finished, its outputs as text."""

  def run(*arguments):
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=600)

  return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, run_process):
  """The workdir of a finished tiny run, made by the command line, once for all of pytest's workers."""
  folder = tmp_path_factory.getbasetemp()
  folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
  workdir = folder / "tiny"
  with open(folder / "tiny.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (workdir / "report.html").exists():
      where = [f"--config.data.prepared_dir={folder / 'tiny_data'}", f"--workdir={workdir}"]
      finished = run_process("vamcei_jax.main", "--config=tests/configs/tiny.py", *where)
      assert (finished.returncode, finished.stderr) == (0, "")  # no line of a library
      progress = [line for line in finished.stdout.splitlines() if "steps/s" in line]
      assert progress
      assert max(map(len, progress)) <= 100
  return workdir
