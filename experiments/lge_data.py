"""The folders that configs/lge.py and experiments/two_hospitals.py train on: cine MR with masks, and LGE of MS-CMRSeg.

python -m experiments.lge_data --mscmrseg=DIR --acdc=DIR --output=DIR
python -m experiments.lge_data --mscmrseg=DIR --output=DIR

Writes OUTPUT/cine and OUTPUT/lge, each with images and labels. The cine MR is that of MS-CMRSeg and, with --acdc, of
ACDC: configs/lge.py needs both, experiments/two_hospitals.py MS-CMRSeg alone. The bSSFP files of MS-CMRSeg get the
pixel size of the LGE files of their patients, to whose grid they were resampled; their own headers claim another one.
The masks of ACDC must have the values 1 Myo, 2 LV and 3 RV; in the challenge's own files, 1 is the RV, 2 Myo and 3 LV.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vamcei_jax import cli
from vamcei_jax.errors import InputError
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("mscmrseg", None, "DIR: The MS-CMRSeg folder, with C0 and LGE.")
    flags.DEFINE_string("output", None, "DIR: Folder for cine and lge.")
  flags.DEFINE_string("acdc", None, "DIR: The ACDC folder, with images and labels.")


def main() -> None:
  """Runs the command."""
  mscmrseg, output = cli.required_path("mscmrseg"), cli.required_path("output")
  check_folder(mscmrseg, ("C0", "LGE"), "mscmrseg")
  acdc = cli.path_of("acdc")
  if acdc:
    check_folder(acdc, ("images", "labels"), "acdc")
  for domain in ("cine", "lge"):
    if (output / domain).exists():
      raise InputError(f"{output / domain}: exists; choose another --output")
  for kind in ("images", "labels"):
    for domain in ("cine", "lge"):
      (output / domain / kind).mkdir(parents=True)
    for file in sorted((acdc / kind).glob("*.nii.gz")) if acdc else ():
      shutil.copyfile(file, output / "cine" / kind / file.name)
    write_mscmrseg(mscmrseg, kind, output)
  print(f"{output}: cine and lge")


def check_folder(root: Path, names: Sequence[str], flag: str) -> None:
  """Raises an InputError if one of the folders in the folder of a flag has no NIfTI file."""
  for name in names:
    if not any((root / name).glob("*.nii.gz")):
      raise InputError(f"{root / name}: no NIfTI files in it; correct --{flag}")


def write_mscmrseg(mscmrseg: Path, kind: str, output: Path) -> None:
  """Writes the images or the labels of MS-CMRSeg, LGE as it is and bSSFP with its true pixel size."""
  ending = "" if kind == "images" else "_manual"
  for file in sorted((mscmrseg / "LGE").glob(f"patient*_LGE{ending}.nii.gz")):
    shutil.copyfile(file, output / "lge" / kind / f"{file.name.split('_')[0]}.nii.gz")
  for file in sorted((mscmrseg / "C0").glob(f"patient*_C0{ending}.nii.gz")):
    patient = file.name.split("_")[0]
    like = mscmrseg / "LGE" / f"{patient}_LGE.nii.gz"
    write_with_pixels(file, like, output / "cine" / kind / f"{patient}.nii.gz")


def write_with_pixels(file: Path, like: Path, output: Path) -> None:
  """Writes the volume of a file with the pixel size of the file `like`."""
  import nibabel as nib
  import numpy as np

  image = nib.load(file)
  affine = image.affine.copy()
  affine[:, :2] *= np.divide(nib.load(like).header.get_zooms()[:2], image.header.get_zooms()[:2])
  nib.save(nib.Nifti1Image(np.asarray(image.dataobj, np.float32), affine), output)


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
