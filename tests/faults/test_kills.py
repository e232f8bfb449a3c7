"""A run that is killed at any moment and resumed by the same command ends as an uninterrupted one does."""

import json
import random
import shutil
import signal
import subprocess
import time

import pytest
from PIL import Image

from tests.commands import ROOT, command
from tests.runs import assert_same, final_state

ORDER = ("no_adaptation", "translate", "target_vamcei", "source_vamcei", "distill")
KILLS = 20


def assert_readable(workdir):
  """Every file with a final name can be read to its end."""
  for path in workdir.rglob("*"):
    if path.name.startswith(".") or "tmp" in str(path.relative_to(workdir)) or "checkpoints" in path.parts:
      continue
    if path.suffix == ".json":
      json.loads(path.read_text())
    elif path.suffix == ".png":
      Image.open(path).load()
    elif path.suffix == ".html":
      assert path.read_text().rstrip().endswith("</html>")


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_as_an_uninterrupted_one(prepared, tmp_path):
  """The run prepares and translates its data, so that some kills hit these."""
  start = lambda name: subprocess.Popen(
    command(
      "vamcei_jax.main",
      "--config=tests/configs/tiny_multistage.py",
      f"--config.data.prepared_dir={tmp_path / name / 'data'}",
      f"--workdir={tmp_path / name / 'run'}",
    ),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  started = time.monotonic()
  uninterrupted = start("uninterrupted")
  output = uninterrupted.communicate()[0]
  assert uninterrupted.returncode == 0, output
  seconds = time.monotonic() - started

  def assert_as_uninterrupted():
    for stage in ORDER:
      assert_same(*(final_state(tmp_path / name / "run", stage) for name in ("killed", "uninterrupted")))
    read = lambda name: json.loads((tmp_path / name / "run" / "results.json").read_text())
    assert read("killed") == read("uninterrupted")
    assert (tmp_path / "killed" / "run" / "report.html").exists()

  rng, kills = random.Random(0), 0
  while kills < KILLS:
    process = start("killed")
    try:
      output, _ = process.communicate(timeout=rng.uniform(1.0, 0.3 * seconds))
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.communicate()
      kills += 1
      assert_readable(tmp_path / "killed")
      continue
    assert process.returncode == 0, output
    assert_as_uninterrupted()
    shutil.rmtree(tmp_path / "killed")  # and start over
  process = start("killed")
  output, _ = process.communicate()
  assert process.returncode == 0, output
  assert_as_uninterrupted()
