"""Is the entropy of the draws worth something? Where a segmenter is wrong, and which patients it fails on.

python -m experiments.uncertainty --workdir=runs/uda

Draws the latents for the run's test patients and for more phantoms like them, as `predict --samples` does. Then: how
well does a voxel's entropy tell wrong voxels from right ones (AUROC), in whole volumes and near the heart; and does the
error of the rest fall when the patients of the highest mean entropy, over what is segmented, are set aside? Beside it,
the Dice of what else `predict` offers.
"""

import json
from pathlib import Path

from absl import flags

from vamcei_jax import command_line

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run on the phantom; uncertainty.* is written there.")
_PATIENTS = flags.DEFINE_integer("patients", 40, "Phantoms, from the run's first test patient on.", 10)
_SAMPLES = flags.DEFINE_integer("samples", 20, "Draws of the latents.", 2)
flags.mark_flag_as_required("workdir")

SET_ASIDE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
NEAR = 3  # pixels about the true and the predicted structures: "near the heart"
PICTURED = 6


def main() -> None:
  import jax
  import numpy as np
  from tqdm import tqdm

  from vamcei_jax.errors import InputError
  from vamcei_jax.evaluation.pictures import save_panels
  from vamcei_jax.files import write_text
  from vamcei_jax.phantom.scanner import draw_patient
  from vamcei_jax.restore import restore_predict

  workdir = Path(_WORKDIR.value)
  predict, config = restore_predict(workdir, sampled=True)
  predict_views, _ = restore_predict(workdir, views=True)
  if config.data.name != "phantom" or config.data.located:
    raise InputError(f"{workdir}: not a run on the phantom's whole images; this experiment draws patients like its own")
  keys, options = jax.random.split(jax.random.key(0), _SAMPLES.value), config.data.options
  first = options.train + options.validation
  patients = []
  for index in tqdm(range(first, first + _PATIENTS.value), "patients", disable=None):
    patient = draw_patient(options.seed, index, config.data.target)
    patients.append({"name": f"patient{index}"} | judge(patient, predict, predict_views, config, keys))

  entropies, wrong, near = (
    np.concatenate([patient[name].ravel() for patient in patients]) for name in ("entropy", "wrong", "near")
  )
  order = np.argsort([patient["uncertainty"] for patient in patients])  # the surest first
  errors = np.array([1.0 - patients[i]["dice"]["draws"] for i in order])
  kept = {f"{share:.0%}": float(errors[: round(len(order) * (1 - share))].mean()) for share in SET_ASIDE}
  results = {
    "patients": len(patients),
    "samples": _SAMPLES.value,
    "auroc": auroc(entropies, wrong),
    "auroc_near_the_heart": auroc(entropies[near], wrong[near]),
    "mean_entropy": {"wrong": float(entropies[wrong].mean()), "right": float(entropies[~wrong].mean())},
    "error_when_set_aside": kept,
    "dice": {way: float(np.mean([patient["dice"][way] for patient in patients])) for way in patients[0]["dice"]},
  }
  write_text(workdir / "uncertainty.json", json.dumps(results, indent=2) + "\n")
  pictured = order[np.linspace(0, len(order) - 1, PICTURED).round().astype(int)]
  save_panels(workdir / "uncertainty.png", [panels(patients[i]) for i in pictured])

  near_heart = f"{results['auroc_near_the_heart']:.3f} within {NEAR} pixels of the heart"
  print(f"{len(patients)} patients, {_SAMPLES.value} draws")
  print(f"AUROC of the entropy for wrong voxels: {results['auroc']:.3f} in whole volumes, {near_heart}")
  print("set aside        " + "".join(f"{share:>8}" for share in kept))
  print("1 - Dice of rest " + "".join(f"{error:>8.3f}" for error in kept.values()))
  print("\n".join(f"Dice {value:.3f}  {way}" for way, value in results["dice"].items()))
  print(f"Pictures and numbers: {workdir}")


def judge(patient, predict, predict_views, config, keys) -> dict:
  """What draws, means and views of a patient say, held against the truth."""
  import numpy as np
  from scipy import ndimage

  from vamcei_jax.config import preprocess_settings
  from vamcei_jax.data.nifti import Volume
  from vamcei_jax.data.preprocess import preprocess_image, restore_probabilities
  from vamcei_jax.evaluation.metrics import dice
  from vamcei_jax.evaluation.postprocess import postprocess
  from vamcei_jax.evaluation.uncertainty import entropy, summarise_draws

  volume, settings = Volume(patient.voxels, patient.affine), preprocess_settings(config)
  image = preprocess_image(volume.voxels, volume.spacing, settings)
  restore = lambda probs: restore_probabilities(probs, volume.voxels.shape, volume.spacing, settings)
  probs, _ = summarise_draws(restore(predict(image, key)) for key in keys)
  ways = {"draws": probs, "means of the latents": restore(predict(image)), "views": restore(predict_views(image))}
  masks = {way: said.argmax(-1) for way, said in ways.items()}
  masks |= {f"{way}, postprocessed": postprocess(said) for way, said in ways.items()}
  classes, entropies = masks["draws"], entropy(probs)
  heart = (patient.classes > 0) | (classes > 0)
  return {
    "patient": patient,
    "classes": classes,
    "entropy": entropies,
    "wrong": classes != patient.classes,
    "near": ndimage.binary_dilation(heart, np.ones((1, 3, 3)), iterations=NEAR),
    "uncertainty": entropies[classes > 0].mean() if classes.any() else np.log(probs.shape[-1]),
    "dice": {way: np.mean(list(dice(mask, patient.classes).values())) for way, mask in masks.items()},
  }


def panels(judged: dict) -> list[tuple]:
  """A row for a picture: image, truth, prediction, entropy and errors of the middle slice."""
  import numpy as np

  voxels, truth = judged["patient"].voxels, judged["patient"].classes
  middle = len(voxels) // 2
  grey = np.clip(voxels[middle] / np.percentile(voxels, 99), 0, 1)
  return [
    (f"{judged['name']}, slice {middle}", grey, None),
    ("truth", grey, truth[middle]),
    (f"prediction, Dice {judged['dice']['draws']:.2f}", grey, judged["classes"][middle]),
    ("entropy, white: ln 4", judged["entropy"][middle] / np.log(4), None),
    ("wrong", judged["wrong"][middle].astype(float), None),
  ]


def auroc(scores, positive) -> float:
  """The probability that a positive scores higher than a negative one (ties count half)."""
  from scipy.stats import mannwhitneyu

  return float(mannwhitneyu(scores[positive], scores[~positive]).statistic / (positive.sum() * (~positive).sum()))


if __name__ == "__main__":
  command_line.run(main)
