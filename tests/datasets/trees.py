"""Folders of invented patients in the layouts in which datasets are released."""

import numpy as np

from vamcei_jax.data.nifti import write_volume
from vamcei_jax.data.preprocess import Preprocess
from vamcei_jax.datasets import prepare
from vamcei_jax.phantom.anatomy import Grid
from vamcei_jax.phantom.scanner import Phantom, draw_patient, write_patient

GRID = Grid(pixels=32, spacing=4.5, oversampling=1, sub_slices=1)
PREPROCESS = Preprocess(size=(24, 16), zoom=0.75)
VALUES = (0, 200, 500, 600)


def draw(number, domain="lge", seed=0):
  """A patient of few pixels; another one for every number."""
  return draw_patient(seed, number, "bssfp" if domain in ("bssfp", "ct") else "lge", GRID)


def write(image, mask, number, domain="lge", values=VALUES):
  """Writes a patient; every file is another one."""
  write_patient(draw(number, domain), image, mask, values)


def write_slices(folder, number, domain, *, masks=True, values=VALUES):
  """A patient as one file a slice, imgN_sliceM.nii.gz and labN_sliceM.nii.gz, M from 6 on: 10 comes first by name."""
  patient = draw(number, domain)
  for index in range(len(patient.voxels)):
    part = Phantom(patient.voxels[index : index + 1], patient.classes[index : index + 1], np.diag([8.0, 1.5, 1.5, 1.0]))
    name = f"{number}_slice{index + 6}.nii.gz"
    write_volume(folder / f"img{name}", part.voxels, part.affine)
    if masks:
      write_volume(folder / f"lab{name}", np.array(values)[part.classes], part.affine)


def build(name, root, domain, role, data_dir, *, label_values=VALUES, preprocess=PREPROCESS, **options):
  """The prepared dataset of a tree."""
  settings = dict(data_dir=str(data_dir), root=str(root), preprocess=preprocess, label_values=label_values)
  return prepare(name, domain, role, **settings, **options)


def patients(builder):
  """Split -> names of its patients."""
  return {
    split: [example["patient"].decode() for example in builder.as_data_source(split)] for split in builder.info.splits
  }


def labelled(builder):
  """Split -> whether each patient has a mask."""
  return {
    split: [bool(example["labelled"]) for example in builder.as_data_source(split)] for split in builder.info.splits
  }
