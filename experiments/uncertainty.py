"""Is the entropy of the draws worth something? Where a segmenter is wrong, and which patients it fails on.

python -m experiments.uncertainty --workdir=runs/uda

Draws the latents for the run's test patients and for more phantoms like them, as `predict --samples` does. Then: how
well does a voxel's entropy tell wrong voxels from right ones (AUROC), in whole volumes and near the heart; and does the
error of the rest fall when the patients of the highest mean entropy, over what is segmented, are set aside?
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
  from scipy import ndimage
  from tqdm import tqdm

  from vamcei_jax.config import preprocess_settings
  from vamcei_jax.data.nifti import Volume
  from vamcei_jax.data.phantom import draw_patient
  from vamcei_jax.data.preprocess import preprocess_image, restore_probabilities
  from vamcei_jax.errors import InputError
  from vamcei_jax.evaluation.metrics import dice
  from vamcei_jax.evaluation.pictures import save_panels
  from vamcei_jax.evaluation.uncertainty import entropy, summarise_draws
  from vamcei_jax.files import write_text
  from vamcei_jax.restore import restore_predict

  workdir = Path(_WORKDIR.value)
  predict, config = restore_predict(workdir, sampled=True)
  if config.data.name != "phantom":
    raise InputError(f"{workdir}: a run on {config.data.name}; this experiment draws patients of the phantom")
  settings, options = preprocess_settings(config), config.data.options
  keys = jax.random.split(jax.random.key(0), _SAMPLES.value)

  voxels = {"entropy": [], "wrong": [], "near": []}
  errors, uncertainties, panels = [], [], []
  first = options.train + options.validation
  for index in tqdm(range(first, first + _PATIENTS.value), "patients", disable=None):
    patient = draw_patient(options.seed, index, config.data.target)
    spacing, shape = Volume(patient.voxels, patient.affine).spacing, patient.voxels.shape
    image = preprocess_image(patient.voxels, spacing, settings)
    probs, _ = summarise_draws(restore_probabilities(predict(image, key), shape, spacing, settings) for key in keys)
    classes, entropies = probs.argmax(-1), entropy(probs)
    structures = (patient.classes > 0) | (classes > 0)
    voxels["entropy"].append(entropies.ravel())
    voxels["wrong"].append((classes != patient.classes).ravel())
    plane = np.ones((1, 3, 3))
    voxels["near"].append(ndimage.binary_dilation(structures, plane, iterations=NEAR).ravel())
    errors.append(1.0 - np.mean(list(dice(classes, patient.classes).values())))
    uncertainties.append(entropies[classes > 0].mean() if (classes > 0).any() else np.log(probs.shape[-1]))
    middle = len(classes) // 2
    grey = np.clip(patient.voxels[middle] / np.percentile(patient.voxels, 99), 0, 1)
    row = [(f"patient{index}, slice {middle}", grey, None), ("truth", grey, patient.classes[middle])]
    row.append((f"prediction, Dice {1 - errors[-1]:.2f}", grey, classes[middle]))
    row.append(("entropy, white: ln 4", entropies[middle] / np.log(4), None))
    row.append(("wrong", (classes != patient.classes)[middle].astype(float), None))
    panels.append(row)

  entropies, wrong, near = (np.concatenate(parts) for parts in voxels.values())
  errors, order = np.array(errors), np.argsort(uncertainties)
  kept = {share: errors[order[: round(len(order) * (1 - share))]].mean() for share in SET_ASIDE}
  results = {
    "patients": len(errors),
    "samples": _SAMPLES.value,
    "auroc": auroc(entropies, wrong),
    "auroc_near_the_heart": auroc(entropies[near], wrong[near]),
    "mean_entropy": {"wrong": float(entropies[wrong].mean()), "right": float(entropies[~wrong].mean())},
    "error_when_set_aside": {f"{share:.0%}": float(error) for share, error in kept.items()},
  }
  write_text(workdir / "uncertainty.json", json.dumps(results, indent=2) + "\n")
  chosen = order[np.linspace(0, len(order) - 1, PICTURED).round().astype(int)]  # from the surest to the least sure
  save_panels(workdir / "uncertainty.png", [panels[i] for i in chosen])
  print(f"{len(errors)} patients, {_SAMPLES.value} draws")
  near_heart = f"{results['auroc_near_the_heart']:.3f} within {NEAR} pixels of the heart"
  print(f"AUROC of the entropy for wrong voxels: {results['auroc']:.3f} in whole volumes, {near_heart}")
  print("set aside        " + "".join(f"{share:>8.0%}" for share in kept))
  print("1 - Dice of rest " + "".join(f"{error:>8.3f}" for error in kept.values()))
  print(f"Pictures and numbers: {workdir}")


def auroc(scores, positive) -> float:
  """The probability that a positive scores higher than a negative one (ties count half)."""
  from scipy.stats import mannwhitneyu

  return float(mannwhitneyu(scores[positive], scores[~positive]).statistic / (positive.sum() * (~positive).sum()))


if __name__ == "__main__":
  command_line.run(main)
