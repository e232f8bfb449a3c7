"""Common to all datasets of volumes: their configuration, their features, and a patient as an example."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds

from vamcei_jax.data.labels import LABEL_VALUES, LabelValues
from vamcei_jax.data.nifti import Volume
from vamcei_jax.data.preprocess import Preprocess, foreground_centre, preprocess_classes, preprocess_image

ROLES = ("source", "target")


@dataclasses.dataclass(eq=False)
class VolumesConfig(tfds.core.BuilderConfig):
  """One domain of a dataset, prepared in one way.

  role: "source", whose masks are used for training, or "target", whose masks are used for evaluation alone.
  label_values: of each class, in its mask files.
  plane: of the slices, see vamcei_jax/data/geometry.py.
  centres: of the network's field: "image"; "mask", the foreground of each patient's mask; or patient -> pixel
    (row, column) of the canonical original grid.
  orientation: of slices whose header has lost the directions of rows and columns: "header" believes it, "file" keeps
    rows and columns as they are stored.
  turns: patient -> number in TURNS by which its slices are turned; of patients that are not named, 0.
  root: folder of the files.
  left_out: files that cannot be used, and why.
  digests: digest of an image -> its file, of the images that can be used.
  lost: names of the patients whose headers have lost the directions.
  """

  domain: str = ""
  role: str = "source"
  preprocess: Preprocess = Preprocess()
  label_values: LabelValues = LABEL_VALUES
  plane: str = "short_axis"
  centres: str | Mapping[str, tuple[float, float]] = "image"
  orientation: str = "header"
  turns: Mapping[str, int] = dataclasses.field(default_factory=dict)
  root: str = ""
  left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
  digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
  lost: Sequence[str] = ()


def dataset_info(builder: tfds.core.DatasetBuilder, **info) -> tfds.core.DatasetInfo:
  """The features of an example. An example is a patient: the prepared stack, and the truth on the original grid.

  image: (D, h, w) in [0, 1] on the network's grid.
  mask: (D, h, w) class indices on the network's grid.
  truth: (D, H, W) class indices on the canonical original grid, on which predictions are scored.
  affine: (4, 4) of the canonical original grid.
  centre: pixel (row, column) of the original grid on which the network's field is centred.
  range: lowest and highest intensity of the original image.
  labelled: whether there is a mask that may be used; without it, mask and truth are zeros.
  """
  volume = lambda dtype: tfds.features.Tensor(shape=(None, None, None), dtype=dtype, encoding="zlib")
  numbers = lambda *shape: tfds.features.Tensor(shape=shape, dtype=np.float64, encoding="zlib")
  features = tfds.features.FeaturesDict(
    {
      "patient": tfds.features.Text(),
      "image": volume(np.float32),
      "mask": volume(np.uint8),
      "truth": volume(np.uint8),
      "affine": numbers(4, 4),
      "centre": numbers(2),
      "range": numbers(2),
      "labelled": tfds.features.Scalar(np.bool_),
    }
  )
  return tfds.core.DatasetInfo(builder=builder, features=features, disable_shuffling=True, **info)


def example(patient: str, volume: Volume, classes: np.ndarray | None, config: VolumesConfig) -> dict:
  """One patient as an example, see `dataset_info`.

  Args:
    patient: its name.
    volume: the image.
    classes: (D, H, W) class indices of the mask, or None without a mask.
    config: of the domain.
  """
  truth = np.zeros(volume.voxels.shape, np.uint8) if classes is None else classes
  centre = _centre(patient, truth, config)
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


def _centre(patient: str, truth: np.ndarray, config: VolumesConfig) -> tuple[float, float]:
  """The pixel (row, column) of the original grid on which the network's field is centred."""
  if not isinstance(config.centres, str):
    return config.centres[patient]
  return foreground_centre(truth > 0 if config.centres == "mask" else np.zeros_like(truth))
