"""Damaged prepared data is named and never read wrongly; a full disk costs nothing that was saved."""

import random
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.commands import ROOT, command, error_of
from tests.datasets.trees import build
from tests.faults.test_damage import DAMAGES
from tests.runs import assert_same, final_state
from vamcei_jax.data.loader import load_slices, load_truths
from vamcei_jax.errors import InputError
from vamcei_jax.pipeline.domains import order_note


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory):
  """The folder of a prepared phantom."""
  sizes = {"train": 2, "validation": 1, "test": 1}
  return build("phantom", None, "lge", "target", tmp_path_factory.mktemp("data"), **sizes).data_path


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_prepared_data_is_named_or_read_as_it_was(prepared_folder, damage, tmp_path):
  rng, named = random.Random(0), 0
  expected = load_slices(tfds.builder_from_directory(prepared_folder), "train", labels=True)
  tries = 1 if damage == "removed" else 24
  for _ in range(tries):
    folder = shutil.copytree(prepared_folder, tmp_path / "phantom" / "lge" / "1.0.0")
    builder = tfds.builder_from_directory(folder)
    (file,) = folder.glob("*train*")
    DAMAGES[damage](file, rng)
    try:
      slices = load_slices(builder, "train", labels=True)
    except InputError as error:
      named += str(error).startswith(f"{folder}: damaged prepared data") and "Remove this folder" in str(error)
    else:
      assert damage == "flipped"  # in bytes that nobody reads
      for name, values in expected.items():
        np.testing.assert_array_equal(slices[name], values)
    shutil.rmtree(folder)
  assert named >= 3 if damage == "flipped" else named == tries


def test_a_run_names_damaged_prepared_data(prepared_folder, tmp_path):
  folder = shutil.copytree(prepared_folder, tmp_path / "phantom" / "lge" / "1.0.0")
  (file,) = folder.glob("*train*")
  file.write_bytes(file.read_bytes()[:1000])
  for read in (load_truths, partial(order_note, "source")):
    with pytest.raises(InputError, match=f"{folder}: damaged prepared data"):
      list(read(tfds.builder_from_directory(folder)))


@pytest.mark.slow
def test_the_advice_on_damaged_prepared_data_works(run_command, prepared, tmp_path):
  data = tmp_path / "data"
  flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={data}", f"--workdir={tmp_path / 'run'}"]
  assert run_command("vamcei_jax.prepare", *flags[:-1]).returncode == 0
  (file,) = data.glob("phantom/lge*/*/*train*")
  file.write_bytes(file.read_bytes()[:1000])
  assert f"{file.parent}: damaged prepared data" in error_of(run_command("vamcei_jax.main", *flags))
  (file.parent / "dataset_info.json").write_text("{")
  assert f"{file.parent.parent}: damaged prepared data" in error_of(run_command("vamcei_jax.main", *flags))
  shutil.rmtree(file.parent.parent)
  assert run_command("vamcei_jax.prepare", *flags[:-1]).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [100, 300, 500, 900])
def test_a_run_on_a_full_disk_is_resumed_when_space_is_free(tiny_run, prepared, tmp_path, kilobytes):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("needs the right to mount a small file system")
  try:
    flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={prepared}", f"--workdir={disk / 'run'}"]
    run = lambda: subprocess.run(command("vamcei_jax.main", *flags), cwd=ROOT, capture_output=True, text=True)
    assert "the disk is full" in error_of(run())
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    finished = run()
    assert finished.returncode == 0, finished.stderr
    for stage in ("no_adaptation", "vamcei"):
      assert_same(final_state(disk / "run", stage), final_state(tiny_run, stage))
  finally:
    subprocess.run(["umount", str(disk)], check=True)
