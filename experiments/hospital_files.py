"""Dice of exported weights on files as hospitals and tools leave them: the same patients, their files changed.

python -m experiments.hospital_files --weights=weights/mscmrseg_student --data=DIR --output=experiments/results

DIR is the MS-CMRSeg folder; the LGE volumes with masks are used. Writes hospital_files.csv, with a row for each patient
and change, and hospital_files.md, the table of means.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from absl import flags
from nibabel.affines import voxel_sizes
from scipy import ndimage

from experiments.tables import write_rows
from vamcei_jax import cli, load_segmenter
from vamcei_jax.data.labels import LABEL_VALUES, STRUCTURES, LabelValues, class_indices
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.metrics import dice
from vamcei_jax.files import write_text
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS
SHIFTS = ((100, 0), (-70, 70), (0, -100))  # pixels from the middle
Pair = tuple[nib.Nifti1Image, np.ndarray]  # an image and its mask of label values, on one grid


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("data", None, "DIR: The MS-CMRSeg folder.")
    flags.DEFINE_string("output", None, "DIR: Folder for the table.")
  flags.DEFINE_string("weights", "weights/mscmrseg_student", "DIR: Folder of exported weights.")


def main() -> None:
  """Runs the command."""
  segmenter, output, rows = load_segmenter(FLAGS.weights), cli.required_path("output"), []
  for patient, image, mask in labelled(cli.required_path("data")):
    for name, (changed, truth) in changes(image, mask).items():
      prediction = segmenter(changed)
      findings = "; ".join(finding.name for finding in prediction.quality.findings)
      scores = score(prediction.mask, truth, segmenter.config.data.label_values)
      rows.append({"file": name, "patient": patient, **scores, "findings": findings})
      print(f"patient {patient}, {name}: {np.mean(list(scores.values())):.3f}  {findings}", flush=True)
  write_table(rows, output)


def labelled(data: Path) -> Iterator[tuple[str, nib.Nifti1Image, np.ndarray]]:
  """(patient, image, mask) of the LGE volumes with masks."""
  masks = sorted((data / "LGE").glob("*_LGE_manual.nii.gz"))
  if not masks:
    raise InputError(f"{data}: no LGE/*_LGE_manual.nii.gz in it; name the MS-CMRSeg folder")
  for path in masks:
    image = nib.load(path.with_name(path.name.replace("_manual", "")))
    name = path.name.removeprefix("patient").split("_")[0]
    yield name, nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine), np.asarray(nib.load(path).dataobj)


def changes(image: nib.Nifti1Image, mask: np.ndarray) -> dict[str, Pair]:
  """The ways in which a volume's file is changed: name -> image and mask. Slices are the third axis of the file."""
  voxels, affine = image.get_fdata(dtype=np.float32), image.affine
  size = voxel_sizes(affine)
  return {
    "as it is": (image, mask),
    **{f"heart {x}, {y} pixels off the middle of 400×400": off_centre(image, mask, x, y) for x, y in SHIFTS},
    **{f"directions lost, way {number}": lose_directions(image, mask, number) for number in range(8)},
    "sform an identity": (with_header(voxels, np.eye(4), pixdim=size), mask),
    "both codes 0": (with_header(voxels, affine, codes=0), mask),
    "isotropic, 1 mm": isotropic(image, mask),
    "slices 0.5 mm apart": (with_header(voxels, affine * np.array([1, 1, 0.5 / size[2], 1])), mask),
    "blank slices at both ends": blank_slices(image, mask, (0, 0, voxels.shape[2], voxels.shape[2])),
    "blank slices in the middle": blank_slices(image, mask, (voxels.shape[2] // 2,) * 2),
    "metres": (with_header(voxels, np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine, unit="meter"), mask),
  }


def with_header(
  voxels: np.ndarray, affine: np.ndarray, *, pixdim: np.ndarray | None = None, codes: int = 2, unit: str = "mm"
) -> nib.Nifti1Image:
  """An image with this sform. pixdim: if it differs; codes: of the sform, or 0 for neither form."""
  image = nib.Nifti1Image(voxels, affine)
  image.header.set_xyzt_units(unit)
  image.set_sform(affine, codes)
  image.set_qform(None, 0)
  image.header["pixdim"][1:4] = voxel_sizes(affine) if pixdim is None else pixdim
  return nib.Nifti1Image.from_bytes(image.to_bytes())  # as it is read from a file


def off_centre(image: nib.Nifti1Image, mask: np.ndarray, x: int, y: int) -> Pair:
  """The slices in a field of 400×400 pixels of zeros, their middle (x, y) pixels from its middle."""
  width, height, _ = image.shape
  corner = (400 - width) // 2 + x, (400 - height) // 2 + y
  pad = [(start, 400 - n - start) for start, n in zip(corner, (width, height), strict=True)] + [(0, 0)]
  affine = image.affine.copy()
  affine[:3, 3] -= affine[:3, 0] * corner[0] + affine[:3, 1] * corner[1]
  return nib.Nifti1Image(np.pad(image.get_fdata(dtype=np.float32), pad), affine), np.pad(mask, pad)


def lose_directions(image: nib.Nifti1Image, mask: np.ndarray, number: int) -> Pair:
  """The slices, turned in one of the eight ways, with an affine that holds the voxel size alone."""
  swapped, right, down = number & 4, -1 if number & 2 else 1, -1 if number & 1 else 1
  turn = lambda maps: (maps.swapaxes(0, 1) if swapped else maps)[::right, ::down]
  size = voxel_sizes(image.affine)[[1, 0, 2] if swapped else [0, 1, 2]]
  return with_header(turn(image.get_fdata(dtype=np.float32)), np.diag([*size, 1])), turn(mask)


def isotropic(image: nib.Nifti1Image, mask: np.ndarray) -> Pair:
  """The volume, resampled to voxels of 1 mm: linearly, and the mask to the nearest voxel."""
  size = voxel_sizes(image.affine)
  resample = lambda maps, order: ndimage.zoom(maps, size, order=order, mode="nearest", grid_mode=True)
  voxels = resample(image.get_fdata(dtype=np.float32), 1)
  ratio = np.divide(image.shape, voxels.shape)
  affine = image.affine * np.array([*ratio, 1])
  affine[:3, 3] += image.affine[:3, :3] @ ((ratio - 1) / 2)  # the grids share their outer edges, not their first voxels
  return nib.Nifti1Image(voxels, affine), resample(mask, 0)


def blank_slices(image: nib.Nifti1Image, mask: np.ndarray, places: tuple[int, ...]) -> Pair:
  """The volume with slices of zeros before these slices."""
  insert = lambda maps: np.insert(maps, places, 0, axis=2)
  return nib.Nifti1Image(insert(image.get_fdata(dtype=np.float32)), image.affine), insert(mask)


def score(mask: np.ndarray, truth: np.ndarray, label_values: LabelValues) -> dict[str, float]:
  """Dice of each structure, of a mask with these label values and a true mask of MS-CMRSeg."""
  return dice(class_indices(mask, label_values), class_indices(truth, LABEL_VALUES))


def write_table(rows: list[Mapping], output: Path) -> None:
  """Writes hospital_files.csv and .md, and prints the latter."""
  write_rows(output / "hospital_files.csv", rows)
  lines = [f"| the same volumes | {' | '.join(STRUCTURES)} | mean |", "|---|" + "---|" * (len(STRUCTURES) + 1)]
  for name in dict.fromkeys(row["file"] for row in rows):
    means = [np.mean([row[structure] for row in rows if row["file"] == name]) for structure in STRUCTURES]
    lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in (*means, np.mean(means))) + " |")
  table = "\n".join(lines) + "\n"
  write_text(output / "hospital_files.md", table)
  print(table)


if __name__ == "__main__":
  cli.run(define_flags, main, __doc__)
