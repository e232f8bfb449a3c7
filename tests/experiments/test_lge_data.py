"""The folders of cine MR and LGE: whose volumes are in them, and their pixel sizes."""

import nibabel as nib
import numpy as np
import pytest

from tests.commands import error_of


@pytest.fixture
def mscmrseg(tmp_path):
  """A patient of MS-CMRSeg: the header of its bSSFP claims pixels of 1.25 mm, that of its LGE has 0.75 mm."""
  for domain, size in (("C0", 1.25), ("LGE", 0.75)):
    (tmp_path / "mscmrseg" / domain).mkdir(parents=True)
    for ending in ("", "_manual"):
      image = nib.Nifti1Image(np.zeros((8, 8, 2), np.int16), np.diag([-size, -size, 10.0, 1.0]))
      nib.save(image, tmp_path / "mscmrseg" / domain / f"patient7_{domain}{ending}.nii.gz")
  return tmp_path / "mscmrseg"


@pytest.fixture
def acdc(tmp_path):
  for kind in ("images", "labels"):
    (tmp_path / "acdc" / kind).mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 2), np.int16), np.eye(4)), tmp_path / "acdc" / kind / "a1.nii.gz")
  return tmp_path / "acdc"


def names(folder):
  return sorted(str(file.relative_to(folder)) for file in folder.rglob("*.nii.gz"))


def test_the_bssfp_gets_the_pixel_size_of_the_lge_of_its_patient(run_command, mscmrseg, tmp_path):
  finished = run_command("experiments.lge_data", f"--mscmrseg={mscmrseg}", f"--output={tmp_path / 'out'}")
  assert finished.returncode == 0, finished.stderr
  assert names(tmp_path / "out") == [
    f"{part}/patient7.nii.gz" for part in ("cine/images", "cine/labels", "lge/images", "lge/labels")
  ]
  for file in (tmp_path / "out").rglob("*.nii.gz"):
    np.testing.assert_allclose(nib.load(file).header.get_zooms(), (0.75, 0.75, 10.0), rtol=1e-6)
    np.testing.assert_allclose(nib.load(file).affine[:3, :3], np.diag([-0.75, -0.75, 10.0]), rtol=1e-6)


def test_acdc_is_added_and_an_earlier_folder_is_not_mixed_with(run_command, mscmrseg, acdc, tmp_path):
  flags = f"--mscmrseg={mscmrseg}", f"--output={tmp_path / 'out'}"
  assert run_command("experiments.lge_data", *flags, f"--acdc={acdc}").returncode == 0
  assert names(tmp_path / "out" / "cine" / "labels") == ["a1.nii.gz", "patient7.nii.gz"]
  assert "cine: exists; choose another --output" in error_of(run_command("experiments.lge_data", *flags))


def test_a_folder_without_volumes_is_named_with_its_flag(run_command, mscmrseg, tmp_path):
  (tmp_path / "empty").mkdir()
  flags = f"--mscmrseg={mscmrseg}", f"--output={tmp_path / 'out'}"
  finished = run_command("experiments.lge_data", *flags, f"--acdc={tmp_path / 'empty'}")
  assert "empty/images: no NIfTI files in it; correct --acdc" in error_of(finished)
  assert "--acdc=: empty" in error_of(run_command("experiments.lge_data", *flags, "--acdc="))
  assert not (tmp_path / "out").exists()
