"""Prediction removes and overwrites no input, and no output before the new one is complete."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.commands import error_of
from vamcei_jax.data.nifti import write_volume
from vamcei_jax.errors import InputError
from vamcei_jax.inference.load import load_segmenter
from vamcei_jax.phantom.anatomy import Grid
from vamcei_jax.phantom.scanner import draw_patient
from vamcei_jax.predict import plan_tasks, read_rows, segment, update_rows, write_prediction

GRID = Grid(pixels=48, spacing=3.0, oversampling=1, sub_slices=1)


def write(path, number=0):
  """Writes a volume; returns its path."""
  patient = draw_patient(0, number, "lge", GRID)
  write_volume(path, patient.voxels, patient.affine)
  return path


def snapshot(folder):
  """Path -> content, or target of a link, of everything below a folder."""
  found = {}
  for path in sorted(folder.rglob("*")):
    name = str(path.relative_to(folder))
    found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
  return found


def link_from_input(name):
  """An input that is a symbolic link to a file in the output folder."""

  def make(root):
    write(root / "out" / name)
    (root / "in").mkdir()
    (root / "in" / "a.nii.gz").symlink_to(root / "out" / name)
    return "in", "out"

  return make


def link_to_input(link, name="a.nii.gz"):
  """A link in the output folder to an input."""

  def make(root):
    write(root / "in" / "a.nii.gz")
    (root / "out").mkdir()
    link(root / "in" / "a.nii.gz", root / "out" / name)
    return "in", "out"

  return make


def chain(root):
  """The output is a link in the middle of a chain of them."""
  volume = write(root / "real" / "x.nii.gz")
  for folder in ("in", "out"):
    (root / folder).mkdir()
  (root / "out" / "a.nii.gz").symlink_to(volume)
  (root / "in" / "a.nii.gz").symlink_to(root / "out" / "a.nii.gz")
  return "in", "out"


def folder_link(root):
  """The output folder is a link to the input folder."""
  write(root / "in" / "sub-01" / "a.nii.gz")
  (root / "out").symlink_to(root / "in")
  return "in", "out"


def deeper_folder_link(root):
  """A folder in the output folder is a link to one in the input folder."""
  write(root / "in" / "sub-01" / "a.nii.gz")
  (root / "out").mkdir()
  (root / "out" / "sub-01").symlink_to(root / "in" / "sub-01")
  return "in", "out"


def at(source, output):
  """A volume in/a.nii.gz, and these paths."""

  def make(root):
    write(root / "in" / "a.nii.gz")
    write(root / "in" / "sub-01" / "b.nii.gz", 1)
    return source, output

  return make


symbolic = lambda source, link: link.symlink_to(source)
MANNERS = {
  "a symbolic link to a mask": link_from_input("a.nii.gz"),
  "a symbolic link to a map": link_from_input("a_entropy.nii.gz"),
  "a mask that is a symbolic link": link_to_input(symbolic),
  "a mask that is a hard link": link_to_input(os.link),
  "a map that is a hard link": link_to_input(os.link, "a_probabilities.nii.gz"),
  "a table that is a hard link": link_to_input(os.link, "volumes.csv"),
  "a table that is a symbolic link": link_to_input(symbolic, "uncertainty.csv"),
  "a report that is a symbolic link": link_to_input(symbolic, "report.html"),
  "a chain of links": chain,
  "a link to the folder": folder_link,
  "a link to a folder in it": deeper_folder_link,
  "the folder itself": at("in", "in"),
  "the folder of a file": at("in/a.nii.gz", "in"),
  "another spelling": at("in", "in/sub-01/../../in/."),
  "the file itself": at("in/a.nii.gz", "in/a.nii.gz"),
  "another spelling of the file": at("in/a.nii.gz", "in/sub-01/../a.nii.gz"),
}


@pytest.mark.parametrize("name", MANNERS)
def test_an_output_that_is_an_input_is_refused_before_anything_is_written(run_command, tmp_path, name):
  source, output = MANNERS[name](tmp_path)
  before = snapshot(tmp_path)
  flags = [f"--workdir={tmp_path / 'nosuch'}", f"--input={tmp_path}/{source}", f"--output={tmp_path}/{output}"]
  error = error_of(run_command("vamcei_jax.predict", *flags))
  assert "an output that would replace the input" in error
  assert error.endswith("; choose another --output")
  assert snapshot(tmp_path) == before


def test_an_output_in_the_home_folder_is_no_input_either(run_command, tmp_path, monkeypatch):
  """Shells leave a ~ after "=" as it is."""
  write(tmp_path / "in" / "a.nii.gz")
  monkeypatch.setenv("HOME", str(tmp_path))
  before = snapshot(tmp_path)
  flags = [f"--workdir={tmp_path / 'nosuch'}", f"--input={tmp_path}/in", "--output=~/in"]
  assert "an output that would replace the input" in error_of(run_command("vamcei_jax.predict", *flags))
  assert snapshot(tmp_path) == before


def test_processes_that_write_one_table_at_once_lose_no_row(tmp_path):
  columns = ("volume", "score")
  add = lambda number: update_rows(
    tmp_path / "a.csv", columns, f"{number:02d}", [{"volume": f"{number:02d}", "score": 1}]
  )
  with ThreadPoolExecutor(8) as pool:
    list(pool.map(add, range(64)))
  assert [row["volume"] for row in read_rows(tmp_path / "a.csv", columns)] == [f"{number:02d}" for number in range(64)]


@pytest.fixture(scope="module")
def segmenter(tiny_run):
  return load_segmenter(tiny_run)


@pytest.fixture(scope="module")
def prediction(segmenter, tmp_path_factory):
  return segmenter(write(tmp_path_factory.mktemp("volume") / "a.nii.gz"))


def task_of(prediction, output):
  (task,), _ = plan_tasks(prediction.scan.path, output)
  return task


def test_a_link_in_the_place_of_an_output_is_replaced_and_its_target_stays(prediction, tmp_path):
  """Also of a link whose target does not exist: it is not made there."""
  kept = write(tmp_path / "kept.nii.gz", 2)
  other = tmp_path / "other.csv"
  other.write_text("volume,LV_ml,RV_ml,myocardium_g,score,findings\nb.nii.gz,1,2,3,0.5,\n")
  content = {path: path.read_bytes() for path in (kept, other)}
  output = tmp_path / "out"
  output.mkdir()
  for name, target in {"a.nii.gz": kept, "a_entropy.nii.gz": kept, "volumes.csv": other}.items():
    (output / name).symlink_to(target)
  (output / "a_probabilities.nii.gz").symlink_to(tmp_path / "nosuch.nii.gz")
  write_prediction(prediction, task_of(prediction, output), probabilities=True)
  assert {path: path.read_bytes() for path in content} == content
  assert not any(path.is_symlink() for path in output.iterdir())
  assert {path.name for path in output.iterdir()} == {"a.nii.gz", "a_probabilities.nii.gz", "volumes.csv"}
  assert not (tmp_path / "nosuch.nii.gz").exists()
  assert (output / "volumes.csv").read_text().splitlines()[-1] == "b.nii.gz,1,2,3,0.5,"


@pytest.mark.parametrize("blocked", ["a.nii.gz", "a_probabilities.nii.gz"])
def test_a_prediction_that_cannot_be_written_leaves_the_earlier_mask(prediction, tmp_path, blocked):
  write_prediction(prediction, task_of(prediction, tmp_path))
  if blocked != "a.nii.gz":
    mask = (tmp_path / "a.nii.gz").read_bytes()
  else:
    (tmp_path / blocked).unlink()
  (tmp_path / blocked).mkdir()
  with pytest.raises(InputError, match=f"{blocked}: a folder; choose another file for the "):
    write_prediction(prediction, task_of(prediction, tmp_path), probabilities=True)
  assert blocked == "a.nii.gz" or (tmp_path / "a.nii.gz").read_bytes() == mask
  assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_mask_exists_at_all_times_while_it_is_replaced(prediction, tmp_path, monkeypatch):
  """And its maps of an earlier prediction are removed before the new mask gets its name."""
  task = task_of(prediction, tmp_path)
  write_prediction(prediction, task, probabilities=True)
  replace, removed = os.replace, []

  def watched(source, target):
    assert task.mask.exists()
    if Path(target) == task.mask:
      removed.append(not task.file("probabilities").exists())
    replace(source, target)

  monkeypatch.setattr(os, "replace", watched)
  write_prediction(prediction, task)
  assert removed == [True]


def test_a_mask_that_would_replace_another_one_of_the_same_command_is_refused(segmenter, tmp_path):
  """Through a link here; through names that differ in case or in the encoding of accents where these are one name."""
  for number, name in enumerate(("sub-a", "sub-b")):
    write(tmp_path / "in" / name / "lge.nii.gz", number)
  (tmp_path / "out" / "sub-a").mkdir(parents=True)
  (tmp_path / "out" / "sub-b").symlink_to(tmp_path / "out" / "sub-a")
  (first, second), _ = plan_tasks(tmp_path / "in", tmp_path / "out")
  prediction = segmenter(first.volume)
  failures = segment(segmenter, [first, second], {})
  assert failures == [f"{second.volume}: its mask would replace that of sub-a/lge.nii.gz. Rename one of the volumes."]
  np.testing.assert_array_equal(np.asarray(nib.load(first.mask).dataobj), prediction.mask)
