"""The table of quality: damaged volumes, corners beside the heart, and what is counted."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import voxel_sizes

from experiments.quality import Sample, corner, damaged, measure, summarise, write_table
from vamcei_jax.data.geometry import is_parallel
from vamcei_jax.data.labels import LABEL_VALUES
from vamcei_jax.inference.quality import Finding, Quality

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] * (0.75, 0.75, 8.0)


def test_image_and_mask_are_damaged_together():
  voxels = np.random.default_rng(0).uniform(size=(20, 16, 4)).astype(np.float32)
  mask = (voxels > 0.9).astype(np.uint8)
  files = {name: (image, truth) for name, image, truth in damaged(nib.Nifti1Image(voxels, OBLIQUE), mask, np.random)}
  assert list(files) == ["noise", "inverted", "mirrored", "cut through the heart"]
  for name, (image, truth) in files.items():
    assert image.shape == truth.shape, name
    np.testing.assert_allclose(image.affine, OBLIQUE)
  np.testing.assert_array_equal(files["mirrored"][0].get_fdata() > 0.9, files["mirrored"][1] == 1)
  assert files["cut through the heart"][0].shape == (10, 16, 4)
  np.testing.assert_allclose(files["inverted"][0].get_fdata(), voxels.max() - voxels, atol=1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_a_corner_has_not_the_middle_of_the_slices(last):
  voxels = np.zeros((90, 60, 4), np.float32)
  voxels[30:60, 20:40] = 1.0
  part = corner(nib.Nifti1Image(voxels, np.diag([1.5, 1.25, 9.0, 1.0])), OBLIQUE, last=last)
  assert part.shape == (30, 20, 4)
  assert not part.get_fdata().any()
  assert not is_parallel(part.affine)
  np.testing.assert_allclose(voxel_sizes(part.affine), (1.5, 1.25, 9.0), rtol=1e-5)


def test_a_row_has_the_dice_of_the_labelled_structures_and_the_score():
  mask, truth = np.array([0, 200, 500, 600, 600]), np.array([0, 1, 2, 0, 1])
  findings = (Finding("heart cut", "a"), Finding("heart cut", "b"), Finding("orientation assumed", "c"))
  prediction = SimpleNamespace(mask=mask, quality=Quality(findings, 0.4))
  row = measure(Sample("EMIDEC", "a", None, truth, labelled=2), prediction, LABEL_VALUES)
  assert row["Dice"] == pytest.approx((2 / 3 + 1) / 2)
  assert (row["score"], row["findings"]) == (0.4, "heart cut; orientation assumed")
  assert measure(Sample("noise", "0", None), prediction, LABEL_VALUES)["Dice"] == 0.0


def test_the_table_counts_bad_masks_and_those_that_are_flagged(tmp_path):
  values = ((0.9, 0.82, ""), (0.8, 0.9, "orientation assumed"), (0.6, 0.85, "heart cut"), (0.2, 0.11, "low confidence"))
  rows = [
    {"group": "EMIDEC", "volume": str(number), "Dice": dice, "score": score, "findings": findings}
    for number, (dice, score, findings) in enumerate(values)
  ]
  # Of the four pairs of a good and a bad mask, three have the higher score on the good one.
  assert summarise(rows) == ["4", "2", "0.625", "0.670", "0.130", "0.750", "1", "2", "0"]
  assert summarise(rows[:2])[5] == "–"
  write_table(rows, tmp_path)
  table = (tmp_path / "quality.md").read_text()
  assert "| EMIDEC | 4 | 2 | 0.625 |" in table
  assert "| all with a heart | 4 |" in table
  assert (tmp_path / "quality.csv").read_text().splitlines()[3] == "EMIDEC,2,0.6000,0.8500,heart cut"
