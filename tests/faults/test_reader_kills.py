"""Prediction and evaluation that are killed: no partial file has a final name, and the same command completes them."""

import csv
import json
import random
import re
import shutil
import signal
import subprocess
import time

import nibabel as nib
import numpy as np
import pytest

from tests.commands import ROOT, command, run_in_process
from vamcei_jax.phantom.scanner import write_nifti

VOLUMES = 6
SAMPLES = 2
START = 4.0  # seconds in which a process imports libraries and loads the network


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
  """A folder of volumes and their masks."""
  root = tmp_path_factory.mktemp("volumes")
  write_nifti(root, sources=0, targets=VOLUMES, masks=VOLUMES)
  return root / "LGE"


def read(folder):
  """Name -> content of all files with a final name, each of which can be read to its end."""
  contents = {}
  for path in folder.glob("*"):
    if path.name.startswith("."):  # not finished
      continue
    if path.name.endswith(".nii.gz"):
      image = nib.load(path)
      contents[path.name] = np.asarray(image.dataobj).tobytes() + image.affine.tobytes()
      continue
    contents[path.name] = text = path.read_text()
    if path.suffix == ".json":
      json.loads(text)
    elif path.suffix == ".csv":
      assert len({len(row) for row in csv.reader(text.splitlines())}) == 1
      assert text.endswith("\n")
    else:
      assert text.rstrip().endswith("</html>")
      contents[path.name] = re.sub(r"<dt>Time</dt><dd>[^<]+", "", text)
  masks = [name.removesuffix("LGE.nii.gz") for name in contents if name.endswith("LGE.nii.gz")]
  assert {f"{name}LGE_{kind}.nii.gz" for name in masks for kind in ("entropy", "probabilities")} <= set(contents)
  return contents


def finish(arguments):
  """Runs the command to its end."""
  finished = run_in_process(*arguments)
  assert finished.returncode == 0, finished.stderr


def kill_and_finish(arguments, folder, rng, tries, first):
  """Kills the command at `tries` moments, and runs it to its end: the files are the same.

  Args:
    arguments: of the command.
    folder: with the files of the finished command.
    rng: of the moments.
    tries: number of kills.
    first: pattern of the first file that it writes; two of three kills come soon after it.

  Returns:
    Number of kills after which some of the files existed.
  """
  complete, partial = read(folder), 0
  shutil.rmtree(folder)
  for number in range(tries):
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started, early = time.monotonic(), number % 3 == 2
    while not early and process.poll() is None and not list(folder.glob(first)):
      time.sleep(0.002)
    time.sleep(rng.uniform(0.0, START if early else 0.2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert time.monotonic() - started < 600
    found = read(folder)
    assert set(found) <= set(complete)
    for name, content in found.items():
      # The table has the volumes that are done.
      assert content == complete[name] or (name.endswith(".csv") and content in complete[name]), name
    partial += 0 < len(found) < len(complete)
    if rng.random() < 0.5:  # start over
      shutil.rmtree(folder, ignore_errors=True)
  finish(arguments)
  assert read(folder) == complete
  return partial


def predict_command(tiny_run, volumes, output):
  flags = [f"--workdir={tiny_run}", f"--input={volumes}", f"--output={output}"]
  return ["vamcei_jax.predict", *flags, f"--samples={SAMPLES}", "--probabilities"]


@pytest.mark.parametrize("tries", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_a_killed_prediction_leaves_intact_files_and_is_completed(tiny_run, volumes, tmp_path, tries):
  arguments = predict_command(tiny_run, volumes, tmp_path / "masks")
  finish(arguments)
  assert len(read(tmp_path / "masks")) == 3 * VOLUMES + 3  # two tables and the report
  assert kill_and_finish(arguments, tmp_path / "masks", random.Random(0), tries, "[!.]*.nii.gz") > 0


@pytest.mark.slow
def test_a_killed_evaluation_leaves_intact_files_and_is_repeated(volumes, tmp_path):
  masks = tmp_path / "masks"
  masks.mkdir()
  for path in volumes.glob("*_manual.nii.gz"):
    shutil.copy(path, masks / path.name.replace("_manual", ""))
  flags = [f"--predictions={masks}", f"--labels={volumes}", f"--images={volumes}", f"--output={tmp_path / 'scores'}"]
  arguments = ["vamcei_jax.evaluate", *flags]
  finish(arguments)
  assert set(read(tmp_path / "scores")) == {"metrics.csv", "metrics.json", "report.html"}
  assert kill_and_finish(arguments, tmp_path / "scores", random.Random(1), 6, "metrics.json") > 0
