"""The slices that a stage learns from; for a student, with the predictions of its teachers."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from vamcei_jax.config.schema import StageConfig
from vamcei_jax.data.loader import load_stacks, patient_names
from vamcei_jax.data.stream import StoredSlices
from vamcei_jax.inference.postprocess import smooth_slices
from vamcei_jax.inference.volumes import predict_volume
from vamcei_jax.methods import distillation, supervised
from vamcei_jax.methods.distillation import mean_probabilities
from vamcei_jax.methods.state import Params
from vamcei_jax.pipeline.domains import Datasets, scored_patients
from vamcei_jax.pipeline.stages import ADAPT, DISTILL, STAGES, teacher_weights
from vamcei_jax.pipeline.teacher_predictions import teacher_maps

Stacks = Mapping[str, Sequence[tuple[np.ndarray, float]]]


def load_stage(
  config: StageConfig,
  datasets: Datasets,
  predict: Mapping[str, Callable],
  networks: Mapping[str, Mapping[str, Params]],
) -> dict[str, StoredSlices]:
  """The slices that a stage learns from, by domain; a student's target has the map "teacher".

  Args:
    config: of the stage.
    datasets: name -> prepared dataset.
    predict, networks: stage -> prediction and networks, of the teachers at least.
  """
  stage, extra_maps = STAGES[config.name], {}
  if config.name == DISTILL:
    probs = teacher_probabilities(config, predict, networks, training_stacks(config, datasets))
  elif config.name == ADAPT:
    probs = teacher_maps(config, datasets, patient_names(datasets["target"], "train"))
  if stage.method is distillation:
    # float16 saves memory.
    extra_maps["teacher"] = np.concatenate(probs).astype(np.float16)
  slices = {}
  if stage.method is not supervised:
    slices["target"] = StoredSlices(datasets[stage.target], "train", labels=False, beside=extra_maps)
  if stage.source in datasets:
    slices["source"] = StoredSlices(datasets[stage.source], "train", labels=True, empty=config.data.empty_slices)
  return slices


def training_stacks(config: StageConfig, datasets: Datasets) -> Stacks:
  """Teacher -> the training volumes of its target, each (D, h, w) with the mm between its slices."""
  stacks = cache(lambda dataset: load_stacks(datasets[dataset], "train"))
  return {teacher: stacks(STAGES[teacher].target) for teacher in teacher_weights(config)}


def scored_stacks(config: StageConfig, datasets: Datasets) -> Stacks:
  """Teacher -> the volumes of its target on which the run is scored."""
  patients = {teacher: scored_patients(datasets[STAGES[teacher].target])[1] for teacher in teacher_weights(config)}
  return {teacher: [(each.image, each.spacing[0]) for each in images] for teacher, images in patients.items()}


def teacher_probabilities(
  config: StageConfig, predict: Mapping[str, Callable], networks: Mapping[str, Mapping[str, Params]], stacks: Stacks
) -> list[np.ndarray]:
  """The teachers' mean class probabilities (D, h, w, K) of each patient, smoothed along the stack.

  Args:
    config: of the student.
    predict, networks: stage -> prediction and networks.
    stacks: teacher -> the same patients in the contrast that the teacher was trained on.
  """
  weights = teacher_weights(config)
  means = []
  for images in zip(*(stacks[teacher] for teacher in weights), strict=True):
    pairs = zip(weights, images, strict=True)
    probs = [predict_volume(predict[teacher], networks[teacher], image) for teacher, (image, _) in pairs]
    mean, distance = mean_probabilities(probs, tuple(weights.values())), images[0][1]
    means.append(smooth_slices(mean, distance, config.distillation.smooth))
  return means
