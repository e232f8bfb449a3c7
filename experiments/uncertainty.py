"""Measures whether the entropy of latent samples finds wrong voxels, and the patients on which a segmenter fails.

python -m experiments.uncertainty --workdir=runs/uda

Samples the latents for phantoms like the run's test patients, as `predict --samples` does. It reports how well the
entropy of a voxel tells wrong voxels from right ones (AUROC), in whole volumes and near the heart, and the error of the
other patients when those of the highest mean entropy over their segmented voxels are left out. It also reports the Dice
of the options of prediction.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import flags

from vamcei_jax import cli
from vamcei_jax.data.labels import CLASSES
from vamcei_jax.errors import InputError
from vamcei_jax.usage import REQUIRED, group

if TYPE_CHECKING:
  from vamcei_jax.inference.segmenter import Segmenter
  from vamcei_jax.phantom.scanner import Phantom

FLAGS = flags.FLAGS
PATIENTS = 40  # phantoms, from the run's first test patient on
SAMPLES = 20  # of the latents
LEFT_OUT = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # shares of the patients
NEAR = 3  # pixels around the true and the predicted structures: "near the heart"
PICTURED = 6  # patients
SAMPLED = "latent samples"


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string(
      "workdir", None, "DIR: Folder of a run on the phantom; uncertainty.json and .png are written there."
    )


def main() -> None:
  """Runs the command."""
  measure_uncertainty(cli.required_path("workdir"))


def measure_uncertainty(workdir: Path, patients: int = PATIENTS, samples: int = SAMPLES) -> dict:
  """Writes uncertainty.json and uncertainty.png, prints a summary, and returns the content of the former.

  Args:
    workdir: of a run on the phantom.
    patients: number of phantoms.
    samples: number of latent samples.

  Raises:
    InputError: the workdir has no run on the phantom's uncropped images.
  """
  from tqdm import tqdm

  from vamcei_jax.evaluation.figures import save_panels
  from vamcei_jax.files import write_text
  from vamcei_jax.inference.load import load_segmenter
  from vamcei_jax.phantom.scanner import draw_patient

  options = {SAMPLED: {"samples": samples}, "latent means": {}, "test-time augmentation": {"tta": True}}
  segmenters = {name: load_segmenter(workdir, **chosen) for name, chosen in options.items()}
  data = segmenters[SAMPLED].config.data
  if data.name != "phantom" or data.located:
    raise InputError(f"{workdir}: not a run on the phantom's uncropped images, which this experiment draws")
  first = data.options["train"] + data.options["validation"]
  cases = []
  for index in tqdm(range(first, first + patients), "patients", disable=None):
    patient = draw_patient(data.options["seed"], index, data.target)
    cases.append(examine(f"patient{index}", patient, segmenters))

  order = np.argsort([case.uncertainty for case in cases])  # the least uncertain patient first
  results = {"patients": patients, "samples": samples, **summarise_cases([cases[i] for i in order])}
  write_text(workdir / "uncertainty.json", json.dumps(results, indent=2) + "\n")
  pictured = order[np.linspace(0, patients - 1, PICTURED).round().astype(int)]
  save_panels(workdir / "uncertainty.png", [panels(cases[i]) for i in pictured])
  print(f"{describe(results)}\nPicture and numbers: {workdir}")
  return results


class Case(NamedTuple):
  """Predictions of a phantom against the truth; maps and `uncertainty` are of the latent samples."""

  name: str
  patient: "Phantom"
  classes: np.ndarray  # (D, H, W)
  entropy: np.ndarray  # (D, H, W) in nats
  wrong: np.ndarray  # (D, H, W) whether a class is not the true one
  near: np.ndarray  # (D, H, W) whether a voxel is near the heart
  uncertainty: float  # mean entropy over segmented voxels; without any, that of a uniform distribution
  dice: dict[str, float]  # option of prediction -> mean over structures


def examine(name: str, patient: "Phantom", segmenters: Mapping[str, "Segmenter"]) -> Case:
  """Predicts a phantom.

  Args:
    name: of the patient.
    patient: with the true classes.
    segmenters: option of prediction -> segmenter; that of SAMPLED samples its latents.
  """
  import nibabel as nib
  from scipy import ndimage

  from vamcei_jax.evaluation.metrics import dice
  from vamcei_jax.inference.postprocess import postprocess

  volume = nib.Nifti1Image(patient.voxels, patient.affine)
  predictions = {option: segmenter(volume) for option, segmenter in segmenters.items()}
  masks = {option: prediction.probabilities.argmax(-1) for option, prediction in predictions.items()}
  masks |= {f"{option}, postprocessed": postprocess(each.probabilities) for option, each in predictions.items()}
  classes, entropy = masks[SAMPLED], predictions[SAMPLED].entropy
  heart = (patient.classes > 0) | (classes > 0)
  return Case(
    name=name,
    patient=patient,
    classes=classes,
    entropy=entropy,
    wrong=classes != patient.classes,
    near=ndimage.binary_dilation(heart, np.ones((1, 3, 3)), iterations=NEAR),
    uncertainty=float(entropy[classes > 0].mean()) if classes.any() else float(np.log(len(CLASSES))),
    dice={option: float(np.mean(list(dice(mask, patient.classes).values()))) for option, mask in masks.items()},
  )


def summarise_cases(cases: Sequence[Case]) -> dict[str, Any]:
  """Statistics over patients.

  Args:
    cases: of examine, the least uncertain patient first.

  Returns:
    auroc and auroc_near_the_heart of the entropy for wrong voxels; mean_entropy of wrong and of right voxels, in nats;
    error_when_left_out: share of the patients -> 1 - mean Dice of the others; dice: option -> mean.
  """
  join = lambda name: np.concatenate([getattr(case, name).ravel() for case in cases])
  entropy, wrong, near = join("entropy"), join("wrong"), join("near")
  errors = np.array([1.0 - case.dice[SAMPLED] for case in cases])
  remaining = {share: errors[: round(len(cases) * (1 - share))] for share in LEFT_OUT}
  return {
    "auroc": auroc(entropy, wrong),
    "auroc_near_the_heart": auroc(entropy[near], wrong[near]),
    "mean_entropy": {"wrong": float(entropy[wrong].mean()), "right": float(entropy[~wrong].mean())},
    "error_when_left_out": {f"{share:.0%}": float(values.mean()) for share, values in remaining.items()},
    "dice": {option: float(np.mean([case.dice[option] for case in cases])) for option in cases[0].dice},
  }


def describe(results: Mapping[str, Any]) -> str:
  """The results as text."""
  errors = results["error_when_left_out"]
  near_heart = f"{results['auroc_near_the_heart']:.3f} within {NEAR} pixels of the heart"
  lines = [
    f"{results['patients']} patients, {results['samples']} latent samples",
    f"AUROC of the entropy for wrong voxels: {results['auroc']:.3f} in whole volumes, {near_heart}",
    "left out             " + "".join(f"{share:>8}" for share in errors),
    "1 - Dice of the rest " + "".join(f"{error:>8.3f}" for error in errors.values()),
  ]
  return "\n".join(lines + [f"Dice {value:.3f}  {option}" for option, value in results["dice"].items()])


def panels(case: Case) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
  """A row of the picture: image, truth, prediction, entropy and errors of the middle slice."""
  voxels, truth = case.patient.voxels, case.patient.classes
  middle = len(voxels) // 2
  grey = np.clip(voxels[middle] / np.percentile(voxels, 99), 0, 1)
  return [
    (f"{case.name}, slice {middle}", grey, None),
    ("truth", grey, truth[middle]),
    (f"prediction, Dice {case.dice[SAMPLED]:.2f}", grey, case.classes[middle]),
    ("entropy, white: ln 4", case.entropy[middle] / np.log(len(CLASSES)), None),
    ("wrong", case.wrong[middle].astype(float), None),
  ]


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
  """The probability that a positive has a higher score than a negative; ties count half.

  Args:
    scores: (N,).
    positive: (N,) bool.
  """
  from scipy.stats import mannwhitneyu

  return float(mannwhitneyu(scores[positive], scores[~positive]).statistic / (positive.sum() * (~positive).sum()))


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
