"""Compares criteria that choose a network without labels, over the networks of experiments.two_hospitals.

python -m experiments.label_free_choice --data=DIR --workdir=runs/two_hospitals

Both flags are those of the comparison, which must have run. Each criterion ranks the networks of a hospital, of all
methods and seeds but "supervised", by their predictions for the labelled patients. The labels then say how good the
ranking is. Writes label_free_choice.csv, with the criteria and the Dice of each network, and label_free_choice.md: for
each criterion, its rank correlation with the Dice, and the Dice of the network that it chooses.

The criteria, all higher for better networks:

- score: the Dice that predict expects, see docs/quality.md;
- entropy: minus the mean entropy of pixels (P. Morerio et al., ICLR 2018);
- density: the soft neighbourhood density of pixels (K. Saito et al., ICCV 2021);
- agreement: the mean Dice with the majority vote of all networks (as D. Hu et al., NeurIPS 2024, with masks).

Entropy and density are those of pixels that at least one network takes for heart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float, Int
from scipy.special import entr, log_softmax
from scipy.stats import spearmanr
from tqdm import tqdm

import vamcei_jax
from experiments.hospital_files import write_rows
from experiments.two_hospitals import HOSPITALS, METHODS, SMOOTH, TABLE, read_rows
from vamcei_jax import cli
from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.data.nifti import load_image
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.metrics import dice
from vamcei_jax.files import expanded, write_text
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS
CRITERIA = ("score", "entropy", "density", "agreement")
TEMPERATURE = 0.05  # of the density, as there
PIXELS = 2000  # of each volume, for the density
CHOICE = "label_free_choice"


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("data", None, "DIR: Folder of cine, lge and emidec.")
    flags.DEFINE_string("workdir", None, "DIR: Folder of the comparison.")


def main() -> None:
  """Runs the command."""
  data, workdir = expanded(cli.required_path("data")), expanded(cli.required_path("workdir"))
  rows = [row for row in read_rows(workdir / TABLE) if not METHODS[row["method"]].supervised]
  if not rows:
    raise InputError(f"{workdir / TABLE}: no results; run python -m experiments.two_hospitals first")
  networks = []
  for folder, hospital in HOSPITALS.items():
    networks += judge([row for row in rows if row["hospital"] == hospital], data / folder, workdir / folder)
  write_rows(workdir / f"{CHOICE}.csv", networks)
  write_text(workdir / f"{CHOICE}.md", table(networks))
  print(table(networks))


def judge(rows: Sequence[Mapping[str, Any]], domain: Path, runs: Path) -> list[dict[str, Any]]:
  """The criteria and the mean Dice of each network of a hospital.

  Args:
    rows: of the table of the comparison, of this hospital.
    domain: folder of the hospital's images.
    runs: folder of the hospital's runs.
  """
  names = list(dict.fromkeys((row["method"], row["seed"]) for row in rows))
  patients = sorted({row["patient"] for row in rows})
  structures = [name for name in STRUCTURES if name in rows[0]]
  folder = lambda method, seed: runs / f"seed{seed}" / method
  masks = {
    patient: np.stack([load_image(folder(*name) / "masks" / f"{patient}.nii.gz")[1] for name in names])
    for patient in patients
  }
  votes = {patient: vote(of_patient) for patient, of_patient in masks.items()}
  networks = []
  for number, (method, seed) in enumerate(tqdm(names, runs.name, unit="network", disable=None)):
    segmenter = vamcei_jax.load_segmenter(folder(method, seed), postprocess=True, smooth=SMOOTH)
    criteria = []
    for patient in patients:
      heart = masks[patient].any(0)
      probs = segmenter(domain / "images" / f"{patient}.nii.gz").probabilities[heart]
      agreed = dice(masks[patient][number], votes[patient])
      criteria.append((-entr(probs).sum(-1).mean(), density(probs), np.mean([agreed[each] for each in structures])))
    mine = [row for row in rows if (row["method"], row["seed"]) == (method, seed)]
    values = np.mean([row["score"] for row in mine]), *np.mean(criteria, 0)
    true = np.mean([row[each] for row in mine for each in structures])
    this = {"hospital": rows[0]["hospital"], "method": method, "seed": seed, "Dice": true}
    networks.append(this | dict(zip(CRITERIA, values, strict=True)))
  return networks


def vote(masks: Int[np.ndarray, "N X Y Z"]) -> Int[np.ndarray, "X Y Z"]:
  """The class that most of N masks have; of equal ones, the first."""
  counts = np.stack([(masks == number).sum(0) for number in range(len(STRUCTURES) + 1)])
  return counts.argmax(0)


def density(probs: Float[np.ndarray, "N K"]) -> float:
  """Soft neighbourhood density of class probabilities (Saito et al., ICCV 2021, eq. 3): higher for denser clusters.

  The mean entropy, in nats, of each pixel's similarities to the others. At most PIXELS of N pixels are drawn, always
  the same.
  """
  drawn = probs[np.random.default_rng(0).permutation(len(probs))[:PIXELS]]
  unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
  similarities = unit @ unit.T / TEMPERATURE
  np.fill_diagonal(similarities, -np.inf)
  return float(entr(np.exp(log_softmax(similarities, axis=1))).sum(1).mean())


def table(networks: Sequence[Mapping[str, Any]]) -> str:
  """A Markdown table: rank correlation of each criterion with the Dice, and Dice of the network that it chooses."""
  columns = ("hospital", "criterion", "rank correlation", "Dice of its choice", "mean Dice", "best Dice", "networks")
  lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
  for hospital in dict.fromkeys(row["hospital"] for row in networks):
    chosen = [row for row in networks if row["hospital"] == hospital]
    true = [row["Dice"] for row in chosen]
    for name in CRITERIA:
      values = [row[name] for row in chosen]
      choice, correlation = true[int(np.argmax(values))], spearmanr(values, true).statistic
      numbers = f"{correlation:.2f} | {choice:.3f} | {np.mean(true):.3f} | {max(true):.3f} | {len(true)}"
      lines.append(f"| {hospital} | {name} | {numbers} |")
  return "\n".join(lines)


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
