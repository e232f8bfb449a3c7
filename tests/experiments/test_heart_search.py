"""Where predict finds hearts: parts of an image, and how far a mask lies from the place of its middle."""

import math

import nibabel as nib
import numpy as np
import pytest

from experiments.heart_search import PARTS, distance_mm, parts_of, table
from tests.commands import error_of
from vamcei_jax import load_segmenter


def test_parts_keep_voxels_and_voxel_size_and_name_the_place_of_the_middle():
  voxels = np.random.default_rng(0).random((65, 81, 2), np.float32)
  voxels[32, 40] = 9.0
  image = nib.Nifti1Image(voxels, np.eye(4))
  image.header["pixdim"][1:4] = 0.9, 1.5, 10.0  # as EMIDEC's headers: the affine says 1 mm
  found = {name: (np.asarray(part.dataobj), part.header.get_zooms(), middle) for name, part, middle in parts_of(image)}
  assert list(found) == list(PARTS)
  for part, zooms, (row, column) in found.values():
    assert zooms == pytest.approx((0.9, 1.5, 10.0))
    assert (part[round(row), round(column)] == 9.0).all()
  assert found["whole"][0].shape == (65, 81, 2)
  assert found["last rows and columns"][0].shape == (41, 51, 2)


def test_distances_are_in_millimetres_and_infinite_without_a_heart():
  heart = np.zeros((10, 10, 3), bool)
  assert distance_mm(heart, (0, 0), (1.0, 1.0, 8.0)) == math.inf
  heart[3, 4] = True
  assert distance_mm(heart, (0, 0), (2.0, 2.0, 8.0)) == pytest.approx(10.0)


def test_the_table_counts_lost_hearts():
  rows = [
    {"image": "a", "part": "whole", "mm": mm, "score": score}
    for mm, score in ((5.0, 0.9), (6.0, 0.4), (7.0, 0.6), (41.0, 0.5), (42.0, 0.3))
  ]
  rows += [{"image": "a", "part": "first rows", "mm": math.inf, "score": 0.0}]
  assert "| whole | 2 | 1 | 3 | 1 |\n| first rows | 1 | 1 | 0 | 0 |" in table(rows)


def test_the_command_measures_the_predicted_masks(run_command, tmp_path):
  """In noise, the network takes some pixels for a heart."""
  (tmp_path / "images").mkdir()
  voxels = np.random.default_rng(0).random((160, 160, 1), np.float32)
  nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 8.0, 1.0])), tmp_path / "images" / "noise.nii.gz")
  paths = [f"--images={tmp_path / 'images'}", f"--output={tmp_path / 'tables'}"]
  finished = run_command("experiments.heart_search", "--weights=weights/lge", *paths)
  assert finished.returncode == 0, finished.stderr
  rows = (tmp_path / "tables" / "heart_search.csv").read_text().splitlines()[1:]
  assert [row.split(",")[1] for row in rows] == list(PARTS)
  segmenter = load_segmenter("weights/lge")
  mask = segmenter(tmp_path / "images" / "noise.nii.gz").mask
  expected = distance_mm((mask == 200) | (mask == 500), (79.5, 79.5), (1.0, 1.0))
  assert expected < 100
  assert float(rows[0].split(",")[2]) == pytest.approx(expected, abs=1e-4)


def test_a_damaged_image_is_named(run_command, tmp_path):
  (tmp_path / "broken.nii.gz").write_bytes(b"no image")
  paths = [f"--images={tmp_path}", f"--output={tmp_path / 'tables'}"]
  assert "broken.nii.gz" in error_of(run_command("experiments.heart_search", "--weights=weights/lge", *paths))
