import numpy as np
import pytest

from vamcei_jax.data.loader import load_patients, load_slices
from vamcei_jax.data.preprocess import Preprocess
from vamcei_jax.datasets import prepare
from vamcei_jax.datasets.translated import prepare_translated


@pytest.fixture(scope="module")
def original(prepared):
  preprocess = Preprocess(size=(32, 32), zoom=1 / 3)
  options = {"seed": 1, "train": 2, "validation": 1, "test": 2}
  return prepare(
    "phantom",
    "bssfp",
    "source",
    data_dir=str(prepared),
    root=None,
    preprocess=preprocess,
    label_values=(0, 200, 500, 600),
    **options,
  )


def test_translated_data_keep_masks_affines_and_patients(original, tmp_path):
  negative = prepare_translated(original, lambda image: 1.0 - image, tmp_path / "negative")
  assert set(negative.info.splits) == set(original.info.splits)
  for split in original.info.splits:
    pairs = list(zip(original.as_data_source(split), negative.as_data_source(split), strict=True))
    assert pairs
    for was, now in pairs:
      np.testing.assert_array_equal(now["image"], 1.0 - was["image"])
      assert now["patient"] == was["patient"]
      assert now["labelled"] == was["labelled"]
      for name in ("mask", "truth", "affine"):
        np.testing.assert_array_equal(now[name], was[name])


def test_they_load_like_any_dataset_and_are_made_once(original, tmp_path):
  prepare_translated(original, lambda image: 0.5 * image, tmp_path)

  def fail(image):
    raise AssertionError("translated again")

  again = prepare_translated(original, fail, tmp_path)
  np.testing.assert_array_equal(
    load_slices(again, "train", labels=True)["image"], 0.5 * load_slices(original, "train", labels=True)["image"]
  )
  names = lambda builder: [(patient.name, patient.spacing) for patient in load_patients(builder, "test")]
  assert names(again) == names(original)
