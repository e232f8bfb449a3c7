"""What every dataset of volumes shares: its configuration, its features, and how one patient becomes one example."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds

from vamcei_jax.data.labels import LABEL_VALUES, LabelValues
from vamcei_jax.data.nifti import Volume
from vamcei_jax.data.preprocess import Preprocess, foreground_centre, preprocess_classes, preprocess_image

ROLES = ("source", "target")


@dataclasses.dataclass(eq=False)
class VolumesConfig(tfds.core.BuilderConfig):
  """One domain of a dataset, prepared in one way.

  role: "source", whose masks are learnt from, or "target", whose masks are for evaluation alone.
  label_values: those of its mask files, by class.
  view: in which volumes are seen, see vamcei_jax/data/nifti.py.
  centres: what the network's field is centred on: "image"; "mask", the foreground of each patient's mask; or, by
    patient, the pixel (row, column) of the canonical original grid.
  left_out: files that cannot be used, and why.
  digests: digest of an image -> file of those that can.
  """

  domain: str = ""
  role: str = "source"
  preprocess: Preprocess = Preprocess()
  label_values: LabelValues = LABEL_VALUES
  view: str = "short_axis"
  centres: str | Mapping[str, tuple[float, float]] = "image"
  left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
  digests: Mapping[str, str] = dataclasses.field(default_factory=dict)


def dataset_info(builder: tfds.core.DatasetBuilder, **info) -> tfds.core.DatasetInfo:
  """One example a patient: the prepared stack, and its truth on the grid that it came on.

  image: (D, h, w) in [0, 1] and mask: (D, h, w) class indices, on the network's grid.
  truth: (D, H, W) class indices on the canonical original grid, with that grid's affine: what is scored.
  centre: the pixel (row, column) of the original grid on which the network's field is centred.
  range: the lowest and the highest intensity of the original image.
  labelled: False where no mask exists or none may be seen; mask and truth are zeros then.
  """
  volume = lambda dtype: tfds.features.Tensor(shape=(None, None, None), dtype=dtype, encoding="zlib")
  numbers = lambda *shape: tfds.features.Tensor(shape=shape, dtype=np.float64, encoding="zlib")
  features = tfds.features.FeaturesDict({
    "patient": tfds.features.Text(),
    "image": volume(np.float32),
    "mask": volume(np.uint8),
    "truth": volume(np.uint8),
    "affine": numbers(4, 4),
    "centre": numbers(2),
    "range": numbers(2),
    "labelled": tfds.features.Scalar(np.bool_),
  })
  return tfds.core.DatasetInfo(builder=builder, features=features, disable_shuffling=True, **info)


def example(patient: str, volume: Volume, classes: np.ndarray | None, config: VolumesConfig) -> dict:
  """One patient as an example; `classes` is the (D, H, W) mask of class indices, or None where there is none."""
  truth = np.zeros(volume.voxels.shape, np.uint8) if classes is None else classes
  centre = (np.array(truth.shape[1:]) - 1) / 2
  if config.centres == "mask":
    centre = foreground_centre(truth > 0)
  elif config.centres != "image":
    centre = config.centres[patient]
  grid = (volume.spacing, config.preprocess, centre)
  return {
    "patient": patient,
    "image": preprocess_image(volume.voxels, *grid),
    "mask": preprocess_classes(truth, *grid),
    "truth": truth,
    "affine": volume.affine,
    "centre": np.asarray(centre, np.float64),
    "range": np.array([volume.voxels.min(), volume.voxels.max()], np.float64),
    "labelled": classes is not None,
  }
