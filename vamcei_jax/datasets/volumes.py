"""What every dataset of volumes shares: its configuration, its features, and how one patient becomes one example."""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from vamcei_jax.data.labels import LABEL_VALUES
from vamcei_jax.data.nifti import Volume
from vamcei_jax.data.preprocess import Preprocess, preprocess_classes, preprocess_image


@dataclasses.dataclass(eq=False)
class VolumesConfig(tfds.core.BuilderConfig):
  """One domain of a dataset, prepared in one way; label_values are those of its mask files, by class."""

  domain: str = ""
  preprocess: Preprocess = Preprocess()
  label_values: tuple[int, ...] = LABEL_VALUES


def dataset_info(builder: tfds.core.DatasetBuilder, **info) -> tfds.core.DatasetInfo:
  """One example a patient: the prepared stack, and its truth on the grid that it came on.

  image: (D, h, w) in [0, 1] and mask: (D, h, w) class indices, on the network's grid.
  truth: (D, H, W) class indices on the canonical original grid, with that grid's affine: what is scored.
  labelled: False where no mask exists; mask and truth are zeros then.
  """
  volume = lambda dtype: tfds.features.Tensor(shape=(None, None, None), dtype=dtype, encoding="zlib")
  features = tfds.features.FeaturesDict({
    "patient": tfds.features.Text(),
    "image": volume(np.float32),
    "mask": volume(np.uint8),
    "truth": volume(np.uint8),
    "affine": tfds.features.Tensor(shape=(4, 4), dtype=np.float64, encoding="zlib"),
    "labelled": tfds.features.Scalar(np.bool_),
  })
  return tfds.core.DatasetInfo(builder=builder, features=features, disable_shuffling=True, **info)


def example(patient: str, volume: Volume, classes: np.ndarray | None, preprocess: Preprocess) -> dict:
  """One patient as an example; `classes` is the (D, H, W) mask of class indices, or None where there is none."""
  truth = np.zeros(volume.voxels.shape, np.uint8) if classes is None else classes
  return {
    "patient": patient,
    "image": preprocess_image(volume.voxels, volume.spacing, preprocess),
    "mask": preprocess_classes(truth, volume.spacing, preprocess),
    "truth": truth,
    "affine": volume.affine,
    "labelled": classes is not None,
  }
