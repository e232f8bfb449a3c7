"""Runs that get a signal, or whose folder is in use by another run."""

import json
import signal
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import pytest

from tests.commands import ROOT, command, error_of
from tests.runs import assert_same, final_state
from vamcei_jax.training.log import read_log
from vamcei_jax.training.shutdown import PATIENCE, SIGNALS, noted_signals


def flags_of(prepared, workdir):
  """The flags of a tiny run."""
  return ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={prepared}", f"--workdir={workdir}"]


@pytest.fixture
def start(prepared, tmp_path):
  """Starts a tiny run in tmp_path; returns the process and its lines, up to one with this beginning."""
  processes = []

  def run(beginning):
    process = subprocess.Popen(
      command("vamcei_jax.main", *flags_of(prepared, tmp_path)),
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    processes.append(process)
    lines = []
    for line in process.stdout:
      lines.append(line)
      if line.startswith(beginning):
        return process, lines
    pytest.fail(f"ended before {beginning!r}: {process.communicate()[1]}")

  yield run
  for process in processes:
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_run_that_is_stopped_and_then_killed_ends_as_an_uninterrupted_one(
  start, run_command, tiny_run, prepared, tmp_path, number, code
):
  stopped, _ = start("vamcei     2/8")
  sent = time.monotonic()
  stopped.send_signal(number)
  _, errors = stopped.communicate()
  assert time.monotonic() - sent < 10
  assert stopped.returncode == code, errors
  step = int(errors.split("vamcei stopped at step ")[1].split(",")[0])
  assert (tmp_path / "vamcei" / "checkpoints" / str(step)).is_dir()

  # Step 6 is done and step 8 is not. The newest checkpoint is of step 4 or 6, complete or not.
  killed, lines = start("vamcei     6/8")
  killed.kill()
  assert f"vamcei: resumes at step {step} of 8" in "".join(lines)
  assert killed.wait() == -signal.SIGKILL
  assert not (tmp_path / "results.json").exists()

  resumed = run_command("vamcei_jax.main", *flags_of(prepared, tmp_path))
  assert resumed.returncode == 0, resumed.stderr
  assert "no_adaptation: finished at step 8" in resumed.stdout
  assert "vamcei: resumes at step" in resumed.stdout
  for stage in ("no_adaptation", "vamcei"):
    assert_same(final_state(tmp_path, stage), final_state(tiny_run, stage))
  assert json.loads((tmp_path / "results.json").read_text()) == json.loads((tiny_run / "results.json").read_text())
  logged = lambda workdir: [(line["stage"], line["step"]) for line in read_log(workdir / "metrics.jsonl")]
  assert logged(tmp_path) == logged(tiny_run)
  assert not list(tmp_path.rglob("*tmp*"))


BLOCKED = """
import ctypes, threading
from vamcei_jax.training import shutdown
shutdown.PATIENCE = 1.0
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
with shutdown.noted_signals() as noted:
  threading.Timer(0.5, lambda: print("ready", flush=True)).start()
  lock(mutex)
  lock(mutex)  # C code in which Python handles no signal, as in a compilation
"""


def test_a_process_that_handles_no_signal_ends_after_some_seconds():
  arguments = [sys.executable, "-c", BLOCKED]
  with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
    assert process.stdout.readline() == b"ready\n"
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert 0.9 < time.monotonic() - sent < 5
  assert PATIENCE < 10  # schedulers kill a job about so many seconds after SIGTERM
  assert process.returncode == 143
  assert errors == b"SIGTERM: stopped after 1 s without a response; the same command resumes from the last checkpoint\n"


def test_a_second_signal_ends_the_process_at_once():
  with noted_signals() as noted:
    signal.raise_signal(signal.SIGTERM)
    assert noted == [signal.SIGTERM]
    with pytest.raises(SystemExit) as ended:
      signal.raise_signal(signal.SIGINT)
  assert ended.value.code == 130


def test_a_signal_that_is_sent_twice_in_a_row_counts_once(monkeypatch):
  clock = iter((10.0, 10.2, 12.0))
  # The thread that waits for a response reads the clock, too, and libraries read time.monotonic itself.
  now = lambda: next(clock) if threading.current_thread() is threading.main_thread() else 0.0
  monkeypatch.setattr("vamcei_jax.training.shutdown.time", Mock(monotonic=now))
  with noted_signals() as noted:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert noted == [signal.SIGTERM] * 2
    with pytest.raises(SystemExit):
      signal.raise_signal(signal.SIGTERM)


def test_signal_handlers_are_restored_afterwards():
  before = [signal.getsignal(number) for number in SIGNALS]
  with noted_signals():
    assert [signal.getsignal(number) for number in SIGNALS] != before
  assert [signal.getsignal(number) for number in SIGNALS] == before


def test_one_run_at_a_time_in_a_folder_and_a_killed_one_leaves_no_lock(start, run_command, prepared, tmp_path):
  first, _ = start("no_adaptation: starts")
  refused = run_command("vamcei_jax.main", *flags_of(prepared, tmp_path))
  assert f"{tmp_path}: another run is at work in it" in error_of(refused)
  first.kill()
  first.communicate()
  second, _ = start("no_adaptation: ")
  assert second.poll() is None
