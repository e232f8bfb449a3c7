"""Compares criteria that choose a network without labels, over the networks of experiments.two_hospitals.

python -m experiments.label_free_choice --data=DIR --workdir=runs/two_hospitals --cine=ACDC

--data and --workdir are those of the comparison, which must have run. Each criterion has a value for each network of a
hospital: for all methods and seeds but "supervised", from the predictions for the labelled patients. For each
criterion, the network with the highest value is chosen. The labels then say how good the choice is. Writes
label_free_choice.csv, with the criteria and the Dice of each network, and label_free_choice.md: for each criterion, its
rank correlation with the Dice, and the Dice of the chosen network.

The score is the Dice that predict expects (docs/results-quality.md); its constants were chosen on these patients. The
entropy is minus the mean entropy of pixels (P. Morerio et al., ICLR 2018), and the density is their soft neighbourhood
density (K. Saito et al., ICCV 2021): of the pixels that at least one network predicts as a structure with labels. The
agreement is the mean Dice with the majority vote of all networks; D. Hu et al. (NeurIPS 2024) average probabilities
instead. The criterion "cine" sees no image of the hospital: it is the mean Dice on volumes of --cine, with the random
contrasts and shapes of configs/two_hospitals.py. The labels there must have the values 1 Myo, 2 LV and 3 RV, or 200,
500 and 600.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from jaxtyping import Float, Int
from scipy.special import softmax
from scipy.stats import spearmanr
from tqdm import tqdm

from configs import two_hospitals
from experiments.tables import write_rows
from experiments.two_hospitals import HOSPITALS, METHODS, TABLE, labelled, read_rows, segmenter_of
from vamcei_jax import cli
from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.data.nifti import load_image
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.metrics import dice
from vamcei_jax.files import write_text
from vamcei_jax.inference.uncertainty import entropy
from vamcei_jax.usage import REQUIRED, group

if TYPE_CHECKING:
  from vamcei_jax.data.scan import Scan
  from vamcei_jax.inference.segmenter import Segmenter

Case = tuple["Scan", Int[np.ndarray, "D H W"]]
CRITERIA = ("score", "entropy", "density", "agreement", "cine")
CINE = 20  # volumes at most, for this criterion
TEMPERATURE = 0.05  # of the density, as in Saito et al.
PIXELS = 2000  # of each volume at most, for the density
STEM = "label_free_choice"  # of the names of the two files


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("data", None, "DIR: Folder of cine, lge and emidec.")
    flags.DEFINE_string("workdir", None, "DIR: Folder of the comparison.")
    flags.DEFINE_string("cine", None, "DIR: Folder of images and labels of cine MR that no network has seen: ACDC's.")


def main() -> None:
  """Runs the command."""
  data, workdir = cli.required_path("data"), cli.required_path("workdir")
  rows = [row for row in read_rows(workdir / TABLE) if not METHODS[row["method"]].supervised]
  for hospital in HOSPITALS.values():
    if hospital not in {row["hospital"] for row in rows}:
      raise InputError(f"{workdir / TABLE}: no results of {hospital}; run python -m experiments.two_hospitals first")
  cine, networks = augmented_cine(cli.required_path("cine")), []
  for folder, hospital in HOSPITALS.items():
    networks += judge([row for row in rows if row["hospital"] == hospital], data / folder, workdir / folder, cine)
  write_rows(workdir / f"{STEM}.csv", networks)
  write_text(workdir / f"{STEM}.md", table(networks))
  print(table(networks))


def augmented_cine(folder: Path) -> list[Case]:
  """Cine volumes with random contrasts and shapes, always the same ones, and their class indices.

  All slices of a volume are changed alike. Slices without a structure are left out: there, masks of cine MR end at
  other places than those of LGE.

  Args:
    folder: of images and labels; the labels have the values of data.label_values in configs/two_hospitals.py.

  Raises:
    InputError: no image has a mask, one of them cannot be read, or a mask has no structure.
  """
  # Imported late, so that wrong flags are named at once.
  import jax

  from vamcei_jax.config.schema import AugmentConfig
  from vamcei_jax.data.augment import augment
  from vamcei_jax.data.nifti import read_classes, read_volume
  from vamcei_jax.data.preprocess import foreground_centre, preprocess_classes, preprocess_image, preprocess_settings
  from vamcei_jax.data.scan import scan_of_volume

  names = labelled(folder)
  if not names:
    raise InputError(f"{folder}: no image with labels/NAME.nii.gz; correct --cine")
  config = two_hospitals.get_config()
  settings, strengths = preprocess_settings(config.data), AugmentConfig(**config.augment)
  change = jax.jit(lambda example, key: augment(example, key, settings.size, strengths))
  cases = []
  for number in np.linspace(0, len(names) - 1, min(CINE, len(names))).round().astype(int).tolist():
    image, label = (folder / kind / f"{names[number]}.nii.gz" for kind in ("images", "labels"))
    volume = read_volume(image, keep_lost=True)  # they lie as those of MS-CMRSeg do
    classes = read_classes(label, volume, config.data.label_values)
    field = (volume.spacing, settings, foreground_centre(classes > 0))
    maps = zip(preprocess_image(volume.voxels, *field), preprocess_classes(classes, *field), strict=True)
    slices = [{"image": voxels, "label": truth} for voxels, truth in maps if truth.any()]
    if not slices:
      raise InputError(f"{label}: no structure in the mask; take it out of labels")
    changed = [change(each, jax.random.key(number)) for each in slices]
    voxels, truth = (np.stack([each[name] for each in changed]) for name in ("image", "label"))
    affine = volume.affine.copy()
    affine[:, 1:3] *= np.divide(settings.spacing, volume.spacing[1:])
    # No search for the orientation: it takes eight times as long, and in a training, there is none.
    changed_volume = dataclasses.replace(volume, voxels=voxels, affine=affine, lost=False)
    cases.append((scan_of_volume(names[number], changed_volume), truth))
  return cases


def cine_dice(segmenter: "Segmenter", cases: Sequence[Case], structures: Sequence[str]) -> float:
  """Mean Dice over cases and structures."""
  scores = [dice(segmenter(scan).mask, truth) for scan, truth in cases]
  return float(np.mean([of_case[name] for of_case in scores for name in structures]))


def judge(rows: Sequence[Mapping[str, Any]], domain: Path, runs: Path, cine: Sequence[Case]) -> list[dict[str, Any]]:
  """The criteria and the mean Dice of each network of a hospital.

  Args:
    rows: of the table of the comparison, of this hospital.
    domain: folder of the hospital's images.
    runs: folder of the hospital's runs.
    cine: see augmented_cine.

  Raises:
    InputError: a mask or an image is missing, has another size than the others, or has no heart in any mask.
  """
  names = list(dict.fromkeys((row["method"], row["seed"]) for row in rows))
  structures = [name for name in STRUCTURES if name in rows[0]]
  folders = [runs / f"seed{seed}" / method for method, seed in names]
  masks = {patient: read_masks(folders, patient) for patient in sorted({row["patient"] for row in rows})}
  classes = [STRUCTURES.index(name) + 1 for name in structures]
  hearts = {patient: np.isin(of_patient, classes).any(0) for patient, of_patient in masks.items()}
  images = {patient: domain / "images" / f"{patient}.nii.gz" for patient in masks}
  for patient, image in images.items():
    if load_image(image)[1].shape != hearts[patient].shape:
      raise InputError(f"{image}: has another size than its masks; use the --data of the comparison")
    if hearts[patient].sum() < 2:
      raise InputError(f"{image}: no network predicts a heart there; take its mask out of labels, and compare again")
  votes = {patient: vote(of_patient) for patient, of_patient in masks.items()}
  networks = []
  for number, (method, seed) in enumerate(tqdm(names, runs.name, unit="network", disable=None)):
    segmenter, values = segmenter_of(folders[number]), []
    for patient, image in images.items():
      probs = segmenter(image).probabilities[hearts[patient]]
      agreed = dice(masks[patient][number], votes[patient])
      values.append((-entropy(probs).mean(), density(probs), np.mean([agreed[name] for name in structures])))
    of_network = [row for row in rows if (row["method"], row["seed"]) == (method, seed)]
    score, true = (
      np.mean([row[name] for row in of_network for name in columns]) for columns in (["score"], structures)
    )
    network = {"hospital": rows[0]["hospital"], "method": method, "seed": seed, "Dice": true}
    on_cine = cine_dice(segmenter, cine, structures)
    networks.append(network | dict(zip(CRITERIA, (score, *np.mean(values, 0), on_cine), strict=True)))
  return networks


def read_masks(folders: Sequence[Path], patient: str) -> Int[np.ndarray, "N X Y Z"]:
  """The masks of a patient in the folders of N runs.

  Raises:
    InputError: a mask is missing, or has another size.
  """
  masks = []
  for folder in folders:
    file = folder / "masks" / f"{patient}.nii.gz"
    masks.append(load_image(file)[1])
    if masks[-1].shape != masks[0].shape:
      raise InputError(f"{file}: has another size than the masks of other runs; run the comparison again")
  return np.stack(masks)


def vote(masks: Int[np.ndarray, "N X Y Z"]) -> Int[np.ndarray, "X Y Z"]:
  """The class that most of N masks have; of equal ones, the first."""
  counts = np.stack([(masks == number).sum(0) for number in range(len(STRUCTURES) + 1)])
  return counts.argmax(0)


def density(probs: Float[np.ndarray, "N K"]) -> float:
  """Soft neighbourhood density of class probabilities (Saito et al., ICCV 2021): higher for denser clusters.

  The mean entropy, in nats, of each pixel's similarities to the others. Of more than PIXELS pixels, as many are drawn,
  always the same.
  """
  drawn = probs[np.random.default_rng(0).permutation(len(probs))[:PIXELS]]
  unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
  similarities = unit @ unit.T / TEMPERATURE
  np.fill_diagonal(similarities, -np.inf)
  return float(entropy(softmax(similarities, axis=1)).mean())


def table(networks: Sequence[Mapping[str, Any]]) -> str:
  """A Markdown table: rank correlation of each criterion with the Dice, and Dice of the network that it chooses."""
  columns = ("hospital", "criterion", "rank correlation", "Dice of its choice", "mean Dice", "best Dice", "networks")
  lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
  for hospital in dict.fromkeys(row["hospital"] for row in networks):
    chosen = [row for row in networks if row["hospital"] == hospital]
    true = [row["Dice"] for row in chosen]
    for name in CRITERIA:
      values = [row[name] for row in chosen]
      # Two values have a correlation of 1 or -1, equal ones have none.
      rank = f"{spearmanr(values, true).statistic:.2f}" if len({*values}) > 2 and len({*true}) > 1 else "–"
      choice = true[int(np.argmax(values))]
      numbers = f"{rank} | {choice:.3f} | {np.mean(true):.3f} | {max(true):.3f} | {len(true)}"
      lines.append(f"| {hospital} | {name} | {numbers} |")
  return "\n".join(lines)


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
