"""Every broken file is read or refused: in one line, in seconds, with little memory; intact files are processed."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.commands import ROOT, command
from tests.faults.corpus import good_dicom, good_file, write_corpus, write_dicom_corpus
from vamcei_jax.data.dicom import list_dicom
from vamcei_jax.data.labels import LABEL_VALUES
from vamcei_jax.data.nifti import read_mask, read_volume, volume_name
from vamcei_jax.data.scan import scan_of_dicom
from vamcei_jax.errors import InputError

SECONDS = 10  # for a file
# Parts of the names of files that must be refused. The others may be read as their header says or nibabel repairs.
HOPELESS = ("cut", "magic", "huge", "complex", "colours", "voxel_nan", "voxel_inf", "srow_x_nan", "srow_y_inf", "4d")
HOPELESS += ("not_nifti", "text", "long", "bomb", "wrong_", "zipped_twice", "header_alone", "loop", "dangling", "pipe")
HOPELESS += ("directory",)
HOPELESS_DICOM = ("cut", "magic", "text", "bomb", "packed", "Rows0", "Rows3", "Columns0", "nan", "without_Rows")
HOPELESS_DICOM += ("without_PixelSpacing", "without_ImagePosition", "loop", "dangling", "pipe", "NumberOfFrames3")
MAY_BE_SKIPPED = ("flipped", "SOPClassUID")  # files of another kind than images
MEMORY = 2 * 2**30  # bytes


@pytest.fixture(scope="module", params=[False, True], ids=["images", "masks"])
def corpus(request, tmp_path_factory):
  return request.param, list(write_corpus(tmp_path_factory.mktemp("corpus") / "files", masks=request.param))


def test_every_file_is_read_or_refused_in_one_line(corpus):
  masks, paths = corpus
  assert len(paths) >= 300
  refused = set()
  for path in paths:
    started = time.monotonic()
    volume, message = read(path, masks)
    assert time.monotonic() - started < SECONDS, path.name
    if message:
      refused.add(path.name)
      assert message.startswith(f"{path}: "), message
      assert len(message.splitlines()) == 1, message
      assert message.endswith((".", ")")), message  # the way out
      continue
    assert np.isfinite(volume.voxels).all(), path.name
    assert np.isfinite(volume.affine).all(), path.name
    assert min(volume.spacing) > 0, path.name
  assert [name for path in paths if any(kind in (name := path.name) for kind in HOPELESS) and name not in refused] == []


def read(path, masks):
  """(volume, None) or (None, the reason why the file is refused)."""
  try:
    return (read_mask(path, LABEL_VALUES) if masks else read_volume(path)), None
  except InputError as error:
    return None, str(error)


# Runs a command as its only child, and writes the largest memory of the child to a file.
MEASURE = """
import pathlib, resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
sys.exit(code)
"""


def run_measured(folder, *arguments):
  """The finished process of `python -m ARGUMENTS`, and its largest memory in bytes."""
  wrapped = [sys.executable, "-c", MEASURE, str(folder / "memory"), *command(*arguments)]
  finished = subprocess.run(wrapped, cwd=ROOT, capture_output=True, text=True)
  return finished, int((folder / "memory").read_text())


def test_predict_skips_and_names_them(tiny_run, tmp_path):
  """As a process, whose memory is measured."""
  paths = list(write_corpus(tmp_path / "corpus"))
  for name in ("a_good.nii", "z_good.nii"):
    (tmp_path / "corpus" / name).write_bytes(good_file(masks=False))
  flags = [f"--workdir={tiny_run}", f"--input={tmp_path / 'corpus'}", f"--output={tmp_path / 'masks'}"]
  started = time.monotonic()
  finished, memory = run_measured(tmp_path, "vamcei_jax.predict", *flags)
  assert finished.returncode == 1, finished.stderr[-3000:]
  errors = finished.stderr.splitlines()
  assert all(line.startswith("error: ") for line in errors), finished.stderr[-3000:]
  segmented = {path.name for path in (tmp_path / "masks").iterdir()} - {"volumes.csv", "report.html"}
  assert {"a_good.nii", "z_good.nii"} <= segmented
  assert len(errors) + len(segmented) == len(paths) + 2
  for path in paths:
    assert (path.name in segmented) != any(str(path) in line for line in errors), path.name
  assert time.monotonic() - started < SECONDS * len(paths)
  assert memory < MEMORY


def test_every_dicom_file_is_read_or_refused_in_one_line(tmp_path, capfd):
  paths = list(write_dicom_corpus(tmp_path / "corpus"))
  assert len(paths) >= 250
  refused = set()
  for path in paths:
    started = time.monotonic()
    volumes, failures = list_dicom(path)
    for volume in volumes:
      try:
        scan = scan_of_dicom(volume, "short_axis")
        assert np.isfinite(scan.volume.voxels).all(), path.name
        assert np.isfinite(scan.volume.affine).all(), path.name
      except InputError as error:
        failures.append(str(error))
    assert time.monotonic() - started < SECONDS, path.name
    assert len(volumes) <= 1
    assert volumes or failures or any(kind in path.name for kind in MAY_BE_SKIPPED), path.name
    for line in failures:
      refused.add(path.name)
      assert line.startswith((f"{path}: ", f"{path.parent}: ")), line
      assert line.isprintable(), line
      assert line.endswith("."), line
  assert capfd.readouterr() == ("", "")  # of the decoders
  hopeless = [path.name for path in paths if any(kind in path.name for kind in HOPELESS_DICOM)]
  assert [name for name in hopeless if name not in refused] == []
  assert len(paths) - len(refused) > 50


def test_predict_skips_and_names_dicom_files_and_leaves_all_files_as_they_are(run_command, tiny_run, tmp_path):
  """As a process, whose memory is measured. NIfTI files of a folder are segmented beside its DICOM series."""
  paths, folder = list(write_dicom_corpus(tmp_path / "corpus" / "dicom")), tmp_path / "corpus"
  (folder / "good.nii").write_bytes(good_file(masks=False))
  (folder / "good.dcm").write_bytes(good_dicom("good"))
  contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
  flags = [f"--workdir={tiny_run}", f"--input={folder}", f"--output={tmp_path / 'masks'}", "--dicom_seg"]
  finished = run_command("vamcei_jax.predict", *flags)
  assert finished.returncode == 2
  assert "good.nii: a NIfTI file; --dicom_seg" in finished.stderr
  assert not (tmp_path / "masks").exists()
  (folder / "good.nii").unlink()
  contents.pop(folder / "good.nii")
  finished, memory = run_measured(tmp_path, "vamcei_jax.predict", *flags)
  assert finished.returncode == 1, finished.stderr[-3000:]
  errors = finished.stderr.splitlines()
  assert all(line.startswith("error: ") for line in errors), finished.stderr[-3000:]
  masks = {path.name for path in (tmp_path / "masks").iterdir()} - {"volumes.csv", "report.html"}
  assert all(re.fullmatch(r"[\w-]+_series-?\d+_[0-9a-f]{6}(\.nii\.gz|_seg\.dcm)", name, re.ASCII) for name in masks), (
    masks
  )
  segmented = {name.removesuffix(".nii.gz") for name in masks if name.endswith(".nii.gz")}
  assert segmented == {name.removesuffix("_seg.dcm") for name in masks if name.endswith("_seg.dcm")}
  assert len(segmented) > 50
  assert abs(len(errors) + len(segmented) - len(paths) - 1) <= 5  # flipped bits may make a file of another kind
  assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == contents
  assert memory < MEMORY


def test_evaluate_skips_and_names_them(tmp_path):
  paths, labels = list(write_corpus(tmp_path / "masks", masks=True)), tmp_path / "labels"
  labels.mkdir()
  for path in paths:
    if not (labels / f"{volume_name(path)}.nii").exists():
      (labels / f"{volume_name(path)}.nii").write_bytes(good_file(masks=True))
    elif not path.is_dir():
      path.unlink()  # the same name with another ending
  flags = [f"--predictions={tmp_path / 'masks'}", f"--labels={labels}", f"--output={tmp_path / 'scores'}"]
  finished, memory = run_measured(tmp_path, "vamcei_jax.evaluate", *flags)
  assert finished.returncode == 1, finished.stderr[-3000:]
  errors = [line for line in finished.stderr.splitlines() if " voxel size of " not in line]  # notes on headers
  assert all(line.startswith("error: ") for line in errors), finished.stderr[-3000:]
  scored = json.loads((tmp_path / "scores" / "metrics.json").read_text())["methods"]["masks"]["patients"]
  assert len(errors) + len(scored) == len(list(labels.iterdir()))
  assert min(len(errors), len(scored)) > 30
  assert memory < MEMORY
