"""How often predict takes another organ for the heart, in whole images and in parts with the heart off the middle.

python -m experiments.heart_search --weights=weights/lge --images=EMIDEC/images --output=runs/heart_search

The first two axes of the files must lie within slices, and the hearts in the middle of the slices, as in EMIDEC. So no
mask is needed: a heart counts as lost if the predicted Myo and LV are missing, or if their middle lies more than 40 mm
from the place of the image's middle. For each image, predict gets the whole slices and four parts of them. Writes
heart_search.csv, with a row for each image and part, and heart_search.md, the table.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from absl import flags
from tqdm import tqdm

import vamcei_jax
from experiments.tables import write_rows
from vamcei_jax import cli
from vamcei_jax.data.labels import CLASSES, first_values
from vamcei_jax.data.nifti import list_volumes, load_image
from vamcei_jax.files import write_text
from vamcei_jax.inference.quality import LOW_SCORE
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS
LOST_MM = 40.0
# Bounds of rows and of columns, as shares of the image. In a part of 5/8, the image's middle lies at a fifth of a side.
FIRST, LAST, ALL = (0.0, 0.625), (0.375, 1.0), (0.0, 1.0)
PARTS = {
  "whole": (ALL, ALL),
  "first rows": (FIRST, ALL),
  "last columns": (ALL, LAST),
  "first rows and columns": (FIRST, FIRST),
  "last rows and columns": (LAST, LAST),
}


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("weights", None, "DIR: Folder of exported weights.")
    flags.DEFINE_string("images", None, "DIR: Folder of NIfTI images with hearts in their middle.")
    flags.DEFINE_string("output", None, "DIR: Folder for the tables.")


def main() -> None:
  """Runs the command."""
  output, files = cli.required_path("output"), list_volumes(cli.required_path("images"))
  segmenter = vamcei_jax.load_segmenter(cli.required_path("weights"))
  values = first_values(segmenter.config.data.label_values)
  rows = []
  for file in tqdm(files, "images", unit="image", disable=None):
    image, _ = load_image(file)
    for name, part, middle in parts_of(image):
      prediction = segmenter(part)
      heart = np.isin(prediction.mask, [values[CLASSES.index(each)] for each in ("Myo", "LV")])
      distance = distance_mm(heart, middle, image.header.get_zooms())
      rows.append({"image": file.name, "part": name, "mm": distance, "score": prediction.quality.score})
  write_rows(output / "heart_search.csv", rows)
  write_text(output / "heart_search.md", table(rows))
  print(table(rows))


def parts_of(image: nib.Nifti1Image) -> Iterator[tuple[str, nib.Nifti1Image, tuple[float, float]]]:
  """Name, image and place of the whole image's middle (row, column), of each part of an image.

  The parts keep the header as it is: with another offset, nibabel would write another voxel size into it.
  """
  voxels = np.asarray(image.dataobj)
  for name, shares in PARTS.items():
    (top, bottom), (left, right) = (
      [round(share * pixels) for share in both] for both, pixels in zip(shares, voxels.shape, strict=False)
    )
    middle = (voxels.shape[0] - 1) / 2 - top, (voxels.shape[1] - 1) / 2 - left
    yield name, nib.Nifti1Image(voxels[top:bottom, left:right], image.affine, image.header), middle


def distance_mm(heart: np.ndarray, middle: Sequence[float], zooms: Sequence[float]) -> float:
  """Distance within slices of the middle of a mask (X, Y, Z) from a place (row, column); infinite without a mask.

  Args:
    heart: boolean.
    middle: row and column.
    zooms: mm of a pixel along rows and columns.
  """
  if not heart.any():
    return math.inf
  steps = np.argwhere(heart)[:, :2].mean(0) - middle
  return float(np.hypot(*(steps * zooms[:2])))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """A Markdown table: the number of lost and of found hearts of each part, and how many of them have a low score."""
  columns = ("part of the image", "lost hearts", "of these, low score", "found hearts", "of these, low score")
  lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
  for name in dict.fromkeys(row["part"] for row in rows):
    of_part = [row for row in rows if row["part"] == name]
    lost = np.array([row["mm"] > LOST_MM for row in of_part])
    low = np.array([row["score"] < LOW_SCORE for row in of_part])
    lines.append(f"| {name} | {lost.sum()} | {(lost & low).sum()} | {(~lost).sum()} | {(~lost & low).sum()} |")
  return "\n".join(lines)


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
