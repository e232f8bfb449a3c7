"""Folders of labels and of predictions whose scores are known."""

import nibabel as nib
import numpy as np
import pytest

from tests.datasets.trees import draw
from vamcei_jax.data.labels import LABEL_VALUES
from vamcei_jax.data.nifti import write_volume
from vamcei_jax.evaluation.metrics import measure
from vamcei_jax.phantom.scanner import write_patient

PATIENTS = 3  # the last one has no label


def predicted(number, step):
  """A patient's truth, moved by some pixels along the rows."""
  return np.roll(draw(number).classes, step, axis=2)


def write_predictions(folder, step, values=LABEL_VALUES, ending=""):
  folder.mkdir()
  for number in range(1, PATIENTS + 1):
    classes = np.array(values)[predicted(number, step)]
    write_volume(folder / f"patient{number}_LGE{ending}.nii.gz", classes, draw(number).affine)


def write_folders(root):
  """Writes labels/ (images, and masks of all but the last patient), near/ and far/ (predictions, moved by 1 and 3)."""
  for number in range(1, PATIENTS + 1):
    stem = root / "labels" / f"patient{number}_LGE"
    write_patient(draw(number), f"{stem}.nii.gz", f"{stem}_manual.nii.gz" if number < PATIENTS else None)
  write_predictions(root / "near", 1)
  write_predictions(root / "far", 3)
  return root


def spacing(number):
  return nib.affines.voxel_sizes(draw(number).affine)


def scores_of(step):
  """Scores of the labelled predictions that are moved by `step` pixels."""
  numbers = range(1, PATIENTS)
  return {f"patient{n}_LGE": measure(predicted(n, step), draw(n).classes, spacing(n)) for n in numbers}


def assert_close(got, expected):
  """Of nested dictionaries of numbers; files hold affines as float32."""
  assert list(got) == list(expected)
  for name, value in expected.items():
    if isinstance(value, dict):
      assert_close(got[name], value)
    else:
      assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-6)
