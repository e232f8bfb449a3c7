"""Unsupervised domain adaptation for cardiac MR segmentation (VAMCEI, IEEE TMI 2024) in JAX and Flax.

    segmenter = vamcei_jax.load_segmenter("weights/lge")
    segmenter("patient1.nii.gz").save("mask.nii.gz")

Importing the package is cheap: JAX and the other libraries are imported when a function is called.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from vamcei_jax.evaluation.scoring import Table
  from vamcei_jax.inference.segmenter import Segmenter

__all__ = ["__version__", "evaluate", "load_segmenter", "train"]
__version__ = "0.2.0"


def load_segmenter(path: str | Path, **options: Any) -> "Segmenter":
  """Loads a trained network for prediction.

  Args:
    path: folder of exported weights, of a run (its last stage is used) or of one stage of a run.
    **options: tta, postprocess, smooth, samples or resample, in place of the weights' defaults; see
      vamcei_jax.config.schema.InferenceConfig.

  Returns:
    A callable, segmenter(volume) -> Prediction. A volume is a NIfTI file, the folder of a DICOM series, a nibabel
    image, or an array (D, H, W) with spacing=(mm, mm, mm).

  Raises:
    InputError: the folder has no network or a damaged one.

  Example:
    >>> segmenter = vamcei_jax.load_segmenter("weights/lge")
    >>> prediction = segmenter("patient1.nii.gz")
    >>> prediction.volumes_ml["LV"]
    >>> prediction.save("mask.nii.gz")
  """
  from vamcei_jax.inference.load import load_segmenter

  return load_segmenter(path, **options)


def train(config: "ConfigDict", workdir: str | Path, retrain: Collection[str] = ()) -> dict[str, Any]:
  """Trains all stages of a configuration; an existing run in the workdir is resumed.

  Args:
    config: of the run, as get_config() of a file in configs/ returns it.
    workdir: folder of the run.
    retrain: stages to train from the start, with all stages that need them.

  Returns:
    The content of results.json. Its "methods" map each stage to the scores of its predictions.

  Raises:
    InputError: config, data or workdir cannot be used.

  Example:
    >>> from configs import uda
    >>> results = vamcei_jax.train(uda.get_config(), "runs/uda")
    >>> results["methods"]["vamcei"]["summary"]["LV"]["dice"]["mean"]
  """
  from vamcei_jax.files import expanded
  from vamcei_jax.pipeline.run import run

  return run(config, expanded(workdir), retrain)


def evaluate(
  predictions: str | Path | Mapping[str, Any],
  labels: str | Path | Mapping[str, Any],
  *,
  label_values: Sequence[Any] = (0, 200, 500, 600),
  against: str | Path | Mapping[str, Any] | None = None,
  images: str | Path | Mapping[str, Any] | None = None,
) -> "Table":
  """Scores predicted masks: Dice, surface distances and volumes.

  Args:
    predictions: folder of masks, one mask, or name -> file.
    labels: the same of the true masks.
    label_values: values of background, Myo, LV and RV in all masks; a tuple folds several values into one class.
    against: other predictions to compare with.
    images: of the patients, for the report.

  Returns:
    A Table of scores over patients.

  Raises:
    InputError: no prediction has a label, or none can be read.

  Example:
    >>> table = vamcei_jax.evaluate("masks", "labels")
    >>> print(table)
    >>> table.summary["LV"]["dice"]["mean"]
    >>> table.save("scores")
  """
  from vamcei_jax.evaluation.scoring import evaluate

  return evaluate(predictions, labels, label_values=label_values, against=against, images=images)


class _Package(ModuleType):
  """Keeps the function `evaluate` when the command line `vamcei_jax.evaluate` is imported as a submodule."""

  def __setattr__(self, name: str, value: Any) -> None:
    if not (name == "evaluate" and isinstance(value, ModuleType)):
      super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
