"""Runs that are asked to stop, or that meet another one."""

import json
import signal
import subprocess
import time

import pytest

from tests.conftest import ROOT, command
from tests.test_command_lines import error_of
from tests.test_training import assert_same, final_state


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
        break
    return process

  yield run
  for process in processes:
    process.kill()
    process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
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


def test_a_run_that_compiles_stops_as_well(start):
  process = start("no_adaptation: starts")
  asked = time.monotonic()
  process.send_signal(signal.SIGTERM)
  _, said = process.communicate()
  assert time.monotonic() - asked < 10
  assert process.returncode == 143, said
  assert said.count("SIGTERM: ") == 1


def test_one_run_at_a_time_in_a_folder_and_a_killed_one_leaves_no_lock(start, run_command, prepared, tmp_path):
  first = start("no_adaptation: starts")
  flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={prepared}", f"--workdir={tmp_path}"]
  assert f"{tmp_path}: another run is at work in it" in error_of(run_command("vamcei_jax.main", *flags))
  first.kill()
  first.communicate()
  assert start("vamcei     1/8").poll() is None
