"""The folders that configs/lge.py trains on: cine MR with masks of MS-CMRSeg and ACDC, and LGE of MS-CMRSeg.

python -m experiments.lge_data --mscmrseg=DIR --acdc=DIR --output=DIR

Without --acdc, the cine MR is that of MS-CMRSeg alone, as experiments/two_hospitals.py needs it. Writes OUTPUT/cine and
OUTPUT/lge, each with images and labels. The bSSFP files of MS-CMRSeg get the pixel size of the LGE files of their
patients, to whose grid they were resampled; their own headers claim another one. The masks of ACDC must have the values
1 Myo, 2 LV and 3 RV; in the challenge's own files, 1 is the RV, 2 Myo and 3 LV.
"""

import shutil
from pathlib import Path

from absl import flags

from vamcei_jax import cli
from vamcei_jax.errors import InputError
from vamcei_jax.files import expanded
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
  mscmrseg, output = expanded(FLAGS.mscmrseg), expanded(FLAGS.output)
  acdc = expanded(FLAGS.acdc) if FLAGS.acdc else None
  for folder in (mscmrseg / "C0", mscmrseg / "LGE", *([acdc / "images", acdc / "labels"] if acdc else ())):
    if not any(folder.glob("*.nii.gz")):
      raise InputError(f"{folder}: no NIfTI files in it; correct --mscmrseg or --acdc")
  for kind in ("images", "labels"):
    for domain in ("cine", "lge"):
      (output / domain / kind).mkdir(parents=True, exist_ok=True)
    for file in sorted((acdc / kind).glob("*.nii.gz")) if acdc else ():
      shutil.copyfile(file, output / "cine" / kind / file.name)
    ending = "" if kind == "images" else "_manual"
    for file in sorted((mscmrseg / "LGE").glob(f"patient*_LGE{ending}.nii.gz")):
      shutil.copyfile(file, output / "lge" / kind / f"{file.name.split('_')[0]}.nii.gz")
    for file in sorted((mscmrseg / "C0").glob(f"patient*_C0{ending}.nii.gz")):
      patient = file.name.split("_")[0]
      like = mscmrseg / "LGE" / f"{patient}_LGE.nii.gz"
      write_with_pixels(file, like, output / "cine" / kind / f"{patient}.nii.gz")
  print(f"{output}: cine and lge")


def write_with_pixels(file: Path, like: Path, output: Path) -> None:
  """Writes the volume of a file with the pixel size of the file `like`."""
  import nibabel as nib
  import numpy as np

  image = nib.load(file)
  affine = image.affine.copy()
  affine[:, :2] *= np.divide(nib.load(like).header.get_zooms()[:2], image.header.get_zooms()[:2])
  nib.save(nib.Nifti1Image(np.asarray(image.dataobj, np.float32), affine), output)


if __name__ == "__main__":
  cli.run(define_flags, main, __doc__)
