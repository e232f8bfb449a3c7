"""The embedded data: short-axis stacks of invented patients, whose two MR contrasts follow from the sequences' physics.

An anatomy is drawn finer than the voxels, a sequence gives its tissues their signals, and the scanner averages these
over the voxels and adds what scanners add: the coil's falloff, blur of motion, noise.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from vamcei_jax.data.labels import CLASSES, LABEL_VALUES
from vamcei_jax.data.nifti import VIEW, write_volume
from vamcei_jax.files import write_text
from vamcei_jax.phantom.anatomy import GRID, Anatomy, Grid, draw_anatomy
from vamcei_jax.phantom.signal import BLOOD, scan_bssfp, scan_lge

SCAR_RATE = {"bssfp": 0.0, "lge": 0.6}  # share of the patients
NOISE = {"bssfp": (0.02, 0.04), "lge": (0.05, 0.1)}  # standard deviation, relative to blood's signal
GRAIN = {"bssfp": 0.3, "lge": 0.7}  # pixels, of the noise: images are interpolated from fewer data
FALLOFF = {"bssfp": (200, 400), "lge": (90, 180)}  # mm in which the coil's sensitivity falls by e
BLUR = {"bssfp": (0.4, 0.7), "lge": (0.5, 0.9)}  # pixels, standard deviation along each axis
TEXTURE = 0.05  # relative standard deviation of the signal within a tissue

VIEW_SPREAD = np.deg2rad(3)  # of the stacks' orientation about the typical one


@dataclasses.dataclass(frozen=True)
class Phantom:
  """An invented patient.

  voxels: (D, H, W) float32 in arbitrary units; classes: (D, H, W) uint8; affine: (4, 4) from (d, h, w, 1) to RAS mm.
  """

  voxels: np.ndarray
  classes: np.ndarray
  affine: np.ndarray


def draw_patient(seed: int, patient_index: int, domain: str, grid: Grid = GRID) -> Phantom:
  """The patient of this number, the same whenever drawn; those of the two domains are different people."""
  rng = np.random.default_rng((seed, list(SCAR_RATE).index(domain), patient_index))
  anatomy = draw_anatomy(rng, grid, scarred=rng.random() < SCAR_RATE[domain])
  signals = {"bssfp": scan_bssfp, "lge": scan_lge}[domain](rng)
  voxels = _scan(rng, anatomy, signals, domain, grid)
  shares = [voxel_means(anatomy.classes == k, grid) for k in range(len(CLASSES))]
  return Phantom(voxels, np.argmax(shares, axis=0).astype(np.uint8), _place(rng, voxels.shape, grid))


def write_nifti(
  folder: str | Path, *, seed: int = 0, sources: int = 35, targets: int = 45, masks: int = 5, grid: Grid = GRID
) -> None:
  """Writes patients as MS-CMRSeg's folders: C0 (bSSFP, with masks) and LGE (with masks of the first few patients)."""
  for domain, name, patients, masked in (("bssfp", "C0", sources, sources), ("lge", "LGE", targets, masks)):
    for number in range(1, patients + 1):
      patient, stem = draw_patient(seed, number - 1, domain, grid), Path(folder, name, f"patient{number}_{name}")
      write_patient(patient, f"{stem}.nii.gz", f"{stem}_manual.nii.gz" if number <= masked else None)


def write_nnunet(
  folder: str | Path,
  *,
  seed: int = 0,
  sources: int = 24,
  targets: int = 24,
  masks: int = 16,
  grid: Grid = GRID,
  window: int | None = None,
) -> None:
  """Writes patients as two folders of nnU-Net's layout: bssfp (all with masks) and lge (masks of the first few).

  With a `window` of fewer pixels than the grid has, each patient is seen through one somewhere in it, so that the heart
  is off the middle.
  """
  for domain, patients, masked in (("bssfp", sources, sources), ("lge", targets, masks)):
    place = Path(folder, domain)
    for number in range(1, patients + 1):
      patient, name = draw_patient(seed, number - 1, domain, grid), f"{domain}_{number:03d}"
      if window is not None:
        patient = cut_window(np.random.default_rng((seed, number)), patient, window)
      mask = place / "labelsTr" / f"{name}.nii.gz" if number <= masked else None
      write_patient(patient, place / "imagesTr" / f"{name}_0000.nii.gz", mask, range(len(CLASSES)))
    description = {
      "channel_names": {"0": domain},
      "labels": {name: value for value, name in enumerate(CLASSES)},
      "numTraining": patients,
      "file_ending": ".nii.gz",
    }
    write_text(place / "dataset.json", json.dumps(description, indent=2) + "\n")


def cut_window(rng: np.random.Generator, patient: Phantom, pixels: int) -> Phantom:
  """The patient within a square of so many pixels, somewhere in the image."""
  y, x = (int(rng.integers(size - pixels + 1)) for size in patient.voxels.shape[1:])
  seen = (slice(None), slice(y, y + pixels), slice(x, x + pixels))
  affine = patient.affine.copy()
  affine[:3, 3] = (patient.affine @ (0, y, x, 1))[:3]
  return Phantom(patient.voxels[seen], patient.classes[seen], affine)


def write_patient(
  patient: Phantom, image: str | Path, mask: str | Path | None, label_values: Sequence[int] = LABEL_VALUES
) -> None:
  """Writes a patient's image and, unless it is None, the mask as NIfTI files; folders are made as they are needed."""
  write_volume(image, patient.voxels, patient.affine)
  if mask is not None:
    write_volume(mask, np.array(label_values)[patient.classes], patient.affine)


def voxel_means(samples: np.ndarray, grid: Grid) -> np.ndarray:
  """(D, H, W) means over the samples of each voxel: partial volume."""
  k, n = grid.sub_slices, grid.oversampling
  offsets = itertools.product(range(k), range(n), range(n))
  return sum(samples[a::k, b::n, c::n].astype(np.float32) for a, b, c in offsets) / (k * n * n)


def add_rician_noise(rng: np.random.Generator, image: np.ndarray, sigma: float, grain: float = 0.0) -> np.ndarray:
  """The magnitude of (D, H, W) with Gaussian noise in its real and imaginary part, smooth over `grain` pixels."""
  noise = gaussian_filter(rng.standard_normal((2, *image.shape), np.float32), (0, 0, grain, grain))
  real, imaginary = noise * (sigma / float(noise.std()))
  return np.hypot(image + real, imaginary)


def _scan(rng, anatomy: Anatomy, signals, domain, grid):
  """(D, H, W) float32 magnitude image."""
  image = np.abs(voxel_means(signals.astype(np.float32)[anatomy.tissues], grid))
  texture = gaussian_filter(rng.standard_normal(image.shape, np.float32), (0, 2, 2))
  image *= 1 + TEXTURE * texture / texture.std()
  depth = voxel_means(anatomy.depth, grid)
  image *= np.exp((depth[tuple(n // 2 for n in depth.shape)] - depth) / rng.uniform(*FALLOFF[domain]))
  image = gaussian_filter(image, (0, *rng.uniform(*BLUR[domain], size=2)))
  noisy = add_rician_noise(rng, image, rng.uniform(*NOISE[domain]) * float(signals[BLOOD]), GRAIN[domain])
  return 1000 * rng.uniform(0.5, 2) * noisy


def _place(rng, shape, grid):
  """(4, 4) affine of a stack near MS-CMRSeg's view."""
  u, _, v = np.linalg.svd(Rotation.from_rotvec(rng.normal(0, VIEW_SPREAD, 3)).as_matrix() @ VIEW.T)
  affine = np.eye(4)
  affine[:3, :3] = u @ v * (grid.thickness, grid.spacing, grid.spacing)
  affine[:3, 3] = rng.normal((-30, 20, 0), 10) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
  return affine
