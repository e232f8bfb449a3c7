"""Areas of LGE masks above the apex of the bSSFP mask: heights, ratios, and errors."""

import nibabel as nib
import numpy as np
import pytest

from experiments.apex_areas import REVERSED, compare, from_apex, ratio, table
from tests.commands import error_of
from vamcei_jax.data.nifti import Volume, write_volume

VALUES = np.array((0, 200, 500, 600), np.int16)


def heart(step, slices, offset=0.0, share=1.0):
  """A Volume whose Myo grows with the height: 10 pixels a mm above 0, times `share`; one pixel is LV, and one RV."""
  heights = offset + step * np.arange(slices)
  voxels = np.zeros((slices, 40, 40), np.uint8)
  for number, height in enumerate(heights):
    voxels[number].flat[: max(0, round(10 * share * height))] = 1
    voxels[number, -1, -2:] = (2, 3) if height > 0 else (0, 0)
  affine = np.array([[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [step, 0.0, 0.0, offset], [0.0, 0.0, 0.0, 1.0]])
  return Volume(voxels, affine)


@pytest.mark.parametrize("flip_lge", [False, True])
@pytest.mark.parametrize("flip_bssfp", [False, True])
def test_slices_are_compared_at_the_same_height_whatever_their_order(flip_lge, flip_bssfp):
  lge, bssfp = heart(5.0, 10, offset=2.5, share=0.8), heart(8.0, 9)
  lge, bssfp = (lge.turned(REVERSED) if flip_lge else lge), (bssfp.turned(REVERSED) if flip_bssfp else bssfp)
  rows = sorted(compare(lge, from_apex(bssfp, "C0")), key=lambda row: row["mm"])
  # The lowest slice with a structure lies at 8 mm, so it begins at 4 mm.
  np.testing.assert_allclose([row["mm"] for row in rows], 2.5 + 5.0 * np.arange(10) - 4.0)
  np.testing.assert_allclose([row["Myo bSSFP"] for row in rows], 10 * (2.5 + 5.0 * np.arange(10)))
  assert ratio(rows, "Myo", (0, 20)) == pytest.approx(0.8)
  assert ratio(rows, "LV", (0, 20)) == pytest.approx(4 / (7.5 / 8 + 3))
  assert np.isnan(ratio(rows, "RV", (90, 100)))


def test_an_area_of_bssfp_is_that_of_its_end_slice_up_to_its_face_and_zero_beyond():
  """The stack begins inside the heart: its lowest slice is from 4 to 12 mm, its highest from 44 to 52 mm."""
  lge = heart(5.0, 12, offset=1.0)
  rows = list(compare(lge, heart(8.0, 6, offset=8.0)))
  assert [row["mm"] for row in rows] == [-3.0, *np.arange(2.0, 53.0, 5.0)]
  areas = [0, 80, *(10 * height for height in range(11, 47, 5)), 480, 0]
  np.testing.assert_allclose([row["Myo bSSFP"] for row in rows], areas)
  assert [row["Myo LGE"] for row in rows] == [10 * height for height in range(1, 57, 5)]


def test_the_table_has_the_bands_the_groups_and_the_range_with_a_patient_left_out():
  rows = [
    {"patient": patient, "mask": "predicted", "mm": mm}
    | {f"{structure} {sequence}": pixels[sequence] for structure in ("Myo", "LV", "RV") for sequence in pixels}
    for patient, mm, pixels in (
      (1, 5.0, {"LGE": 10, "bSSFP": 10.0}),
      (2, 19.0, {"LGE": 30, "bSSFP": 10.0}),
      (2, 20.0, {"LGE": 5, "bSSFP": 10.0}),
      (5, 61.0, {"LGE": 99, "bSSFP": 10.0}),
      (6, 30.0, {"LGE": 7, "bSSFP": 10.0}),
    )
  ]
  first, later = table(rows).splitlines()[2:]
  assert first.startswith("| 1–5 | predicted | 2.00 (1.00–3.00) | 2.00 (1.00–3.00) | 2.00 (1.00–3.00) | 0.50 (")
  assert later.startswith("| 6–35 | predicted | nan (")
  assert later.count("| 0.70 (") == 3


@pytest.fixture
def data(tmp_path):
  """Two patients with bSSFP masks and LGE, one of them with a true LGE mask; and predicted masks."""
  files = {"masks/patient3_LGE": heart(5.0, 10, share=0.5), "masks/patient8_LGE": heart(5.0, 10, share=0.25)}
  files |= {f"mscmrseg/C0/patient{number}_C0_manual": heart(8.0, 9) for number in (3, 8)}
  files |= {f"mscmrseg/LGE/patient{number}_LGE": heart(5.0, 10) for number in (3, 8)}
  files["mscmrseg/LGE/patient3_LGE_manual"] = heart(5.0, 10)
  for name, volume in files.items():
    path = tmp_path / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, VALUES[volume.voxels], volume.affine)
  return tmp_path


def flags(data, masks="masks", mscmrseg="mscmrseg"):
  return f"--masks={data / masks}", f"--mscmrseg={data / mscmrseg}", f"--output={data / 'tables'}"


def test_the_command_writes_slices_and_ratios(run_command, data):
  finished = run_command("experiments.apex_areas", *flags(data))
  assert finished.returncode == 0, finished.stderr
  rows = finished.stdout.splitlines()[2:5]
  assert [row.split(" (")[0] for row in rows] == [
    "| 1–5 | predicted | 0.50",
    "| 1–5 | true | 1.00",
    "| 6–35 | predicted | 0.25",
  ]
  assert len((data / "tables" / "apex_areas.csv").read_text().splitlines()) == 31


def test_bad_input_is_named_and_nothing_is_written(run_command, data):
  error = lambda *flags: error_of(run_command("experiments.apex_areas", *flags))
  assert "no C0/patientN_C0_manual.nii.gz; name the MS-CMRSeg folder" in error(*flags(data, mscmrseg="masks"))
  mask, bssfp = data / "masks" / "patient8_LGE.nii.gz", data / "mscmrseg" / "C0" / "patient8_C0_manual.nii.gz"
  image = nib.load(mask)
  nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::2], image.affine), mask)
  assert str(mask) in error(*flags(data))
  mask.unlink()
  assert "masks: no patient8_LGE.nii.gz; predict --input=DIR/LGE first" in error(*flags(data))
  write_volume(mask, VALUES[heart(5.0, 10).voxels], heart(5.0, 10).affine)
  empty = heart(8.0, 9)
  write_volume(bssfp, np.zeros_like(empty.voxels), empty.affine)
  assert f"{bssfp}: its areas do not show where the apex is" in error(*flags(data))
  assert not list(data.glob("tables/*"))
