"""Voxel sizes, directions and the axis across the slices, of headers that are incomplete or contradict themselves."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation

from vamcei_jax.data.geometry import (
  SHORT_AXIS,
  TURNS,
  check_voxels,
  is_parallel,
  orientation_of,
  read_geometry,
  slice_axis,
  spacing_of,
)
from vamcei_jax.data.scan import read_scan, scan_of_array
from vamcei_jax.errors import InputError

SIZE = (0.75, 0.8, 8.0)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.linalg.svd(SHORT_AXIS)[0] @ np.linalg.svd(SHORT_AXIS)[2]  # rows of directions, orthogonal
OBLIQUE[:3, :3] = OBLIQUE[[2, 1, 0], :3].T * SIZE  # columns: W, H, D


def header(affine=OBLIQUE, pixdim=SIZE, codes=(2, 0), unit="mm"):
  """A header with this sform (or without one) and these voxel sizes in pixdim."""
  made = nib.Nifti1Header()
  made.set_data_shape((192, 160, 12))
  made.set_xyzt_units(unit, "sec")
  if codes[1]:
    made.set_qform(affine, codes[1])
  made.set_sform(affine, codes[0])
  made["sform_code"] = codes[0]
  made["pixdim"][1:4] = pixdim
  return made


def sizes(*arguments, spacing=None, **options):
  geometry = read_geometry("a.nii", header(*arguments, **options), spacing)
  return voxel_sizes(geometry.affine), geometry


def test_a_consistent_header_is_taken_as_it_is():
  size, geometry = sizes()
  np.testing.assert_allclose(geometry.affine, OBLIQUE, atol=1e-6)
  assert not geometry.lost
  assert geometry.notes == ()


def test_zeros_of_pixdim_are_seen_in_a_file(tmp_path):
  """nibabel makes 1 of them when it reads a header."""
  for name, pixdim, codes in (("third", (0.75, 0.8, 0.0), (2, 0)), ("all", (0.0, 0.0, 0.0), (2, 0))):
    save_raw(tmp_path / "a.nii", header(pixdim=pixdim, codes=codes))
    scan = read_scan(tmp_path / "a.nii", "short_axis")
    np.testing.assert_allclose(scan.volume.spacing, (8.0, 0.8, 0.75), rtol=1e-5, err_msg=name)
    assert "pixdim says" in scan.notes[0]
    assert "0 mm" in scan.notes[0]
  save_raw(tmp_path / "a.nii", header(pixdim=(0.75, 0.8, 0.0), codes=(0, 1)))
  with pytest.raises(InputError, match="by pixdim. Correct the header, or give --spacing="):
    read_scan(tmp_path / "a.nii", "short_axis")
  assert read_scan(tmp_path / "a.nii", "short_axis", SIZE).volume.spacing[0] == pytest.approx(8.0)


def save_raw(path, head):
  """A file of zeros with exactly this header."""
  head["vox_offset"], head["magic"] = 352, b"n+1"
  path.write_bytes(head.binaryblock + bytes(4) + bytes(4 * 192 * 160 * 12))


def test_a_bare_number_on_the_axes_that_differ_loses():
  size, geometry = sizes(pixdim=(0.75, 0.8, 1.0))
  np.testing.assert_allclose(size, SIZE, rtol=1e-6)
  assert geometry.notes == ("voxel size of 0.75×0.8×8 mm by sform; pixdim says 0.75×0.8×1 mm",)


def test_a_header_without_any_size_is_said_to_have_none():
  size, geometry = sizes(pixdim=(1, 1, 1), codes=(0, 0))
  np.testing.assert_allclose(size, 1.0)
  assert geometry.notes == ("the header has no voxel size; 1×1×1 mm assumed",)


def test_a_bare_millimetre_loses_to_the_other_place():
  size, geometry = sizes(np.eye(4))
  np.testing.assert_allclose(size, SIZE, rtol=1e-6)
  assert geometry.lost
  assert geometry.notes == ("voxel size of 0.75×0.8×8 mm by pixdim; sform says 1×1×1 mm",)
  size, geometry = sizes(pixdim=(1, 1, 1))
  np.testing.assert_allclose(size, SIZE, rtol=1e-6)
  assert not geometry.lost
  assert geometry.notes == ("voxel size of 0.75×0.8×8 mm by sform; pixdim says 1×1×1 mm",)


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_bare_sform_does_not_stand_for_a_missing_number(bad):
  with pytest.raises(
    InputError, match=r"a.nii: voxels of 1.5×1.5×.* by pixdim. Correct the header, or give --spacing="
  ):
    sizes(np.eye(4), pixdim=(1.5, 1.5, bad))


@pytest.mark.parametrize("factor", [1.02, 0.9, 3.0])
def test_pixdim_is_believed_where_neither_is_bare(factor):
  size, geometry = sizes(pixdim=np.multiply(SIZE, factor))
  np.testing.assert_allclose(size, np.multiply(SIZE, factor), rtol=1e-6)
  assert len(geometry.notes) == 1
  size, geometry = sizes(pixdim=np.multiply(SIZE, 1.005))  # rounding
  np.testing.assert_allclose(size, SIZE, rtol=1e-6)
  assert geometry.notes == ()


def test_units_are_millimetres_metres_or_micrometres():
  for unit, factor in (("mm", 1.0), ("meter", 1e-3), ("micron", 1e3), ("unknown", 1.0)):
    scaled = np.diag([factor] * 3 + [1.0]) @ OBLIQUE
    size, geometry = sizes(scaled, np.multiply(SIZE, factor), unit=unit)
    np.testing.assert_allclose(geometry.affine, OBLIQUE, rtol=1e-5, atol=1e-5)
    assert geometry.notes == ()


def test_without_codes_directions_are_lost_and_pixdim_has_the_size():
  size, geometry = sizes(codes=(0, 0))
  np.testing.assert_allclose(size, SIZE, rtol=1e-6)
  assert geometry.lost


def test_a_qform_has_directions():
  _, geometry = sizes(codes=(0, 1))
  np.testing.assert_allclose(geometry.affine, OBLIQUE, atol=1e-5)
  assert not geometry.lost


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_voxel_size_that_is_missing_comes_from_the_sform_or_is_named(bad):
  size, _ = sizes(pixdim=(0.75, 0.8, bad))
  np.testing.assert_allclose(size, SIZE, rtol=1e-6)
  for codes in ((0, 0), (0, 1)):
    with pytest.raises(InputError, match=r"a.nii: voxels of .* by pixdim. Correct the header, or give --spacing="):
      sizes(pixdim=(0.75, 0.8, bad), codes=codes)
    size, _ = sizes(pixdim=(0.75, 0.8, bad), codes=codes, spacing=SIZE)
    np.testing.assert_allclose(size, SIZE, rtol=1e-6)


def test_a_given_spacing_is_in_millimetres_whatever_the_header_says():
  for arguments in ({}, {"unit": "meter"}, {"pixdim": (1, 2, 3)}):
    size, geometry = sizes(**arguments, spacing=(1.5, 1.25, 9.0))
    np.testing.assert_allclose(size, (1.5, 1.25, 9.0), rtol=1e-6)
    assert geometry.notes == ()


def test_voxel_sizes_that_no_heart_is_imaged_with_are_named():
  for good in ((5.0, 0.7, 0.7), (0.5, 0.1, 10.0), (30.0, 1.0, 1.0)):
    check_voxels("a.nii", good)
  for bad in ((0.4, 0.7, 0.7), (40.0, 0.7, 0.7), (5.0, 0.05, 0.7), (5.0, 0.7, 12.0)):
    with pytest.raises(InputError, match="a.nii: voxels of .* mm .*--spacing=MM,MM,MM along the file's axes"):
      check_voxels("a.nii", bad)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_slice_axis_is_found_wherever_it_is_stored(order):
  """By the number of slices, by their distance, by direction, or as the odd one out: in a file of any axis order."""
  stacks = {
    "thick slices": (OBLIQUE, SIZE, (192, 160, 12)),
    "a slice": (OBLIQUE, SIZE, (192, 160, 1)),
    "a step below the pixel size": (OBLIQUE, (0.75, 0.8, 0.5), (192, 160, 12)),
    "unequal pixels and a small step": (np.eye(4), (0.9, 1.6, 0.6), (256, 256, 9)),
    "few thick slices of a small image": (np.eye(4), (1.0, 1.0, 8.0), (16, 16, 12)),
    "thick slices of a narrow strip": (OBLIQUE, SIZE, (160, 12, 20)),
    "isotropic": (OBLIQUE, (1.0, 1.0, 1.0), (140, 120, 96)),
    "isotropic without directions": (np.eye(4), (1.0, 1.0, 1.0), (140, 140, 96)),
  }
  for name, (affine, spacing, shape) in stacks.items():
    affine = affine.copy()
    affine[:3, :3] *= np.divide(spacing, voxel_sizes(affine))
    stored = affine[:, [*order, 3]]
    assert slice_axis("a.nii", stored, [shape[axis] for axis in order]) == order.index(2), name


def test_a_slice_axis_that_cannot_be_told_is_named():
  with pytest.raises(InputError, match="a.nii: 140×120×96 voxels of 1×1×1 mm: which axis goes across the slices"):
    slice_axis("a.nii", np.eye(4), (140, 120, 96))


def test_an_affine_is_parallel_to_the_body_or_not():
  assert not is_parallel(OBLIQUE)
  turned = np.eye(4)
  turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]  # about the body's long axis, which stays the third one
  assert not is_parallel(turned)
  assert is_parallel(np.diag([0.7, -0.8, 9.0, 1.0]))
  assert is_parallel(np.diag([0.7, -0.8, 9.0, 1.0])[:, [2, 0, 1, 3]])


def test_the_distance_of_leaning_slices_is_that_of_their_planes():
  straight = OBLIQUE[:, [2, 1, 0, 3]] @ np.diag([8.0, 1.25, 1.5, 1.0])
  leaning = straight.copy()
  leaning[:3, 0] += 1.5 * straight[:3, 1] - 0.5 * straight[:3, 2]
  assert voxel_sizes(leaning)[0] > 8.2
  assert spacing_of(leaning) == pytest.approx(spacing_of(straight))
  assert np.prod(spacing_of(leaning)) == pytest.approx(abs(np.linalg.det(leaning[:3, :3])))
  assert spacing_of(straight) == tuple(voxel_sizes(straight))


def test_the_eight_turns_of_a_scan_lie_on_the_same_voxels():
  """Each turn is another arrangement of the slices, and leads back to the axes of the array."""
  voxels = np.random.default_rng(0).uniform(size=(3, 40, 50)).astype(np.float32)
  scan = scan_of_array(voxels, (8.0, 1.5, 1.25), "short_axis")
  assert scan.lost
  seen = set()
  for turn in TURNS:
    turned = scan.turned(turn)
    np.testing.assert_array_equal(turned.restore_axes(turned.volume.voxels), voxels)
    place = lambda volume: nib.affines.apply_affine(volume.affine, np.argwhere(volume.voxels == voxels[1, 7, 5])[0])
    np.testing.assert_allclose(place(turned.volume), place(scan.volume), atol=1e-4)
    seen.add(turned.volume.voxels.tobytes())
  assert len(seen) == 8
  np.testing.assert_array_equal(scan.turned(TURNS[0]).volume.voxels, voxels)


@pytest.mark.parametrize("turn", range(8))
def test_turning_twice_is_one_orientation_of_the_file(turn):
  image = np.random.default_rng(1).uniform(size=(6, 7, 3)).astype(np.float32)
  affine = OBLIQUE.copy()
  orientation = orientation_of("a.nii", affine, image.shape, "short_axis")
  scan = scan_of_array(apply_orientation(image, orientation), SIZE[::-1], "short_axis")
  turned = scan.turned(TURNS[turn]).turned(TURNS[turn])
  np.testing.assert_array_equal(turned.restore_axes(turned.volume.voxels), scan.volume.voxels)
