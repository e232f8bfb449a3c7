"""Runs that are asked to stop, or that meet another one."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.commands import ROOT, command, error_of
from tests.runs import assert_same, final_state
from vamcei_jax.training.shutdown import SIGNALS, noted_signals


@pytest.fixture
def start(prepared, tmp_path):
  """Starts a tiny run in tmp_path and returns the process when it has printed a line that begins so."""
  processes = []

  def run(beginning):
    flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={prepared}", f"--workdir={tmp_path}"]
    process = subprocess.Popen(
      command("vamcei_jax.main", *flags), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    processes.append(process)
    for line in process.stdout:
      if line.startswith(beginning):
        return process
    pytest.fail(f"ended before {beginning!r}: {process.communicate()[1]}")

  yield run
  for process in processes:
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_run_that_is_asked_to_stop_saves_the_step_and_goes_on_from_there(start, tiny_run, tmp_path, number, code):
  process = start("vamcei     2/8")
  asked = time.monotonic()
  process.send_signal(number)
  _, said = process.communicate()
  assert time.monotonic() - asked < 10
  assert process.returncode == code, said
  step = int(said.split("vamcei stopped at step ")[1].split(",")[0])
  assert (tmp_path / "vamcei" / "checkpoints" / str(step)).is_dir()
  assert not (tmp_path / "results.json").exists()

  process = start(f"vamcei: resumes at step {step} of 8")
  process.communicate()
  assert process.returncode == 0
  for stage in ("no_adaptation", "vamcei"):
    assert_same(final_state(tmp_path, stage), final_state(tiny_run, stage))
  assert json.loads((tmp_path / "results.json").read_text()) == json.loads((tiny_run / "results.json").read_text())


BLOCKED = """
import hashlib, threading
from vamcei_jax.training.shutdown import noted_signals
with noted_signals() as noted:
  threading.Timer(0.5, lambda: print("ready", flush=True)).start()
  hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)  # C code that hears nothing, as a compilation
"""


def test_what_hears_nothing_ends_as_well():
  process = subprocess.Popen(
    [sys.executable, "-c", BLOCKED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )
  assert process.stdout.readline() == b"ready\n"
  asked = time.monotonic()
  process.send_signal(signal.SIGTERM)
  _, said = process.communicate()
  assert 7 < time.monotonic() - asked < 10
  assert process.returncode == 143
  assert said == b"SIGTERM: stopped after 8 s without a response; the same command resumes from the last checkpoint\n"


def test_a_second_signal_ends_at_once():
  with noted_signals() as noted:
    signal.raise_signal(signal.SIGTERM)
    assert noted == [signal.SIGTERM]
    with pytest.raises(SystemExit) as ended:
      signal.raise_signal(signal.SIGINT)
  assert ended.value.code == 130


def test_handlers_are_as_before_afterwards():
  before = [signal.getsignal(number) for number in SIGNALS]
  with noted_signals():
    assert [signal.getsignal(number) for number in SIGNALS] != before
  assert [signal.getsignal(number) for number in SIGNALS] == before


def test_one_run_at_a_time_in_a_folder_and_a_killed_one_leaves_no_lock(start, run_command, prepared, tmp_path):
  first = start("no_adaptation: starts")
  flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={prepared}", f"--workdir={tmp_path}"]
  assert f"{tmp_path}: another run is at work in it" in error_of(run_command("vamcei_jax.main", *flags))
  first.kill()
  first.communicate()
  assert start("vamcei     1/8").poll() is None
