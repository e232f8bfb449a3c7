"""The anatomy of synthetic patients: maps of the tissues around the heart in short-axis planes, drawn in millimetres.

As in MS-CMRSeg's arrays, D runs from apex to base and the right ventricle lies left of the left one, the liver above
it, the chest wall to the lower left and the lung to the lower right.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from vamcei_jax.phantom.signal import (
  AIR,
  BLOOD,
  BONE,
  FAT,
  LIVER,
  LUNG,
  MARROW,
  MUSCLE,
  MYOCARDIUM,
  SCAR,
  SPLEEN,
  VENOUS_BLOOD,
)

MYO, LV, RV = 1, 2, 3  # classes

# Ranges over patients, in mm.
LENGTH = (62, 80)  # of the left ventricle's cavity
CAVITY = (22, 30)  # its radius at the base
WALL = (8, 12.5)
RV_HALF_WIDTH, RV_HALF_HEIGHT, RV_WALL = (26, 34), (38, 46), 2
EPICARDIAL_FAT, FAT_PAD, SKIN_FAT, CHEST_MUSCLE = (0, 3), (2, 12), (7, 16), (12, 20)
MISREGISTRATION = 1.0  # of slices, which are taken in different breath-holds: standard deviation

# Directions in the plane, in radians: 0 is right, pi / 2 is down.
CHEST = math.radians(150)
PAPILLARIES = (math.radians(-65), math.radians(40))
TERRITORIES = (math.radians(135), math.radians(-110), math.radians(-15))  # of LAD, RCA and circumflex

BINS = 512  # of the circle
ANGLES = np.arange(BINS) * (2 * math.pi / BINS)


@dataclasses.dataclass(frozen=True)
class Grid:
  """The voxels of a stack, and the finer samples at which anatomies are drawn.

  pixels: along both axes of a slice.
  spacing, thickness: of a voxel in mm, in the plane and across it.
  oversampling, sub_slices: samples per voxel, along each axis of the plane and across it.
  """

  pixels: int = 96
  spacing: float = 1.5
  thickness: float = 8.0
  oversampling: int = 2
  sub_slices: int = 2


GRID = Grid()


@dataclasses.dataclass(frozen=True)
class Anatomy:
  """One patient at the samples (D', H', W') of a grid.

  tissues: uint8, indices of vamcei_jax/phantom/signal.py.
  classes: uint8, class indices.
  depth: mm under the skin of the chest, negative outside of the body.
  """

  tissues: np.ndarray
  classes: np.ndarray
  depth: np.ndarray


def draw_anatomy(rng: np.random.Generator, grid: Grid, *, scarred: bool) -> Anatomy:
  """Draws one patient, with an infarct in the wall of the left ventricle if `scarred`."""
  # Planes from below the apex of the cavity (z = 0) to above the valves, and offsets (mm) from the cavity's axis.
  length, start = rng.uniform(*LENGTH), rng.uniform(-7, 0)
  slices = math.ceil((length + rng.uniform(2, 9) - start) / grid.thickness)
  z = start + (np.arange(slices * grid.sub_slices) + 0.5) * (grid.thickness / grid.sub_slices)
  level = z / length
  breath = np.repeat(rng.normal(0, MISREGISTRATION, (slices, 2)), grid.sub_slices, axis=0)
  axis = rng.normal((14, -1), (3, 5)) + np.outer(z - length / 2, rng.uniform(-0.12, 0.12, 2)) + breath
  samples = grid.pixels * grid.oversampling
  x = (np.arange(samples) - (samples - 1) / 2) * (grid.spacing / grid.oversampling)
  dx, dy = (x - axis[:, :1]).astype(np.float32)[:, None, :], (x - axis[:, 1:]).astype(np.float32)[:, :, None]

  # Distances (mm, negative inside) to the heart's surfaces.
  around = _Polar(dx, dy)
  endo, epi = _left_ventricle(rng, level, length)
  cavity, lv = around.radius - around.at(endo), around.radius - around.at(epi)
  rv = _right_ventricle(rng, level, epi.mean(1), dx, dy)
  heart = _smooth_minimum(lv, rv - RV_WALL, 10)
  valves = _planes(z - length) + rng.uniform(-0.08, 0.08) * dx + rng.uniform(-0.08, 0.08) * dy

  # Tissues, from the back to the front.
  canvas = _Canvas(rng, grid, slices)
  canvas.paint(BLOOD, canvas.specks(0.8, 0.01))
  abdomen = _paint_abdomen(rng, canvas, dx, dy, level, epi.mean(1))
  depth, chest = _paint_chest(rng, canvas, dx, dy, z - length / 2)
  canvas.paint(FAT, (_smooth_minimum(heart, _smooth_minimum(abdomen, chest, 20), 12) < 0) & (abdomen > 0) & (chest > 0))
  fat = rng.uniform(*EPICARDIAL_FAT) + _ripples(rng, level, range(1, 7), 2)
  fat += rng.uniform(*FAT_PAD) * np.maximum(0, np.cos(ANGLES - CHEST))
  canvas.paint(FAT, heart < around.at(fat))
  canvas.paint(MYOCARDIUM, rv < RV_WALL)
  canvas.paint(VENOUS_BLOOD, rv < 0)
  canvas.paint(MYOCARDIUM, (rv < 0) & (rv > -8) & canvas.specks(0.8, 0.15))
  canvas.paint(MYOCARDIUM, lv < 0)
  canvas.paint(BLOOD, cavity < around.at(-endo * _trabeculae(rng, level)))
  canvas.paint(MYOCARDIUM, (cavity < 0) & (cavity > -5) & (valves < -0.3 * length) & canvas.specks(0.7, 0.15))
  for papillary in _papillaries(rng, level, endo.mean(1), dx, dy):
    canvas.paint(MYOCARDIUM, papillary & (cavity < 0))
  if scarred:
    canvas.paint(SCAR, (cavity > 0) & (cavity < around.at(_infarct(rng, level) * (epi - endo))))
  canvas.paint(MUSCLE, (heart < 0) & (valves > 0))
  canvas.paint(VENOUS_BLOOD, (heart < -1.5) & (valves > 0))
  for blood, vessel in _great_vessels(rng, epi.mean(1).max(), dx, dy):
    canvas.paint(MUSCLE, (vessel < 1.5) & (valves > 0))
    canvas.paint(blood, (vessel < 0) & (valves > 0))

  classes = np.zeros(lv.shape, np.uint8)
  for label, surface in ((RV, rv), (MYO, lv), (LV, cavity)):
    np.copyto(classes, np.uint8(label), where=(surface < 0) & (valves < 0))
  return Anatomy(canvas.tissues, classes, depth)


def _left_ventricle(rng: np.random.Generator, level: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
  """(planes, BINS) radii of the inner and the outer surface of the wall; 0 in planes below a surface."""
  radius, wall, apex = rng.uniform(*CAVITY), rng.uniform(*WALL), rng.uniform(5, 7)
  outer = (radius + wall) * _taper((level * length + apex) / (length + apex))
  endo = (radius * _taper(level))[:, None] * (1 + _ripples(rng, level, range(2, 7), 0.08))
  epi = np.maximum(outer[:, None] * (1 + _ripples(rng, level, range(2, 7), 0.06)), endo + 0.65 * wall)
  return endo, epi * (outer > 0)[:, None]


def _taper(level: np.ndarray) -> np.ndarray:
  """Relative radius of a ventricle: 0 at its apex, 1 at its base."""
  return np.sqrt(1 - (1 - np.clip(level, 0, 1)) ** 2.2)


def _trabeculae(rng: np.random.Generator, level: np.ndarray) -> np.ndarray:
  """(planes, BINS) share of the cavity's radius that ridges of muscle fill; it is larger towards the apex."""
  ridges = np.maximum(0, _ripples(rng, level, range(7, 25), 3))
  return ridges * np.interp(level, (0, 1), (0.15, 0.03))[:, None]


def _papillaries(
  rng: np.random.Generator, level: np.ndarray, radius: np.ndarray, dx: np.ndarray, dy: np.ndarray
) -> Iterator[np.ndarray]:
  """Masks of the two papillary muscles."""
  for direction in PAPILLARIES + rng.normal(0, 0.25, 2):
    along = (level - rng.uniform(0.35, 0.45)) / rng.uniform(0.22, 0.32)
    size = rng.uniform(3.5, 6) * np.sqrt(np.maximum(0, 1 - along**2))
    reach = rng.uniform(0.6, 0.8) * radius
    x, y = dx - _planes(reach * math.cos(direction)), dy - _planes(reach * math.sin(direction))
    yield x**2 + y**2 + rng.uniform(-0.8, 0.8) * x * y < _planes(size) ** 2


def _infarct(rng: np.random.Generator, level: np.ndarray) -> np.ndarray:
  """(planes, BINS) share of the wall, from the inner surface on, that is scar: a sector in an artery's territory."""
  direction = rng.choice(TERRITORIES) + rng.normal(0, 0.25)
  width, extent, transmurality = rng.uniform(0.5, 1.2), rng.uniform(0.15, 0.4), rng.uniform(0.4, 1.1)
  angle = (ANGLES - direction + math.pi) % (2 * math.pi) - math.pi
  height = ((level - rng.uniform(0.25, 0.75)) / extent)[:, None]
  inside = np.clip(2 * (1 - (angle / width) ** 2 - height**2), 0, 1)
  return inside * np.clip(transmurality * (1 + _ripples(rng, level, range(3, 12), 0.6)), 0, 1)


def _right_ventricle(
  rng: np.random.Generator, level: np.ndarray, septum: np.ndarray, dx: np.ndarray, dy: np.ndarray
) -> np.ndarray:
  """Approximate distance (mm) to the surface of an ellipse whose right part the left ventricle covers."""
  size = np.maximum(1e-3, _taper((level - rng.uniform(0.14, 0.26)) / 0.85))
  width, height = rng.uniform(*RV_HALF_WIDTH) * size, rng.uniform(*RV_HALF_HEIGHT) * size
  direction, turn = math.pi + rng.normal(0.15, 0.12), rng.normal(0.15, 0.12)
  reach = septum + 0.2 * width
  x, y = dx - _planes(reach * math.cos(direction)), dy - _planes(reach * math.sin(direction))
  u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
  around = _Polar(u / _planes(width), v / _planes(height))
  outline = 1 + _ripples(rng, level, range(2, 7), 0.1) + 0.08 * np.cos(3 * ANGLES + math.pi / 2)
  return (around.radius - around.at(outline)) * _planes(np.sqrt(width * height))


def _great_vessels(
  rng: np.random.Generator, radius: float, dx: np.ndarray, dy: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
  """Blood and distance (mm) of each vessel above the valves: left atrium, aorta, right atrium, pulmonary trunk."""
  left, right = ((0.1, -0.25, 0.75), (-0.6, 0.35, 0.45)), ((-1.1, -0.45, 0.7), (-0.9, 1.0, 0.45))
  for blood, vessel in [*((BLOOD, v) for v in left), *((VENOUS_BLOOD, v) for v in right)]:
    x, y, size = (radius * rng.normal(vessel, (0.08, 0.08, 0.05))).tolist()
    yield blood, np.sqrt((dx - x) ** 2 + (dy - y) ** 2) - size


def _paint_abdomen(
  rng: np.random.Generator, canvas: _Canvas, dx: np.ndarray, dy: np.ndarray, level: np.ndarray, radius: np.ndarray
) -> np.ndarray:
  """Paints liver and spleen. Returns the distance (mm) to the diaphragm, negative in the abdomen."""
  below = 0.5 * (radius + radius.max()) + rng.uniform(2, 7)
  abdomen = dy + _planes(below) + rng.uniform(-0.35, -0.05) * dx + 2 * np.sin(dx / 14 + rng.uniform(0, 6))
  flank = dx - _planes(rng.uniform(5, 40) + 20 * level) + 0.3 * dy + 3 * np.sin(dy / 9 + rng.uniform(0, 6))
  canvas.paint(FAT, abdomen < rng.uniform(0, 3))
  canvas.paint(MUSCLE, abdomen < 0)
  canvas.paint(LIVER, abdomen < -2)
  canvas.paint(VENOUS_BLOOD, (abdomen < -6) & canvas.specks(1.5, 0.03))
  canvas.paint(FAT, (abdomen < -2) & (flank > 0))
  canvas.paint(SPLEEN, (abdomen < -4) & (flank > 3))
  return abdomen


def _paint_chest(
  rng: np.random.Generator, canvas: _Canvas, dx: np.ndarray, dy: np.ndarray, z: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Paints the chest wall, which recedes towards the base. Returns the depths (mm) under its outside and inside."""
  fat, muscle = rng.uniform(*SKIN_FAT), rng.uniform(*CHEST_MUSCLE)
  outwards = dx * math.cos(CHEST) + dy * math.sin(CHEST)
  along = dy * math.cos(CHEST) - dx * math.sin(CHEST)
  skin = rng.uniform(46, 56) + fat + muscle + 0.3 * z
  depth = _planes(skin) - outwards - along**2 / rng.uniform(220, 320)
  under_fat = depth - fat * (1 + 0.15 * np.sin(along / 30 + rng.uniform(0, 6)))
  rib = (along + _planes(0.4 * z + rng.uniform(0, 28))) % 28 - 14
  rib = (rib / 8) ** 2 + ((under_fat - 0.6 * muscle) / 4.5) ** 2
  canvas.paint(MUSCLE, under_fat < muscle)
  canvas.paint(FAT, (under_fat < muscle) & canvas.specks(1.5, 0.2))
  canvas.paint(BONE, rib < 1)
  canvas.paint(MARROW, rib < 0.5)
  canvas.paint(FAT, under_fat < 0)
  canvas.paint(MUSCLE, depth < 1.5)
  canvas.paint(AIR, depth < 0)
  return depth, under_fat - muscle


class _Canvas:
  """Tissues (planes, H', W'), painted over each other, on a background of lung."""

  def __init__(self, rng: np.random.Generator, grid: Grid, slices: int):
    self._rng, self._grid = rng, grid
    samples = grid.pixels * grid.oversampling
    self.tissues = np.full((slices * grid.sub_slices, samples, samples), LUNG, np.uint8)

  def paint(self, tissue: int, mask: np.ndarray) -> None:
    """Paints a tissue where a mask (planes, H', W') is set."""
    np.copyto(self.tissues, np.uint8(tissue), where=mask)

  def specks(self, size: float, share: float) -> np.ndarray:
    """Mask of random specks of about `size` pixels that fill this share of the field."""
    scale = self._grid.sub_slices, self._grid.oversampling, self._grid.oversampling
    shape = [n // m for n, m in zip(self.tissues.shape, scale, strict=True)]
    noise = gaussian_filter(self._rng.standard_normal(shape, np.float32), (0, size, size))
    specks = noise > np.quantile(noise, 1 - share)
    for axis, times in enumerate(scale):
      specks = specks.repeat(times, axis)
    return specks


class _Polar:
  """Polar coordinates of the samples, to compare their radius with an outline that is given over the angle."""

  def __init__(self, x: np.ndarray, y: np.ndarray):
    self.radius = np.sqrt(x**2 + y**2)
    bins = (np.arctan2(y, x) * (BINS / (2 * math.pi))).astype(np.int32) % BINS
    self._index = bins + BINS * np.arange(len(bins), dtype=np.int32)[:, None, None]

  def at(self, outlines: np.ndarray) -> np.ndarray:
    """The values of (planes, BINS) outlines at the angle of every sample."""
    return outlines.astype(np.float32).ravel()[self._index]


def _ripples(rng: np.random.Generator, level: np.ndarray, orders: Sequence[int], amplitude: float) -> np.ndarray:
  """(planes, BINS) random smooth functions of the angle, of about this amplitude, that change slowly with the level."""
  waves = np.concatenate([f(np.outer(orders, ANGLES)) for f in (np.cos, np.sin)])
  apex, base = rng.normal(0, np.tile(amplitude / (2 * np.asarray(orders)), (2, 2))) @ waves
  return apex + np.clip(level, 0, 1)[:, None] * (base - apex)


def _smooth_minimum(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
  """Minimum of two distances, smoothed over `width` mm where they meet."""
  return np.minimum(a, b) - np.maximum(0, width - np.abs(a - b)) ** 2 / (4 * width)


def _planes(values: np.ndarray | float) -> np.ndarray:
  """Numbers, one a plane, as an array that broadcasts to (planes, H', W')."""
  return np.asarray(values, np.float32)[:, None, None]
