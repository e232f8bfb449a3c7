"""Areas of LGE masks above the apex of the bSSFP mask: heights, ratios, and errors."""

import nibabel as nib
import numpy as np
import pytest

from experiments.apex_areas import compare, ratio
from tests.commands import error_of
from vamcei_jax.data.nifti import Volume, read_mask
from vamcei_jax.errors import InputError

VALUES = (0, 200, 500, 600)


def heart(step, slices, offset=0.0, share=1.0):
  """A Volume whose Myo grows with the height: 10 pixels a mm above 0, times `share`; LV is one pixel."""
  heights = offset + step * np.arange(slices)
  voxels = np.zeros((slices, 40, 40), np.uint8)
  for number, height in enumerate(heights):
    voxels[number].flat[: max(0, round(10 * share * height))] = 1
    voxels[number, -1, -1] = 2 * (height > 0)
  affine = np.array([[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [step, 0.0, 0.0, offset], [0.0, 0.0, 0.0, 1.0]])
  return Volume(voxels, affine)


@pytest.mark.parametrize("flip_lge", [False, True])
@pytest.mark.parametrize("flip_bssfp", [False, True])
def test_slices_are_compared_at_the_same_height_whatever_their_order(flip_lge, flip_bssfp):
  lge, bssfp = heart(5.0, 10, offset=2.5, share=0.8), heart(8.0, 9)
  flipped = [volume.turned(np.array([[0, -1], [1, 1], [2, 1]])) for volume in (lge, bssfp)]
  lge, bssfp = (flipped[0] if flip_lge else lge), (flipped[1] if flip_bssfp else bssfp)
  rows = sorted(compare(lge, bssfp, "C0"), key=lambda row: row["mm"])
  # The lowest slice with a structure lies at 8 mm, so it begins at 4 mm.
  np.testing.assert_allclose([row["mm"] for row in rows], 2.5 + 5.0 * np.arange(10) - 4.0)
  np.testing.assert_allclose([row["Myo bSSFP"] for row in rows], 10 * (2.5 + 5.0 * np.arange(10)))
  assert ratio(rows, "Myo", (0, 20)) == pytest.approx(0.8)
  assert ratio(rows, "LV", (0, 20)) == pytest.approx(4 / (7.5 / 8 + 3))
  assert np.isnan(ratio(rows, "RV", (0, 20)))


def test_a_mask_without_an_apex_is_named():
  bssfp = heart(8.0, 4)
  with pytest.raises(InputError, match=r"patient1_C0_manual\.nii\.gz: the areas do not tell"):
    next(compare(bssfp, Volume(np.zeros_like(bssfp.voxels), bssfp.affine), "patient1_C0_manual.nii.gz"))


def test_the_command_writes_slices_and_ratios(run_command, tmp_path):
  """Predicted masks of a real patient are compared; a true mask also where there is one."""
  files = {"mscmrseg/C0/patient3_C0_manual": heart(8.0, 9), "masks/patient3_LGE": heart(5.0, 10, share=0.5)}
  files["mscmrseg/LGE/patient3_LGE_manual"] = heart(5.0, 10)
  files["mscmrseg/C0/patient8_C0_manual"] = heart(8.0, 9)
  for name, volume in files.items():
    path = tmp_path / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = volume.affine @ np.eye(4)[[2, 1, 0, 3]]
    nib.save(nib.Nifti1Image(np.array(VALUES, np.int16)[volume.voxels.transpose(2, 1, 0)], affine), path)
  np.testing.assert_array_equal(
    read_mask(tmp_path / "masks" / "patient3_LGE.nii.gz", VALUES).voxels.sum((1, 2)),
    files["masks/patient3_LGE"].voxels.sum((1, 2)),
  )
  paths = [f"--masks={tmp_path / 'masks'}", f"--mscmrseg={tmp_path / 'mscmrseg'}"]
  finished = run_command("experiments.apex_areas", *paths, f"--output={tmp_path / 'tables'}")
  assert finished.returncode == 0, finished.stderr
  assert "| 1–5 | predicted | 0.50 |" in finished.stdout
  assert "| 1–5 | true | 1.00 |" in finished.stdout
  assert "6–35" not in finished.stdout
  assert len((tmp_path / "tables" / "apex_areas.csv").read_text().splitlines()) == 21
  empty = run_command("experiments.apex_areas", f"--masks={tmp_path}", paths[1], f"--output={tmp_path / 'none'}")
  assert "no patientN_LGE.nii.gz of a patient with a bSSFP mask" in error_of(empty)
  assert not (tmp_path / "none").exists()
