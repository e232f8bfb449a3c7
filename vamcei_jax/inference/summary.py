"""A prediction in the report on predictions: its numbers, its findings and a small picture."""

from nibabel.orientations import apply_orientation

from vamcei_jax.data.labels import LabelValues, class_indices
from vamcei_jax.data.preprocess import Preprocess, preprocess_image
from vamcei_jax.evaluation.report import Case, Predicted, draw_montage
from vamcei_jax.inference.prediction import Prediction


def describe(prediction: Prediction, name: str, label_values: LabelValues) -> Predicted:
  """The entry of a prediction in the report. It holds no array of the volume.

  Args:
    prediction: of the volume.
    name: of the volume.
    label_values: of the mask.
  """
  volume = prediction.scan.volume
  image = preprocess_image(volume.voxels, volume.spacing, Preprocess(size=volume.voxels.shape[1:]))
  mask = apply_orientation(prediction.mask, prediction.scan.orientation)
  return Predicted(
    name=name,
    volumes_ml=prediction.volumes_ml,
    mass_g=prediction.myocardial_mass_g,
    score=prediction.quality.score,
    findings=tuple((finding.name, finding.text) for finding in prediction.quality.findings),
    montage=draw_montage(Case(image, None, {"prediction": class_indices(mask, label_values)}, volume.spacing[1:])),
  )
