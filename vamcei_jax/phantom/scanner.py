"""The scanner of the embedded data: short-axis stacks of synthetic patients with the contrasts of bSSFP and LGE.

Anatomies are drawn at more samples than there are voxels, and their tissues get the signals of a sequence. The scanner
averages the signals over the voxels (partial volume) and adds the falloff of the coil, blur by motion, and noise.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from vamcei_jax.data.geometry import SHORT_AXIS
from vamcei_jax.data.labels import CLASSES, LABEL_VALUES
from vamcei_jax.data.nifti import write_volume
from vamcei_jax.files import write_text
from vamcei_jax.phantom.anatomy import GRID, Anatomy, Grid, draw_anatomy
from vamcei_jax.phantom.signal import BLOOD, scan_bssfp, scan_lge

# Of each domain; pairs are ranges over patients.
SCAR_RATE = {"bssfp": 0.0, "lge": 0.6}  # share of patients with an infarct
NOISE = {"bssfp": (0.02, 0.04), "lge": (0.05, 0.1)}  # standard deviation relative to the signal of blood
GRAIN = {"bssfp": 0.3, "lge": 0.7}  # pixels, standard deviation of the noise's smoothing: images are interpolated
FALLOFF = {"bssfp": (200, 400), "lge": (90, 180)}  # mm of depth over which the coil's sensitivity falls by a factor e
BLUR = {"bssfp": (0.4, 0.7), "lge": (0.5, 0.9)}  # pixels, standard deviation along each axis

TEXTURE = 0.05  # relative standard deviation of the signal within a tissue
ORIENTATION_SPREAD = np.deg2rad(3)  # standard deviation of the stacks' orientation, about SHORT_AXIS


@dataclasses.dataclass(frozen=True)
class Phantom:
  """A synthetic patient.

  voxels: (D, H, W) float32 in arbitrary units.
  classes: (D, H, W) uint8 class indices.
  affine: (4, 4) from (d, h, w, 1) to RAS millimetres.
  """

  voxels: np.ndarray
  classes: np.ndarray
  affine: np.ndarray


def draw_patient(seed: int, patient_index: int, domain: str, grid: Grid = GRID) -> Phantom:
  """Draws a patient: a pure function of its arguments. The two domains are of different patients.

  Args:
    seed: of the data set.
    patient_index: number of the patient in the domain.
    domain: "bssfp" or "lge".
    grid: voxels of the stack.
  """
  rng = np.random.default_rng((seed, list(SCAR_RATE).index(domain), patient_index))
  anatomy = draw_anatomy(rng, grid, scarred=rng.random() < SCAR_RATE[domain])
  signals = {"bssfp": scan_bssfp, "lge": scan_lge}[domain](rng)
  voxels = scan(rng, anatomy, signals, domain, grid)
  shares = [voxel_means(anatomy.classes == k, grid) for k in range(len(CLASSES))]
  return Phantom(voxels, np.argmax(shares, axis=0).astype(np.uint8), _draw_affine(rng, voxels.shape, grid))


def write_nifti(
  folder: str | Path, *, seed: int = 0, sources: int = 35, targets: int = 45, masks: int = 5, grid: Grid = GRID
) -> None:
  """Writes patients in the folders of MS-CMRSeg: C0 (bSSFP, with masks) and LGE.

  Args:
    folder: root of the two folders.
    seed: of the patients.
    sources, targets: number of patients in C0 and in LGE.
    masks: number of patients in LGE, the first, that have masks.
    grid: voxels of the stacks.
  """
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
  """Writes patients in nnU-Net's layout: the folders bssfp, all with masks, and lge.

  Args:
    folder: root of the two folders.
    seed: of the patients.
    sources, targets: number of patients in bssfp and in lge.
    masks: number of patients in lge, the first, that have masks.
    grid: voxels of the stacks.
    window: pixels of a square that is cut from a random position of each stack, so that the heart is off the middle;
      None for the whole stacks.

  Example:
    >>> write_nnunet("runs/own", sources=2, targets=2, masks=1)
  """
  for domain, patients, masked in (("bssfp", sources, sources), ("lge", targets, masks)):
    domain_folder = Path(folder, domain)
    for number in range(1, patients + 1):
      patient, name = draw_patient(seed, number - 1, domain, grid), f"{domain}_{number:03d}"
      if window is not None:
        patient = cut_window(np.random.default_rng((seed, number)), patient, window)
      mask = domain_folder / "labelsTr" / f"{name}.nii.gz" if number <= masked else None
      write_patient(patient, domain_folder / "imagesTr" / f"{name}_0000.nii.gz", mask, range(len(CLASSES)))
    description = {
      "channel_names": {"0": domain},
      "labels": {name: value for value, name in enumerate(CLASSES)},
      "numTraining": patients,
      "file_ending": ".nii.gz",
    }
    write_text(domain_folder / "dataset.json", json.dumps(description, indent=2) + "\n")


def cut_window(rng: np.random.Generator, patient: Phantom, pixels: int) -> Phantom:
  """Cuts a square of `pixels` × `pixels` from a random position of a patient's stack."""
  y, x = (int(rng.integers(size - pixels + 1)) for size in patient.voxels.shape[1:])
  window = (slice(None), slice(y, y + pixels), slice(x, x + pixels))
  affine = patient.affine.copy()
  affine[:3, 3] = (patient.affine @ (0, y, x, 1))[:3]
  return Phantom(patient.voxels[window], patient.classes[window], affine)


def write_patient(
  patient: Phantom, image: str | Path, mask: str | Path | None, label_values: Sequence[int] = LABEL_VALUES
) -> None:
  """Writes a patient's image and, unless it is None, the mask as NIfTI files. Missing folders are made."""
  write_volume(image, patient.voxels, patient.affine)
  if mask is not None:
    write_volume(mask, np.array(label_values)[patient.classes], patient.affine)


def scan(rng: np.random.Generator, anatomy: Anatomy, signals: np.ndarray, domain: str, grid: Grid) -> np.ndarray:
  """Images an anatomy.

  Args:
    rng: random generator.
    anatomy: of the patient.
    signals: (tissues,) signed signals.
    domain: "bssfp" or "lge", for the falloff, the blur and the noise.
    grid: of the anatomy.

  Returns:
    (D, H, W) float32 magnitude image, in random units.
  """
  image = np.abs(voxel_means(signals.astype(np.float32)[anatomy.tissues], grid))
  texture = gaussian_filter(rng.standard_normal(image.shape, np.float32), (0, 2, 2))
  image *= 1 + TEXTURE * texture / texture.std()
  depth = voxel_means(anatomy.depth, grid)
  image *= np.exp((depth[tuple(n // 2 for n in depth.shape)] - depth) / rng.uniform(*FALLOFF[domain]))
  image = gaussian_filter(image, (0, *rng.uniform(*BLUR[domain], size=2)))
  noisy = add_rician_noise(rng, image, rng.uniform(*NOISE[domain]) * float(signals[BLOOD]), GRAIN[domain])
  return 1000 * rng.uniform(0.5, 2) * noisy


def voxel_means(samples: np.ndarray, grid: Grid) -> np.ndarray:
  """(D, H, W) float32 means of samples (D', H', W') over each voxel."""
  k, n = grid.sub_slices, grid.oversampling
  total = np.zeros([size // factor for size, factor in zip(samples.shape, (k, n, n), strict=True)], np.float32)
  for a, b, c in itertools.product(range(k), range(n), range(n)):
    total += samples[a::k, b::n, c::n]
  return total / (k * n * n)


def add_rician_noise(rng: np.random.Generator, image: np.ndarray, sigma: float, grain: float = 0.0) -> np.ndarray:
  """The magnitude of an image with complex noise.

  Args:
    rng: random generator.
    image: (D, H, W) real signals.
    sigma: standard deviation of the Gaussian noise in the real and in the imaginary part.
    grain: pixels, standard deviation of the Gaussian by which the noise is smoothed in the plane.
  """
  noise = gaussian_filter(rng.standard_normal((2, *image.shape), np.float32), (0, 0, grain, grain))
  real, imaginary = noise * (sigma / float(noise.std()))
  return np.hypot(image + real, imaginary)


def _draw_affine(rng: np.random.Generator, shape: tuple[int, ...], grid: Grid) -> np.ndarray:
  """(4, 4) affine of a stack (D, H, W) near the orientation of MS-CMRSeg's."""
  u, _, v = np.linalg.svd(Rotation.from_rotvec(rng.normal(0, ORIENTATION_SPREAD, 3)).as_matrix() @ SHORT_AXIS.T)
  affine = np.eye(4)
  affine[:3, :3] = u @ v * (grid.thickness, grid.spacing, grid.spacing)
  affine[:3, 3] = rng.normal((-30, 20, 0), 10) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
  return affine
