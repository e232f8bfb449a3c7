import gzip
import itertools
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from vamcei_jax.data.labels import folded_values
from vamcei_jax.data.nifti import compact, list_unread, list_volumes, read_classes, read_volume, write_volume
from vamcei_jax.data.scan import read_scan
from vamcei_jax.errors import InputError

LABELS = (0, 200, 500, 600)
SHAPE = (7, 6, 4)  # columns, rows, slices, as stored
# Columns, rows, slices of two short-axis stacks that are stored alike but have other "closest canonical" axes.
STACKS = {
  "LSP": [[-0.72, -0.68, 0.13], [-0.34, 0.51, 0.79], [0.6, -0.53, 0.6]],
  "PSR": [[-0.63, -0.74, -0.21], [-0.33, 0.01, 0.94], [0.7, -0.67, 0.25]],
}
ORIENTATIONS = [
  np.array(list(zip(axes, flips, strict=True)))
  for axes in itertools.permutations(range(3))
  for flips in itertools.product((1, -1), repeat=3)
]


def write_map(path, voxels, like, plane="short_axis"):
  """Writes a canonical map on the grid of a file."""
  scan = read_scan(Path(like), plane)
  scan.save(path, scan.restore_axes(voxels))


def write_classes(path, classes, label_values, like):
  """Writes canonical class indices as a mask of label values on the grid of a file."""
  write_map(path, compact(np.array([values[0] for values in folded_values(label_values)]))[classes], like)


def make_affine(directions, spacing=(1.2, 1.3, 8.0), origin=(10.0, -20.0, 30.0)):
  """Affine of a file whose voxel axes have these directions in RAS."""
  return nib.affines.from_matvec(np.transpose(directions) * spacing, origin)


def random_affine(rng, spacing=(1.2, 1.3, 8.0)):
  return make_affine(np.linalg.qr(rng.normal(size=(3, 3)))[0], spacing, rng.normal(scale=50, size=3))


def save(path, voxels, affine=None, **header):
  """A NIfTI file, by nibabel alone."""
  image = nib.Nifti1Image(voxels, make_affine(STACKS["LSP"]) if affine is None else affine)
  for field, value in header.items():
    image.header[field] = value
  image.to_filename(path)
  return path


def patched(path, at, value):
  """A file without compression, some bytes of its header overwritten."""
  content = bytearray(path.read_bytes())
  content[at : at + len(value)] = value
  path.write_bytes(content)
  return path


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture
def stored(rng):
  return rng.normal(size=SHAPE).astype(np.float32)


# Orientation


@pytest.mark.parametrize("codes", STACKS)
def test_short_axis_stacks_near_45_degrees_are_turned_alike(tmp_path, stored, codes):
  affine = make_affine(STACKS[codes])
  assert nib.aff2axcodes(affine) == tuple(codes)
  volume = read_volume(save(tmp_path / "stack.nii", stored, affine))
  np.testing.assert_array_equal(volume.voxels, stored.transpose(2, 1, 0))
  np.testing.assert_allclose(volume.affine, affine[:, [2, 1, 0, 3]], rtol=1e-6)
  np.testing.assert_allclose(volume.spacing, (8.0, 1.3, 1.2), rtol=0.01)  # the directions are rounded


@given(seed=st.integers(0, 2**32 - 1), orientation=st.sampled_from(ORIENTATIONS))
def test_turning_a_file_changes_nothing(tmp_path_factory, seed, orientation):
  rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("turned")
  stored, affine = rng.normal(size=SHAPE).astype(np.float32), random_affine(rng)
  turned, turned_affine = apply_orientation(stored, orientation), affine @ inv_ornt_aff(orientation, SHAPE)
  original = read_volume(save(folder / "original.nii", stored, affine))
  volume = read_volume(save(folder / "turned.nii", turned, turned_affine))
  np.testing.assert_array_equal(volume.voxels, original.voxels)
  np.testing.assert_allclose(volume.affine, original.affine, atol=1e-4)  # headers keep float32

  write_classes(folder / "mask.nii", np.digitize(volume.voxels, [-1, 0, 1]), LABELS, like=folder / "turned.nii")
  mask = nib.load(folder / "mask.nii")
  np.testing.assert_array_equal(np.asarray(mask.dataobj), np.take(LABELS, np.digitize(turned, [-1, 0, 1])))
  np.testing.assert_array_equal(mask.affine, nib.load(folder / "turned.nii").affine)


@given(seed=st.integers(0, 2**32 - 1))
def test_the_affine_gives_every_voxel_the_place_that_the_file_gives_it(tmp_path_factory, seed):
  rng = np.random.default_rng(seed)
  stored, affine = rng.permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.float32), random_affine(rng)
  volume = read_volume(save(tmp_path_factory.mktemp("placed") / "stack.nii", stored, affine))
  place = lambda voxels, to_ras: nib.affines.apply_affine(to_ras, np.argwhere(voxels == 17.0)[0])
  np.testing.assert_allclose(place(volume.voxels, volume.affine), place(stored, affine), atol=1e-4)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_body_s_planes_do_not_depend_on_how_a_volume_is_stored(tmp_path, stored, rng, plane):
  """Whatever axes and spacing a file has, D, H and W run along the same axes of the body."""
  image = nib.Nifti1Image(stored, np.diag([1.0, 2.0, 3.0, 1.0]))
  straight = read_volume(save(tmp_path / "straight.nii", stored, image.affine), plane)
  across = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
  assert straight.voxels.shape[0] == SHAPE[across]
  np.testing.assert_allclose(abs(straight.affine[across, 0]), across + 1)
  for number, turn in enumerate(ORIENTATIONS[:: len(ORIENTATIONS) // 8]):
    path = tmp_path / f"{number}.nii.gz"
    image.as_reoriented(turn).to_filename(path)
    turned = read_volume(path, plane)
    np.testing.assert_array_equal(turned.voxels, straight.voxels)
    np.testing.assert_allclose(turned.affine, straight.affine, atol=1e-6)
    write_map(tmp_path / f"map{number}.nii.gz", turned.voxels, path, plane)
    np.testing.assert_array_equal(nib.load(tmp_path / f"map{number}.nii.gz").dataobj, nib.load(path).dataobj)


# Voxels


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_scale_and_intercept_are_applied_to_every_type(tmp_path, dtype):
  stored = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)
  path = save(tmp_path / "stack.nii", stored)
  patched(path, 112, np.array([2.0, -5.0], np.float32).tobytes())  # scl_slope, scl_inter
  voxels = read_volume(path).voxels
  assert voxels.dtype == np.float32
  np.testing.assert_array_equal(voxels, 2.0 * stored.transpose(2, 1, 0) - 5.0)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_both_nifti_versions_are_read_and_kept(tmp_path, stored, kind):
  kind(stored, make_affine(STACKS["LSP"])).to_filename(tmp_path / "image.nii.gz")
  np.testing.assert_array_equal(read_volume(tmp_path / "image.nii.gz").voxels, stored.transpose(2, 1, 0))
  write_classes(tmp_path / "mask.nii.gz", np.ones(SHAPE[::-1], np.uint8), LABELS, like=tmp_path / "image.nii.gz")
  assert type(nib.load(tmp_path / "mask.nii.gz")) is kind


@pytest.mark.parametrize("further", [1, 2, 4])
def test_further_axes_of_one_are_dropped(tmp_path, stored, further):
  path = save(tmp_path / "stack.nii.gz", stored.reshape(*SHAPE, *[1] * further))
  np.testing.assert_array_equal(read_volume(path).voxels, stored.transpose(2, 1, 0))
  write_classes(tmp_path / "mask.nii.gz", np.zeros(SHAPE[::-1], np.uint8), LABELS, like=path)
  assert nib.load(tmp_path / "mask.nii.gz").shape == SHAPE


def test_bytes_after_the_gzip_data_are_ignored_if_its_checksum_is_right(tmp_path, stored):
  path = save(tmp_path / "stack.nii.gz", stored)
  content = path.read_bytes()
  path.write_bytes(content + b"garbage" * 2**18)
  np.testing.assert_array_equal(read_volume(path).voxels, stored.transpose(2, 1, 0))
  path.write_bytes(content[:-8] + b"\0\0\0\0" + content[-4:] + b"garbage")
  with pytest.raises(InputError, match="not a readable NIfTI file .CRC check failed"):
    read_volume(path)


def test_a_bomb_after_few_voxels_is_not_read(tmp_path):
  """The header of the other NIfTI version, whose size is read first, is longer than this file."""
  path = save(tmp_path / "stack.nii", np.ones((2, 2, 2), np.uint8))
  content = path.read_bytes()
  path.write_bytes(content + b"garbage")
  assert read_volume(path).voxels.shape == (2, 2, 2)
  (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(content) + gzip.compress(b"\0" * 2**26, 9) * 60)
  with pytest.raises(InputError, match="longer than the 360 bytes by its header"):
    read_volume(tmp_path / "bomb.nii.gz")


@pytest.mark.parametrize(("size", "fits"), [(2**22, True), (2**26, False)])
def test_header_extensions_of_some_megabytes_are_read(tmp_path, stored, size, fits):
  image = nib.Nifti1Image(stored, make_affine(STACKS["LSP"]))
  image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * (size - 8)))
  image.to_filename(tmp_path / "stack.nii")
  if fits:
    np.testing.assert_array_equal(read_volume(tmp_path / "stack.nii").voxels, stored.transpose(2, 1, 0))
    return
  with pytest.raises(InputError, match="beyond 64 MiB of header extensions"):
    read_volume(tmp_path / "stack.nii")


# Labels


def canonical(stored):
  return stored.transpose(2, 1, 0)


@pytest.fixture
def image(tmp_path):
  return read_volume(save(tmp_path / "image.nii", np.zeros(SHAPE, np.float32)))


@pytest.fixture
def classes(rng):
  return rng.integers(0, 4, SHAPE).astype(np.uint8)


@pytest.mark.parametrize(
  "encode",
  [
    lambda labels: labels.astype(np.int32),
    lambda labels: labels.astype(np.float32) * np.float32(1 - 5e-7),  # 199.9999
    lambda labels: labels + np.random.default_rng(1).uniform(-0.01, 0.01, labels.shape),
  ],
)
def test_labels_are_read_from_integers_and_from_rounded_floats(tmp_path, image, classes, encode):
  path = save(tmp_path / "mask.nii.gz", encode(np.take(LABELS, classes)))
  read = read_classes(path, image, LABELS)
  assert read.dtype == np.uint8
  np.testing.assert_array_equal(read, canonical(classes))


@pytest.mark.parametrize("slope", [2.0, 600 / 32767])
def test_labels_are_read_through_a_scale_factor(tmp_path, image, classes, slope):
  path = save(tmp_path / "mask.nii", np.rint(np.take(LABELS, classes) / slope).astype(np.int16))
  patched(path, 112, np.array([slope, 0.0], np.float32).tobytes())
  np.testing.assert_array_equal(read_classes(path, image, LABELS), canonical(classes))


@pytest.mark.parametrize(
  ("unknown", "named"),
  [([100.4], "100.4"), ([200.4], "200.4"), ([-1, 7, 201], "-1, 7, 201"), (range(1, 9), "1, 2, 3, 4, 5 and 3 more")],
)
def test_unknown_labels_are_named(tmp_path, image, unknown, named):
  stored = np.zeros(SHAPE, np.float32)
  stored.flat[: len(unknown)] = unknown
  path = save(tmp_path / "mask.nii", stored)
  with pytest.raises(InputError) as error:
    read_classes(path, image, LABELS)
  message = f"{path}: unknown label values {named}; expected only 0, 200, 500, 600. Correct the mask or "
  assert str(error.value).startswith(message)


def test_a_mask_with_voxels_that_are_no_numbers_is_refused(tmp_path, image):
  stored = np.zeros(SHAPE, np.float32)
  stored[0, 0, 0] = np.nan
  with pytest.raises(InputError, match="1 of 168 voxels are NaN or infinite"):
    read_classes(save(tmp_path / "mask.nii", stored), image, LABELS)


def test_several_values_are_folded_into_a_class_and_written_as_the_first(tmp_path, image, classes):
  folded = (0, (200, 1220, 2221), (500,), 600)
  values = np.take((0, 200, 500, 600), classes)
  values[::2][classes[::2] == 1] = 2221
  read = read_classes(save(tmp_path / "mask.nii.gz", values.astype(np.int16)), image, folded)
  np.testing.assert_array_equal(read, canonical(classes))
  write_classes(tmp_path / "written.nii.gz", read, folded, like=tmp_path / "image.nii")
  np.testing.assert_array_equal(nib.load(tmp_path / "written.nii.gz").dataobj, np.take((0, 200, 500, 600), classes))


def test_a_mask_that_lies_elsewhere_is_refused(tmp_path, image, classes):
  affine = make_affine(STACKS["LSP"])
  mask = np.take(LABELS, classes).astype(np.int16)
  # Slices of 8 mm, where 2 mm are less than half a slice, and of 3 mm.
  for thickness, limit in ((8.0, 2.0), (3.0, 1.5)):
    place = make_affine(STACKS["LSP"], (1.2, 1.3, thickness))
    like = read_volume(save(tmp_path / "like.nii", np.ones(SHAPE, np.float32), place))
    for name, shift in (("near", 0.9 * limit), ("beside", 1.2 * limit)):
      moved = place.copy()
      moved[0, 3] += shift
      path = save(tmp_path / f"{name}.nii", mask, moved)
      if name == "near":
        np.testing.assert_array_equal(read_classes(path, like, LABELS), canonical(classes))
        continue
      with pytest.raises(InputError, match=f"beside.nii: lies {shift:.2g} mm from its place by its affine"):
        read_classes(path, like, LABELS)
  mirrored = affine @ np.diag([1.0, 1.0, -1.0, 1.0])
  with pytest.raises(InputError, match="far.nii: lies .* mm from its place by its affine"):
    read_classes(save(tmp_path / "far.nii", mask, mirrored), image, LABELS)


def test_a_mask_whose_pixels_have_another_size_is_refused_though_its_first_corner_is_in_place(tmp_path, image, classes):
  wider = image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
  write_volume(tmp_path / "wider.nii", np.take(LABELS, canonical(classes)), wider)
  with pytest.raises(InputError, match="wider.nii: lies .* mm from its place by its affine"):
    read_classes(tmp_path / "wider.nii", image, LABELS)


# Slices in files of their own


@pytest.mark.parametrize("placed", [False, True])
def test_slices_are_stacked_in_their_order(tmp_path, rng, placed):
  stack = rng.normal(size=(12, 5, 7)).astype(np.float32)  # (D, H, W)
  affine = np.diag([1.5, 1.25, 8.0, 1.0])
  files = []
  for number, voxels in enumerate(stack):
    affine[2, 3] = 10.0 * number * placed
    stored = voxels.T if number % 2 else voxels.T[..., None]  # both occur
    files.append(save(tmp_path / f"img1_slice{number}.nii.gz", stored, affine))
  volume = read_volume(files)
  np.testing.assert_array_equal(volume.voxels, stack)
  assert volume.spacing == pytest.approx((10.0 if placed else 8.0, 1.25, 1.5))


def test_slices_of_two_sizes_and_volumes_among_slices_are_named(tmp_path):
  slices = [save(tmp_path / f"{n}.nii", np.ones((4, n), np.float32)) for n in (5, 6)]
  with pytest.raises(InputError, match="6.nii: slice of 4 x 6, .*5.nii has 4 x 5"):
    read_volume(slices)
  volume = save(tmp_path / "volume.nii", np.ones((4, 5, 2), np.float32))
  with pytest.raises(InputError, match="volume.nii: 3-D image .*; expected one 2-D slice"):
    read_volume([slices[0], volume])


# Maps


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_a_map_comes_back_from_the_grid_that_it_was_written_on(tmp_path_factory, seed):
  rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("map")
  like = save(folder / "image.nii.gz", rng.normal(size=SHAPE).astype(np.float32), random_affine(rng))
  volume = read_volume(like)
  write_map(folder / "same.nii.gz", volume.voxels, like)
  np.testing.assert_array_equal(nib.load(folder / "same.nii.gz").dataobj, nib.load(like).dataobj)
  probs = rng.dirichlet(np.ones(4), size=volume.voxels.shape).astype(np.float32)
  write_map(folder / "probs.nii.gz", probs, like)
  stored = nib.load(folder / "probs.nii.gz")
  assert stored.shape == (*SHAPE, 4)
  np.testing.assert_array_equal(stored.affine, nib.load(like).affine)
  write_map(folder / "first.nii.gz", probs[..., 1], like)
  np.testing.assert_array_equal(stored.dataobj[..., 1], nib.load(folder / "first.nii.gz").dataobj)


def test_a_mask_must_have_the_shape_of_its_image(tmp_path, image):
  path = save(tmp_path / "mask.nii", np.zeros((7, 6, 5), np.int16))
  with pytest.raises(InputError, match="5 slices of 6 x 7, expected 4 slices of 6 x 7"):
    read_classes(path, image, LABELS)


# Damaged or unfit files


def truncated(path, stored):
  whole = save(path, stored).read_bytes()
  path.write_bytes(whole[: len(whole) // 2])


def flipped_bit(path, stored):
  content = bytearray(save(path, stored).read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def with_nans(path, stored):
  stored[0, 0, :3] = np.nan, np.inf, -np.inf
  save(path, stored)


UNFIT = {
  "missing": ("a.nii.gz", lambda path, stored: None, "no such file"),
  "folder": ("a.nii", lambda path, stored: path.mkdir(), "not a readable NIfTI file (Is a directory)"),
  "empty": ("a.nii", lambda path, stored: path.touch(), "not a readable NIfTI file"),
  "text": ("a.nii", lambda path, stored: path.write_text("no image " * 99), "not a readable NIfTI file"),
  "zipped text": ("a.nii.gz", lambda path, stored: path.write_bytes(gzip.compress(b"no")), "not a readable NIfTI file"),
  "truncated": ("a.nii", truncated, "not a readable NIfTI file (512 of 1024 bytes)"),
  "truncated, zipped": ("a.nii.gz", truncated, "not a readable NIfTI file"),
  "flipped bit": ("a.nii.gz", flipped_bit, "not a readable NIfTI file"),
  "2-D": ("a.nii", lambda path, stored: save(path, stored[..., 0]), "2-D image (7, 6); expected one 3-D volume."),
  "4-D": (
    "a.nii.gz",
    lambda path, stored: save(path, np.stack([stored, stored], axis=-1)),
    "4-D image (7, 6, 4, 2); expected one 3-D volume. Split the series first.",
  ),
  "5-D": (
    "a.nii",
    lambda path, stored: save(path, np.stack([stored[..., None]] * 2, axis=-1)),
    "5-D image (7, 6, 4, 1, 2); expected one",
  ),
  "no voxels": ("a.nii", lambda path, stored: patched(save(path, stored), 42, b"\0\0"), "empty image (0, 6, 4)"),
  "colour": (
    "a.nii",
    lambda path, stored: save(path, np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
    "RGB voxels; expected real numbers",
  ),
  "complex": ("a.nii", lambda path, stored: save(path, stored.astype(np.complex64)), "complex64 voxels; expected real"),
  "NaN": ("a.nii", with_nans, "3 of 168 voxels are NaN or infinite"),
  "too large": ("a.nii", lambda path, stored: save(path, np.full(SHAPE, 1e300)), "168 of 168 voxels are NaN or inf"),
  "flat affine": ("a.nii", lambda path, stored: patched(save(path, stored), 280, bytes(48)), "affine is singular or"),
  "NaN affine": (
    "a.nii",
    lambda path, stored: patched(save(path, stored), 280, np.float32(np.nan).tobytes()),
    "affine is singular or not finite",
  ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_files_are_refused_in_one_line_with_a_way_out(tmp_path, stored, name):
  file, make, problem = UNFIT[name]
  make(tmp_path / file, stored)
  with pytest.raises(InputError) as error:
    read_volume(tmp_path / file)
  message = str(error.value)
  assert message.startswith(f"{tmp_path / file}: {problem}")
  assert message.endswith(".")
  assert "\n" not in message


@settings(max_examples=200)
@given(data=st.data(), suffix=st.sampled_from([".nii", ".nii.gz"]))
def test_any_damage_gives_a_finite_volume_or_an_input_error(tmp_path_factory, data, suffix):
  path = tmp_path_factory.mktemp("damaged") / f"stack{suffix}"
  content = bytearray(save(path, np.arange(168, dtype=np.float32).reshape(SHAPE)).read_bytes())
  for _ in range(data.draw(st.integers(1, 4))):
    content[data.draw(st.integers(0, min(351, len(content) - 1)))] = data.draw(st.integers(0, 255))
  path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
  try:
    outcome = read_volume(path)
  except InputError as error:
    outcome = error
  if isinstance(outcome, InputError):
    assert str(outcome).startswith(f"{path}: ")
    assert "\n" not in str(outcome)
  else:
    assert outcome.voxels.ndim == 3
    assert np.isfinite(outcome.voxels).all()
    assert np.isfinite(outcome.affine).all()


# Writing


def test_a_written_mask_keeps_the_header_of_the_image(tmp_path, classes):
  left, _, right = np.linalg.svd(STACKS["PSR"])
  affine = make_affine(left @ right)  # a qform needs right angles
  image = nib.Nifti1Image(np.arange(168, dtype=np.float32).reshape(SHAPE), affine)
  image.header.set_xyzt_units("mm", "sec")
  image.header["descrip"] = b"LGE, 10 min"
  image.header["cal_max"] = 99.0
  image.set_qform(affine, code="scanner")
  image.set_sform(affine, code="mni")
  image.to_filename(tmp_path / "image.nii.gz")
  write_classes(tmp_path / "mask.nii.gz", canonical(classes), LABELS, like=tmp_path / "image.nii.gz")

  before, after = nib.load(tmp_path / "image.nii.gz"), nib.load(tmp_path / "mask.nii.gz")
  for field in ("dim", "pixdim", "xyzt_units", "descrip", "qform_code", "sform_code", "quatern_b", "srow_x", "srow_z"):
    np.testing.assert_array_equal(after.header[field], before.header[field], err_msg=field)
  np.testing.assert_array_equal(after.affine, before.affine)
  assert after.get_data_dtype() == np.int16
  assert (after.dataobj.slope, after.dataobj.inter) == (1.0, 0.0)
  assert after.header["cal_max"] == 0.0
  np.testing.assert_array_equal(np.asarray(after.dataobj), np.take(LABELS, classes))


def test_a_mask_written_on_an_image_without_any_form_lies_on_its_grid(tmp_path, stored, classes):
  path = patched(save(tmp_path / "image.nii", stored), 252, bytes(4))  # qform_code, sform_code
  write_classes(tmp_path / "mask.nii", np.ones(read_volume(path).voxels.shape, int), LABELS, like=path)
  before, after = nib.load(path), nib.load(tmp_path / "mask.nii")
  np.testing.assert_array_equal(after.affine, before.affine)
  assert (after.header["qform_code"], after.header["sform_code"]) == (0, 0)


def test_classes_of_another_grid_are_not_written(tmp_path, stored):
  path = save(tmp_path / "image.nii", stored)
  with pytest.raises(ValueError, match=r"grid of \(7, 6, 3\)"):
    write_classes(tmp_path / "mask.nii", np.zeros((3, 6, 7), np.uint8), LABELS, like=path)


@pytest.mark.parametrize("codes", STACKS)
@pytest.mark.parametrize("name", ["new.nii", "new.nii.gz"])
def test_a_written_volume_is_read_back_as_it_was(tmp_path, rng, codes, name):
  voxels = rng.normal(size=(4, 6, 7)).astype(np.float32)
  affine = make_affine(STACKS[codes])[:, [2, 1, 0, 3]]
  write_volume(tmp_path / name, voxels, affine)
  volume = read_volume(tmp_path / name)
  np.testing.assert_array_equal(volume.voxels, voxels)
  np.testing.assert_allclose(volume.affine, affine, rtol=1e-6)
  assert nib.load(tmp_path / name).header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize(("largest", "dtype"), [(600, np.int16), (40000, np.int32)])
def test_label_values_are_written_as_the_integers_that_hold_them(tmp_path, image, rng, largest, dtype):
  labels = rng.choice([0, 200, largest], size=(4, 6, 7))
  write_volume(tmp_path / "mask.nii.gz", labels, make_affine(STACKS["LSP"])[:, [2, 1, 0, 3]])
  assert nib.load(tmp_path / "mask.nii.gz").get_data_dtype() == dtype
  read = read_classes(tmp_path / "mask.nii.gz", image, (0, 200, largest))
  np.testing.assert_array_equal(np.take((0, 200, largest), read), labels)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, stored, monkeypatch):
  path = save(tmp_path / "image.nii.gz", stored)
  before = path.read_bytes()

  def full(image, file):
    Path(file).write_bytes(b"half of it")
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(nib.Nifti1Image, "to_filename", full)
  with pytest.raises(InputError, match=r"image.nii.gz: cannot be written \(No space left on device\)"):
    write_volume(path, stored.transpose(2, 1, 0), np.eye(4))
  assert path.read_bytes() == before
  assert os.listdir(tmp_path) == ["image.nii.gz"]


@pytest.mark.parametrize(("path", "problem"), [("image.nii/mask.nii", "File exists"), ("mask.mha", "ends in .nii or")])
def test_places_that_cannot_be_written_are_refused(tmp_path, stored, path, problem):
  save(tmp_path / "image.nii", stored)
  with pytest.raises(InputError, match=problem):
    write_volume(tmp_path / path, stored, np.eye(4))
  assert os.listdir(tmp_path) == ["image.nii"]


# The real data


@pytest.mark.skipif("MSCMRSEG_DIR" not in os.environ, reason="MSCMRSEG_DIR names no MS-CMRSeg folder")
def test_ms_cmrseg_is_turned_as_it_is_stored():
  files = sorted(Path(os.environ["MSCMRSEG_DIR"]).glob("*/patient*.nii.gz"))
  images = [file for file in files if not file.name.endswith("_manual.nii.gz")]
  assert len(images) == 80
  for file in images:
    volume, stored = read_volume(file), nib.load(file)
    np.testing.assert_array_equal(volume.voxels, np.asarray(stored.dataobj, np.float32).transpose(2, 1, 0))
    mask = file.with_name(file.name.replace(".nii.gz", "_manual.nii.gz"))
    if mask in files:
      classes = read_classes(mask, volume, LABELS)
      np.testing.assert_array_equal(np.take(LABELS, classes), np.asarray(nib.load(mask).dataobj).transpose(2, 1, 0))


# Folders


def touch(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()


def test_volumes_are_found_in_folders_in_a_folder_and_images_of_other_formats_are_named(tmp_path):
  source = tmp_path / "source"
  touch(source, "b.nii", "sub-01/lge.nii.gz", "sub-01/lge_manual.nii.gz", "sub-01/deep/lge.nii", "masks/b.nii")
  touch(source, "b_entropy.nii.gz", "b_probabilities.nii", "c_entropy.nii", "._b.nii", ".d.nii.gz")
  touch(source, "lge_manual.nii", ".hidden/c.nii", "notes.txt", "sub-01/lge.json")
  unread = {
    "sub-01/D.NII.GZ": "its suffix is .NII.GZ. Rename it to D.nii.gz.",
    "pair.hdr": "not a .nii or .nii.gz file; convert it first",
    "pair.img": "not a .nii or .nii.gz file; convert it first",
    "e.nii.bz2": "not a .nii or .nii.gz file; convert it first",
    "f.MHA": "not a .nii or .nii.gz file; convert it first",
  }
  touch(source, *unread)
  (tmp_path / "elsewhere").mkdir()
  touch(tmp_path / "elsewhere", "g.nii")
  (source / "linked").symlink_to(tmp_path / "elsewhere")
  (source / "sub-01" / "loop").symlink_to(source)
  (source / "empty.nii").mkdir()  # is listed as a file that cannot be read
  (tmp_path / "result").symlink_to(source / "masks")
  found = [str(path.relative_to(source)) for path in list_volumes(source, leave_out=tmp_path / "result")]
  expected = ["b.nii", "c_entropy.nii", "empty.nii", "lge_manual.nii", "linked/g.nii"]
  expected += ["sub-01/deep/lge.nii", "sub-01/lge.nii.gz"]
  assert found == expected
  assert sorted(list_unread(source)) == sorted(f"{source / name}: {reason}" for name, reason in unread.items())


def test_a_folder_of_unread_images_alone_says_what_to_do(tmp_path):
  touch(tmp_path / "source", "a.NII")
  with pytest.raises(
    InputError, match=r"no .nii or .nii.gz file in it. .*a.NII: its suffix is .NII. Rename it to a.nii"
  ):
    list_volumes(tmp_path / "source")
  with pytest.raises(InputError, match=r"^.*a.NII: its suffix is .NII. Rename it to a.nii.$"):
    list_volumes(tmp_path / "source" / "a.NII")
