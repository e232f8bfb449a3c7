"""Areas of predicted LGE masks above the apex, compared with the bSSFP mask of the same patient. Needs no LGE mask.

python -m experiments.apex_areas --masks=runs/masks --mscmrseg=DIR --output=runs/apex

The masks are those that predict writes for DIR/LGE. A slice of LGE is compared with the bSSFP mask at the same height
above the apex. The headers say the heights. Both sequences have the same pixels (see datasets/mscmrseg.py), so areas
are numbers of pixels. Writes apex_areas.csv, with a row for each slice, and apex_areas.md: the area of all LGE slices
of a band, divided by that of the bSSFP at their heights, for all patients and with one of them left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.tables import write_rows
from vamcei_jax import cli
from vamcei_jax.data.labels import LABEL_VALUES, STRUCTURES
from vamcei_jax.data.nifti import Volume, read_classes, read_mask, read_volume
from vamcei_jax.data.slices import starts_at_apex
from vamcei_jax.errors import InputError
from vamcei_jax.files import writable, write_text
from vamcei_jax.usage import REQUIRED, group

BANDS = ((0, 20), (20, 60))  # mm above the apex
LABELLED = 5  # patients of which the LGE has masks, too
REVERSED = np.array([[0, -1], [1, 1], [2, 1]])  # order of slices, see Volume.turned


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("masks", None, "DIR: Folder of predicted masks, patientN_LGE.nii.gz.")
    flags.DEFINE_string("mscmrseg", None, "DIR: The MS-CMRSeg folder.")
    flags.DEFINE_string("output", None, "DIR: Folder for the tables.")


def main() -> None:
  """Runs the command."""
  masks, data, output = (cli.required_path(flag) for flag in ("masks", "mscmrseg", "output"))
  numbers = [number for number in range(1, 46) if bssfp_mask(data, number).exists()]
  if not numbers:
    raise InputError(f"{data}: no C0/patientN_C0_manual.nii.gz; name the MS-CMRSeg folder: --mscmrseg=DIR")
  missing = [name for name in (f"patient{number}_LGE.nii.gz" for number in numbers) if not (masks / name).exists()]
  if missing:
    raise InputError(f"{masks}: no {missing[0]}; predict --input=DIR/LGE first")
  writable(output, "name another --output")
  rows = [row for number in numbers for row in compare_patient(masks, data, number)]
  write_rows(output / "apex_areas.csv", rows)
  write_text(output / "apex_areas.md", table(rows))
  print(table(rows))


def bssfp_mask(data: Path, number: int) -> Path:
  """The bSSFP mask of a patient."""
  return data / "C0" / f"patient{number}_C0_manual.nii.gz"


def compare_patient(masks: Path, data: Path, number: int) -> Iterator[dict[str, Any]]:
  """Rows of a patient's predicted LGE mask and, where there is one, of the true one."""
  bssfp = from_apex(read_mask(bssfp_mask(data, number), LABEL_VALUES), bssfp_mask(data, number))
  image = read_volume(data / "LGE" / f"patient{number}_LGE.nii.gz")
  files = {"predicted": masks / f"patient{number}_LGE.nii.gz"}
  true = data / "LGE" / f"patient{number}_LGE_manual.nii.gz"
  files |= {"true": true} if true.exists() else {}
  for kind, file in files.items():
    lge = Volume(read_classes(file, image, LABEL_VALUES), image.affine)
    for row in compare(lge, bssfp):
      yield {"patient": number, "mask": kind, **row}


def from_apex(mask: Volume, file: Path) -> Volume:
  """A mask with its slices in order from the apex; an InputError names `file` where no apex is found."""
  first = starts_at_apex((mask.voxels > 0).sum((1, 2)))
  if first is None:
    raise InputError(f"{file}: its areas do not show where the apex is; restore the file")
  return mask if first else mask.turned(REVERSED)


def compare(lge: Volume, bssfp: Volume) -> Iterator[dict[str, Any]]:
  """Height of each slice of an LGE mask above the apex of the bSSFP mask, and the pixels of both, by structure.

  The slices of `bssfp` are in order from the apex. The apex is the lower face of the first slice with a structure.
  Between the middles of two bSSFP slices, areas are interpolated. Beyond the faces of the stack, they are zero.
  """
  direction, half = bssfp.affine[:3, 0] / bssfp.spacing[0], bssfp.spacing[0] / 2
  levels = bssfp.levels(direction)
  apex = levels[bssfp.voxels.any((1, 2))][0] - half
  for mask, height in zip(lge.voxels, lge.levels(direction), strict=True):
    row = {"mm": float(height - apex)}
    inside = levels[0] - half <= height <= levels[-1] + half
    for index, structure in enumerate(STRUCTURES, start=1):
      areas = (bssfp.voxels == index).sum((1, 2))
      row[f"{structure} LGE"] = int((mask == index).sum())
      row[f"{structure} bSSFP"] = float(np.interp(height, levels, areas)) if inside else 0.0
    yield row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """A Markdown table: for each band and structure, the area on LGE divided by that on bSSFP.

  In parentheses: the lowest and the highest ratio with one patient left out.
  """
  names = [f"{structure}, {low}–{high} mm" for low, high in BANDS for structure in STRUCTURES]
  lines = [f"| patients | LGE mask | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
  labelled = [row for row in rows if row["patient"] <= LABELLED]
  for name, of_group in {"1–5": labelled, "6–35": [row for row in rows if row["patient"] > LABELLED]}.items():
    for kind in dict.fromkeys(row["mask"] for row in of_group):
      of_kind = [row for row in of_group if row["mask"] == kind]
      cells = [with_range(of_kind, structure, band) for band in BANDS for structure in STRUCTURES]
      lines.append(f"| {name} | {kind} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def with_range(rows: Sequence[Mapping[str, Any]], structure: str, band: tuple[int, int]) -> str:
  """A ratio, and its range with one patient left out."""
  others = [[row for row in rows if row["patient"] != out] for out in dict.fromkeys(row["patient"] for row in rows)]
  without_one = [ratio(each, structure, band) for each in others]
  return f"{ratio(rows, structure, band):.2f} ({min(without_one):.2f}–{max(without_one):.2f})"


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
