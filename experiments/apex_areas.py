"""Areas of predicted LGE masks above the apex, compared with the bSSFP mask of the same patient. Needs no LGE mask.

python -m experiments.apex_areas --masks=runs/masks --mscmrseg=DIR --output=runs/apex

The masks are those that predict writes for DIR/LGE. A slice of LGE is compared with the bSSFP mask at the same height
above the apex. The headers say the heights. Both sequences have the same pixels (see datasets/mscmrseg.py), so areas
are numbers of pixels. Writes apex_areas.csv, with a row for each slice, and apex_areas.md: the area of all LGE slices
of a band, divided by that of the bSSFP at their heights.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.hospital_files import write_rows
from vamcei_jax import cli
from vamcei_jax.data.labels import CLASSES, LABEL_VALUES, STRUCTURES
from vamcei_jax.data.nifti import Volume, read_mask
from vamcei_jax.data.slices import starts_at_apex
from vamcei_jax.errors import InputError
from vamcei_jax.files import write_text
from vamcei_jax.usage import REQUIRED, group

BANDS = ((0, 20), (20, 60))  # mm above the apex
LABELLED = 5  # patients of which the LGE has masks, too


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("masks", None, "DIR: Folder of predicted masks, patientN_LGE.nii.gz.")
    flags.DEFINE_string("mscmrseg", None, "DIR: The MS-CMRSeg folder.")
    flags.DEFINE_string("output", None, "DIR: Folder for the tables.")


def main() -> None:
  """Runs the command."""
  masks, data, output = (cli.required_path(flag) for flag in ("masks", "mscmrseg", "output"))
  rows = []
  for number in range(1, 46):
    bssfp = data / "C0" / f"patient{number}_C0_manual.nii.gz"
    files = {"predicted": masks / f"patient{number}_LGE.nii.gz"}
    files["true"] = data / "LGE" / f"patient{number}_LGE_manual.nii.gz"
    for kind, file in files.items():
      if bssfp.exists() and file.exists():
        pair = (read_mask(each, LABEL_VALUES) for each in (file, bssfp))
        rows += [{"patient": number, "mask": kind, **row} for row in compare(*pair, name=bssfp.name)]
  if not any(row["mask"] == "predicted" for row in rows):
    raise InputError(f"{masks}: no patientN_LGE.nii.gz of a patient with a bSSFP mask; predict --input=DIR/LGE first")
  write_rows(output / "apex_areas.csv", rows)
  write_text(output / "apex_areas.md", table(rows))
  print(table(rows))


def compare(lge: Volume, bssfp: Volume, name: str) -> Iterator[dict[str, Any]]:
  """Height of each slice of an LGE mask above the apex of the bSSFP mask, and the pixels of both, by structure.

  Between two slices of the bSSFP, areas are interpolated. Outside of the slices of the bSSFP, they are zero.
  """
  filled = np.isin(bssfp.voxels, [CLASSES.index(structure) for structure in ("Myo", "LV")]).sum((1, 2))
  first = starts_at_apex(filled)
  if first is None:
    raise InputError(f"{name}: the areas do not tell apex and base apart")
  step = bssfp.affine[:3, 0] / np.linalg.norm(bssfp.affine[:3, 0]) * (1 if first else -1)
  heights = heights_along(bssfp, step)
  apex = heights[filled > 0].min() - bssfp.spacing[0] / 2
  order = np.argsort(heights)
  for number, height in enumerate(heights_along(lge, step)):
    row = {"mm": float(height - apex)}
    for structure, index in zip(STRUCTURES, range(1, len(CLASSES)), strict=True):
      areas = (bssfp.voxels == index).sum((1, 2))[order]
      row[f"{structure} LGE"] = int((lge.voxels[number] == index).sum())
      row[f"{structure} bSSFP"] = float(np.interp(height, heights[order], areas, left=0.0, right=0.0))
    yield row


def heights_along(volume: Volume, direction: np.ndarray) -> np.ndarray:
  """(D,) mm: where the middle of each slice's first voxel lies along a direction."""
  return (volume.affine[:3, 3] + np.arange(len(volume.voxels))[:, None] * volume.affine[:3, 0]) @ direction


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """A Markdown table: for each band and structure, the area on LGE divided by that on bSSFP."""
  names = [f"{structure}, {low}–{high} mm" for low, high in BANDS for structure in STRUCTURES]
  lines = [f"| patients | LGE mask | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
  known = [row["patient"] <= LABELLED for row in rows]
  groups = {"1–5": [row for row, is_known in zip(rows, known, strict=True) if is_known]}
  groups["6–35"] = [row for row, is_known in zip(rows, known, strict=True) if not is_known]
  for name, of_group in groups.items():
    for kind in dict.fromkeys(row["mask"] for row in of_group):
      of_kind = [row for row in of_group if row["mask"] == kind]
      cells = [f"{ratio(of_kind, structure, band):.2f}" for band in BANDS for structure in STRUCTURES]
      lines.append(f"| {name} | {kind} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def ratio(rows: Sequence[Mapping[str, Any]], structure: str, band: tuple[int, int]) -> float:
  """Pixels of a structure on LGE in a band of heights, divided by those on bSSFP; NaN where bSSFP has none."""
  inside = [row for row in rows if band[0] <= row["mm"] < band[1]]
  lge, bssfp = (sum(row[f"{structure} {sequence}"] for row in inside) for sequence in ("LGE", "bSSFP"))
  return lge / bssfp if bssfp else float("nan")


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
