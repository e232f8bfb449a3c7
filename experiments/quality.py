"""How well the score and the findings of a prediction tell good masks from bad ones and from images without a heart.

python -m experiments.quality --weights=weights/mscmrseg_student --mscmrseg=DIR --emidec=DIR --acdc=DIR --output=DIR

The constants of the score were chosen on MS-CMRSeg's LGE 1-5, EMIDEC's labelled volumes and damaged LGE 1-5; ACDC and
damaged EMIDEC chose nothing. Writes quality.csv, with a row for each prediction, and quality.md, the table.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from absl import flags
from scipy import ndimage

from experiments.hospital_files import labelled, with_header
from experiments.tables import write_rows
from experiments.uncertainty import auroc
from vamcei_jax import cli, load_segmenter
from vamcei_jax.data.labels import LABEL_VALUES, STRUCTURES, LabelValues, class_indices
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.metrics import dice
from vamcei_jax.files import write_text
from vamcei_jax.inference.prediction import Prediction
from vamcei_jax.inference.quality import LOW_SCORE
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS
WITHOUT = 100  # volumes without a heart, of each kind
BAD = 0.7  # Dice below which a mask is bad
EVERY = 5  # of ACDC's volumes, of which each patient has two
EMIDEC = 2  # its masks have Myo and LV
# These findings say what was assumed of a volume, and not that its mask may be wrong.
ASSUMPTIONS = ("voxel size assumed", "orientation assumed", "pixels resampled", "heart looked for")


class Sample(NamedTuple):
  """A volume to predict.

  group: row of the table.
  name: of the volume.
  image: its image.
  truth: class indices of its mask, or None without a heart.
  labelled: number of structures, the first, that the mask has.
  """

  group: str
  name: str
  image: nib.Nifti1Image
  truth: np.ndarray | None = None
  labelled: int = len(STRUCTURES)


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("mscmrseg", None, "DIR: The MS-CMRSeg folder.")
    flags.DEFINE_string("emidec", None, "DIR: The EMIDEC folder.")
    flags.DEFINE_string("acdc", None, "DIR: The ACDC folder.")
    flags.DEFINE_string("output", None, "DIR: Folder for the table.")
  flags.DEFINE_string("weights", "weights/mscmrseg_student", "DIR: Folder of exported weights.")


def main() -> None:
  """Runs the command."""
  segmenter, output, rows = load_segmenter(FLAGS.weights), cli.required_path("output"), []
  for sample in samples(cli.required_path("mscmrseg"), cli.required_path("emidec"), cli.required_path("acdc")):
    rows.append(measure(sample, segmenter(sample.image), segmenter.config.data.label_values))
    print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
  write_table(rows, output)


def samples(mscmrseg: Path, emidec: Path, acdc: Path) -> Iterator[Sample]:
  """All volumes, group by group."""
  rng = np.random.default_rng(0)
  for name, image, mask in labelled(mscmrseg):
    yield Sample("LGE 1-5", name, image, class_indices(mask, LABEL_VALUES))
    for damage, changed, truth in damaged(image, class_indices(mask, LABEL_VALUES), rng):
      yield Sample("LGE 1-5, damaged", f"{name}, {damage}", changed, truth)
  for name, image, mask in pairs(emidec):
    yield Sample("EMIDEC", name, image, mask, EMIDEC)
    for damage, changed, truth in damaged(image, mask, rng):
      yield Sample("EMIDEC, damaged", f"{name}, {damage}", changed, truth, EMIDEC)
  for name, image, mask in pairs(acdc, EVERY):
    yield Sample("ACDC, cine", name, image, mask)
  oblique = next(labelled(mscmrseg))[1].affine
  for number, path in zip(range(WITHOUT), sorted((emidec / "images").iterdir()), strict=False):
    yield Sample("beside the heart", path.name, corner(nib.load(path), oblique, last=number % 2 == 1))
  for number in range(WITHOUT):
    smooth = 0.5 * (number % 20)
    noise = ndimage.gaussian_filter(rng.normal(size=(192, 192, 8)), (smooth, smooth, 0))
    yield Sample("noise", str(number), nib.Nifti1Image(noise.astype(np.float32), oblique))
    shape = tuple(map(int, rng.integers((64, 64, 3), (256, 256, 16))))
    yield Sample(
      "one intensity", str(number), nib.Nifti1Image(np.full(shape, rng.uniform(-9, 999), np.float32), oblique)
    )


def pairs(folder: Path, step: int = 1) -> Iterator[tuple[str, nib.Nifti1Image, np.ndarray]]:
  """(name, image, mask) of the volumes with masks, or of some of them, in a folder with images and labels."""
  masks = sorted((folder / "labels").glob("*.nii.gz"))[::step]
  if not masks:
    raise InputError(f"{folder}: no labels/*.nii.gz in it; name the folder that has images and labels")
  for path in masks:
    yield path.name, nib.load(folder / "images" / path.name), np.asarray(nib.load(path).dataobj)


def damaged(
  image: nib.Nifti1Image, mask: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[str, nib.Nifti1Image, np.ndarray]]:
  """(damage, image, mask) of a volume in ways in which masks get bad; slices are the third axis of the file."""
  voxels = image.get_fdata(dtype=np.float32)
  changed = lambda data: nib.Nifti1Image(np.ascontiguousarray(data), image.affine, image.header)
  noise = rng.normal(scale=0.4 * np.percentile(voxels, 99), size=voxels.shape).astype(np.float32)
  yield "noise", changed(voxels + noise), mask
  yield "inverted", changed(voxels.max() - voxels), mask
  yield "mirrored", changed(voxels[::-1]), mask[::-1]
  half = voxels.shape[0] // 2
  yield "cut through the heart", changed(voxels[:half]), mask[:half]


def corner(image: nib.Nifti1Image, oblique: np.ndarray, *, last: bool) -> nib.Nifti1Image:
  """A corner of the slices that is too small to reach the heart in their middle.

  Args:
    image: with the heart in its middle.
    oblique: an affine with the directions of a short-axis stack.
    last: which of two corners.
  """
  voxels, size = image.get_fdata(dtype=np.float32), np.asarray(image.header.get_zooms()[:3], float)
  rows, columns = (n // 3 for n in voxels.shape[:2])
  part = voxels[-rows:, :columns] if last else voxels[:rows, :columns]
  directions = oblique[:3, :3] / np.linalg.norm(oblique[:3, :3], axis=0)
  affine = np.eye(4)
  affine[:3, :3] = directions * size
  return with_header(part, affine)


def measure(sample: Sample, prediction: Prediction, label_values: LabelValues) -> dict[str, str | float]:
  """A row of quality.csv."""
  predicted = class_indices(prediction.mask, label_values)
  dices = [] if sample.truth is None else list(dice(predicted, sample.truth).values())
  names = dict.fromkeys(finding.name for finding in prediction.quality.findings)
  return {
    "group": sample.group,
    "volume": sample.name,
    "Dice": float(np.mean(dices[: sample.labelled])) if dices else 0.0,
    "score": prediction.quality.score,
    "findings": "; ".join(names),
  }


def write_table(rows: Sequence[Mapping], output: Path) -> None:
  """Writes quality.csv and quality.md, and prints the latter."""
  write_rows(output / "quality.csv", rows)
  lines = [
    f"| volumes | number | bad | Dice | score | mean difference of the two | AUROC | score below {LOW_SCORE} | bad, "
    "flagged | good, flagged |",
    "|---|" + "---|" * 9,
  ]
  unused = ("EMIDEC, damaged", "ACDC, cine")  # they chose nothing
  hearts = ("LGE 1-5", "LGE 1-5, damaged", "EMIDEC", *unused)
  groups = {name: [row for row in rows if row["group"] == name] for name in dict.fromkeys(row["group"] for row in rows)}
  groups["EMIDEC, damaged, and ACDC"] = [row for row in rows if row["group"] in unused]
  groups["all with a heart"] = [row for row in rows if row["group"] in hearts]
  groups["all"] = list(rows)
  lines += [f"| {name} | " + " | ".join(summarise(group)) + " |" for name, group in groups.items() if group]
  table = "\n".join(lines) + "\n"
  write_text(output / "quality.md", table)
  print(table)


def summarise(rows: Sequence[Mapping]) -> list[str]:
  """The cells of a group of predictions."""
  dices, scores = (np.array([row[name] for row in rows]) for name in ("Dice", "score"))
  bad = dices < BAD
  separation = f"{auroc(-scores, bad):.3f}" if 0 < bad.sum() < len(bad) else "–"
  flagged = np.array([bool(set(row["findings"].split("; ")) - {"", *ASSUMPTIONS}) for row in rows])
  means = [f"{value:.3f}" for value in (dices.mean(), scores.mean(), np.abs(dices - scores).mean())]
  counts = [(scores < LOW_SCORE).sum(), (flagged & bad).sum(), (flagged & ~bad).sum()]
  return [str(len(rows)), str(bad.sum()), *means, separation, *map(str, counts)]


if __name__ == "__main__":
  cli.run(define_flags, main, __doc__)
