"""Prediction in practice: any size, spacing and orientation, uncertainty and probabilities, files that are bad."""

import csv
import dataclasses
import itertools
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from tests.commands import error_of
from vamcei_jax.config.files import read_config, write_config
from vamcei_jax.data.nifti import list_volumes, write_volume
from vamcei_jax.errors import InputError
from vamcei_jax.inference.load import load_segmenter
from vamcei_jax.inference.postprocess import smooth_slices
from vamcei_jax.phantom.anatomy import Grid
from vamcei_jax.phantom.scanner import draw_patient
from vamcei_jax.predict import plan_tasks, write_prediction

VALUES = (0, 200, 500, 600)
# Three sizes and spacings; the depths differ from patient to patient.
GRIDS = (Grid(96, 1.5, 8.0, 1, 1), Grid(80, 1.9, 10.0, 1, 1), Grid(128, 1.2, 6.0, 1, 1))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
  """A folder of three volumes of different sizes, spacings and oblique affines."""
  folder = tmp_path_factory.mktemp("volumes")
  for number, grid in enumerate(GRIDS):
    patient = draw_patient(3, number, "lge", grid)
    write_volume(folder / f"volume{number}.nii.gz", patient.voxels, patient.affine)
  return folder


@pytest.fixture(scope="module")
def segmenter(tiny_run):
  """The tiny run's last stage, compiled once for all tests."""
  return load_segmenter(tiny_run)


@pytest.fixture(scope="module")
def predictor(segmenter):
  """write(path, output, probabilities, **options): writes the maps of a volume as the command line does."""

  def write(path, output, *, probabilities=False, **options):
    inference = dataclasses.replace(segmenter.inference, **options)
    prediction = dataclasses.replace(segmenter, inference=inference)(path)
    (task,), _ = plan_tasks(path, output)
    write_prediction(prediction, task, probabilities=probabilities)
    return prediction

  return write


def reorient(path, orientation, to):
  """Writes the same volume with permuted and flipped axes, and the affine of these axes."""
  image = nib.load(path)
  voxels = apply_orientation(np.asarray(image.dataobj), orientation)
  nib.Nifti1Image(voxels, image.affine @ inv_ornt_aff(orientation, image.shape)).to_filename(to)


AXES = [(0, 1, 2), (2, 0, 1), (1, 0, 2)]
FLIPS = [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, 1, -1)]
ORIENTATIONS = [np.array(list(zip(*turn, strict=True))) for turn in itertools.product(AXES, FLIPS)]


def test_a_reoriented_volume_has_the_reoriented_mask_on_its_grid(predictor, volumes, tmp_path):
  for number in range(3):
    path = volumes / f"volume{number}.nii.gz"
    predictor(path, tmp_path)
    mask = nib.load(tmp_path / path.name)
    np.testing.assert_array_equal(mask.affine, nib.load(path).affine)
    assert mask.shape == nib.load(path).shape
    straight = np.asarray(mask.dataobj)
    assert {200, 500, 600} & set(np.unique(straight))
    for turn, orientation in enumerate(ORIENTATIONS):
      turned = tmp_path / f"turned{number}_{turn}.nii.gz"
      reorient(path, orientation, turned)
      predictor(turned, tmp_path / "turned")
      result = nib.load(tmp_path / "turned" / turned.name)
      np.testing.assert_array_equal(result.dataobj, apply_orientation(straight, orientation))
      np.testing.assert_array_equal(result.affine, nib.load(turned).affine)


@pytest.mark.parametrize("samples", [0, 2])
def test_probabilities_are_smoothed_in_mm_along_the_slices_on_any_axis_of_the_file(
  predictor, volumes, tmp_path, samples
):
  turned = tmp_path / "turned.nii.gz"
  reorient(volumes / "volume0.nii.gz", ORIENTATIONS[5], turned)  # slices first
  image = nib.load(turned)
  (axis,) = np.flatnonzero(np.isclose(image.header.get_zooms(), GRIDS[0].thickness))
  assert axis != np.flatnonzero(np.isclose(nib.load(volumes / "volume0.nii.gz").header.get_zooms(), GRIDS[0].thickness))
  probs = {}
  for smooth in (0.0, 5.0):
    folder = tmp_path / str(smooth)
    predictor(turned, folder, probabilities=True, samples=samples, smooth=smooth)
    written = np.asarray(nib.load(folder / "turned_probabilities.nii.gz").dataobj)
    probs[smooth] = np.moveaxis(written, axis, 0)
  assert np.abs(probs[5.0] - probs[0.0]).max() > 0.05
  np.testing.assert_allclose(probs[5.0], smooth_slices(probs[0.0], GRIDS[0].thickness, 5.0), atol=2e-3)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SRA", "IPL"])
def test_a_volume_along_the_axes_of_the_body_has_one_mask_in_any_order_of_axes(predictor, tmp_path, codes):
  """Of a volume along the axes of the body, stored in several orders of them."""
  patient = draw_patient(3, 0, "lge", GRIDS[1])
  affine = np.diag([1.9, 1.9, 10.0, 1.0])
  stored = nib.Nifti1Image(patient.voxels.transpose(2, 1, 0), affine)
  turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
  stored.to_filename(tmp_path / "straight.nii")
  stored.as_reoriented(turn).to_filename(tmp_path / "turned.nii")
  assert "".join(nib.aff2axcodes(nib.load(tmp_path / "turned.nii").affine)) == codes
  for name in ("straight", "turned"):
    predictor(tmp_path / f"{name}.nii", tmp_path / "masks")
  straight, turned = (nib.load(tmp_path / "masks" / f"{name}.nii") for name in ("straight", "turned"))
  np.testing.assert_array_equal(turned.dataobj, straight.as_reoriented(turn).dataobj)


@pytest.mark.parametrize("options", [{}, {"samples": 3}])
def test_a_folder_of_any_sizes_compiles_once(predictor, volumes, tmp_path, options):
  compiled = []
  listener = lambda event, duration, **_: compiled.append(event) if "backend_compile" in event else None
  jax.monitoring.register_event_duration_secs_listener(listener)
  jax.clear_caches()
  predictor(volumes / "volume0.nii.gz", tmp_path, **options)
  assert compiled
  compiled.clear()
  for number in (1, 2):
    predictor(volumes / f"volume{number}.nii.gz", tmp_path, **options)
  assert compiled == []


def test_probabilities_entropy_and_uncertainty_agree_with_the_mask(predictor, volumes, tmp_path):
  path = volumes / "volume1.nii.gz"
  rows = predictor(path, tmp_path, samples=4, probabilities=True).uncertainty
  probs = np.asarray(nib.load(tmp_path / "volume1_probabilities.nii.gz").dataobj)
  entropies = np.asarray(nib.load(tmp_path / "volume1_entropy.nii.gz").dataobj)
  mask = np.asarray(nib.load(tmp_path / "volume1.nii.gz").dataobj)
  np.testing.assert_array_equal(np.take(VALUES, probs.argmax(-1)), mask)
  np.testing.assert_allclose(probs.sum(-1), 1.0, atol=1e-5)
  logs = np.log(probs, where=probs > 0, out=np.zeros_like(probs))
  np.testing.assert_allclose(entropies, -(probs * logs).sum(-1), atol=1e-5)
  spacing = nib.affines.voxel_sizes(nib.load(path).affine)
  for row, value in zip(rows.values(), VALUES[1:], strict=True):
    assert row["volume_ml"] == pytest.approx((mask == value).sum() * np.prod(spacing) / 1000, rel=1e-4)
    assert row["entropy"] == pytest.approx(entropies[mask == value].mean(), rel=1e-4)
    assert 0 < row["agreement"] < 1
    assert row["volume_std_ml"] > 0


def test_a_new_prediction_removes_the_maps_of_an_earlier_one(predictor, volumes, tmp_path):
  first, second = "volume0.nii.gz", "volume1.nii.gz"
  predictor(volumes / first, tmp_path, samples=2, probabilities=True)
  predictor(volumes / second, tmp_path, samples=2)
  with (tmp_path / "uncertainty.csv").open() as table:
    assert [row["volume"] for row in csv.DictReader(table)] == [first] * 3 + [second] * 3
  predictor(volumes / first, tmp_path)
  with (tmp_path / "uncertainty.csv").open() as table:
    assert [row["volume"] for row in csv.DictReader(table)] == [second] * 3
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {"uncertainty.csv", "volumes.csv", first, second, "volume1_entropy.nii.gz"}
  # Maps in a folder are not taken for volumes.
  assert [path.name for path in list_volumes(tmp_path)] == [first, second]


def test_samples_of_a_volume_do_not_depend_on_other_volumes(predictor, volumes, tmp_path):
  path = volumes / "volume2.nii.gz"
  first = predictor(path, tmp_path / "a", samples=3)
  predictor(volumes / "volume0.nii.gz", tmp_path / "b", samples=3)
  assert predictor(path, tmp_path / "b", samples=3).uncertainty == first.uncertainty
  np.testing.assert_array_equal(
    *(nib.load(tmp_path / folder / "volume2_entropy.nii.gz").dataobj for folder in ("a", "b"))
  )


def test_the_mean_over_samples_converges(predictor, volumes, tmp_path):
  """32 and 64 samples agree better than 2 and 4 do."""
  probs = {}
  for samples in (2, 4, 32, 64):
    predictor(volumes / "volume0.nii.gz", tmp_path / str(samples), samples=samples, probabilities=True)
    probs[samples] = np.asarray(nib.load(tmp_path / str(samples) / "volume0_probabilities.nii.gz").dataobj)
  assert np.abs(probs[64] - probs[32]).mean() < 0.5 * np.abs(probs[4] - probs[2]).mean()


def test_a_bad_file_does_not_stop_the_others(run_command, tiny_run, volumes, tmp_path):
  source = tmp_path / "volumes"
  source.mkdir()
  for file in volumes.iterdir():
    (source / file.name).write_bytes(file.read_bytes())
  (source / "volume1.nii.gz").write_bytes(b"nonsense")
  where = [f"--workdir={tiny_run}", f"--input={source}", f"--output={tmp_path / 'o'}"]
  finished = run_command("vamcei_jax.predict", *where, "--tta", "--samples=2", "--postprocess")
  assert finished.returncode == 1, finished.stderr
  assert [line for line in finished.stderr.splitlines() if line.startswith("error: ")] == [
    line for line in finished.stderr.splitlines() if f"{source / 'volume1.nii.gz'}: not a readable NIfTI file" in line
  ]
  assert "2 of 3 volumes segmented" in finished.stdout
  written = sorted(file.name for file in (tmp_path / "o").iterdir())
  maps = [f"volume{n}{kind}.nii.gz" for n in (0, 2) for kind in ("", "_entropy")]
  assert written == ["report.html", "uncertainty.csv", *sorted(maps), "volumes.csv"]
  with (tmp_path / "o" / "uncertainty.csv").open() as table:
    rows = list(csv.DictReader(table))
  assert [(row["volume"], row["structure"]) for row in rows] == [
    (f"volume{n}.nii.gz", name) for n in (0, 2) for name in ("Myo", "LV", "RV")
  ]


def test_a_folder_of_bad_files_is_an_error(run_command, tiny_run, tmp_path):
  (tmp_path / "volumes").mkdir()
  for number in range(3):
    (tmp_path / "volumes" / f"volume{number}.nii.gz").write_bytes(b"nonsense")
  where = f"--workdir={tiny_run}", f"--input={tmp_path / 'volumes'}", f"--output={tmp_path / 'none'}"
  error = error_of(run_command("vamcei_jax.predict", *where))
  assert "volume0.nii.gz: not a readable NIfTI" in error
  assert "(2 other files failed as well)" in error
  assert not (tmp_path / "none").exists()


def test_test_time_augmentation_is_refused_where_training_had_no_transforms(tiny_run, tmp_path):
  workdir = shutil.copytree(tiny_run, tmp_path / "run")
  config = read_config(workdir / "vamcei")
  config["augment"].update(rotation=0.0, scale=0.0, flip=[])
  write_config(workdir / "vamcei", config)
  with pytest.raises(InputError, match="trained without rotation, scale or flip"):
    load_segmenter(workdir, tta=True)


def test_test_time_augmentation_changes_probabilities_a_little(tiny_run, volumes, segmenter):
  path = volumes / "volume0.nii.gz"
  plain, averaged = (each(path).probabilities for each in (segmenter, load_segmenter(tiny_run, tta=True)))
  assert 0 < np.abs(plain - averaged).mean() < 0.05
  np.testing.assert_allclose(averaged.sum(-1), 1.0, atol=1e-5)


@pytest.fixture(scope="module")
def tree(volumes, tmp_path_factory):
  """A folder of folders with two volumes, and an image that is not read."""
  root = tmp_path_factory.mktemp("tree")
  for name, volume in {"sub-01/lge.nii.gz": "volume0.nii.gz", "sub-02/deep/lge.nii.gz": "volume1.nii.gz"}.items():
    (root / name).parent.mkdir(parents=True)
    shutil.copy(volumes / volume, root / name)
  (root / "sub-02" / "LGE.NII").touch()
  return root


def rows_of(path):
  with path.open(newline="") as table:
    return {row["volume"]: row for row in csv.DictReader(table)}


def test_folders_in_a_folder_keep_their_tree_with_a_table_and_a_report(run_command, tiny_run, segmenter, tree):
  """The output may lie in the input: it is not searched."""
  output = tree / "masks"
  flags = [f"--workdir={tiny_run}", f"--input={tree}", f"--output={output}", "--label_values=0,3,2,1"]
  for _ in range(2):
    finished = run_command("vamcei_jax.predict", *flags)
    assert finished.returncode == 1, finished.stderr
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {tree / 'sub-02' / 'LGE.NII'}: its suffix is .NII. Rename it to LGE.nii."]
    assert "2 of 2 volumes segmented" in finished.stdout
  names = ["sub-01/lge.nii.gz", "sub-02/deep/lge.nii.gz"]
  files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
  assert files == {*names, "volumes.csv", "report.html"}
  rows, report = rows_of(output / "volumes.csv"), (output / "report.html").read_text()
  assert list(rows) == names
  assert report.count('class="case"') == 2
  for name in names:
    prediction = segmenter(tree / name)
    mask = np.asarray(nib.load(output / name).dataobj)
    np.testing.assert_array_equal(mask, np.take((0, 3, 2, 1), np.searchsorted(VALUES, prediction.mask)))
    row, score = rows[name], prediction.quality.score
    assert list(row) == ["volume", "LV_ml", "RV_ml", "myocardium_g", "score", "findings"]
    assert row["findings"] == "; ".join(finding.name for finding in prediction.quality.findings)
    measured = [*(prediction.volumes_ml[structure] for structure in ("LV", "RV")), prediction.myocardial_mass_g, score]
    assert [float(row[column]) for column in list(row)[1:5]] == pytest.approx(measured, rel=1e-5)
    assert f"<h3>{name}</h3>" in report
    assert f"score {score:.3f}" in report


def test_a_repeated_prediction_replaces_its_row_and_those_of_others_stay(predictor, volumes, tmp_path):
  for number in (0, 1):
    predictor(volumes / f"volume{number}.nii.gz", tmp_path)
  first = rows_of(tmp_path / "volumes.csv")
  predictor(volumes / "volume1.nii.gz", tmp_path, smooth=20.0)
  second = rows_of(tmp_path / "volumes.csv")
  assert list(second) == list(first) == ["volume0.nii.gz", "volume1.nii.gz"]
  assert second["volume0.nii.gz"] == first["volume0.nii.gz"]
  assert second["volume1.nii.gz"] != first["volume1.nii.gz"]


def test_the_mask_of_one_volume_may_be_a_file(run_command, tiny_run, volumes, segmenter, tmp_path):
  output, volume = tmp_path / "new" / "mask.nii", volumes / "volume0.nii.gz"
  finished = run_command(
    "vamcei_jax.predict", f"--workdir={tiny_run}", f"--input={volume}", f"--output={output}", "--probabilities"
  )
  assert finished.returncode == 0, finished.stderr
  np.testing.assert_array_equal(np.asarray(nib.load(output).dataobj), segmenter(volume).mask)
  files = {path.name for path in output.parent.iterdir()}
  assert files == {"mask.nii", "mask_probabilities.nii", "volumes.csv", "report.html"}
  other = run_command("vamcei_jax.predict", f"--workdir={tiny_run}", f"--input={volume}", f"--output={output}.gz")
  assert other.returncode == 0, other.stderr
  assert list(rows_of(output.parent / "volumes.csv")) == ["mask.nii", "mask.nii.gz"]


def test_an_output_that_cannot_be_one_is_refused_before_anything_is_computed(run_command, volumes, tmp_path):
  def error(output, *more):
    flags = [f"--workdir={tmp_path / 'nosuch'}", f"--input={volumes}", f"--output={tmp_path / output}", *more]
    return error_of(run_command("vamcei_jax.predict", *flags))

  assert "mask.nii.gz: one file for the masks of 3 volumes; name a folder" in error("mask.nii.gz")
  assert "--label_values=0,1,2: expected 4 different whole numbers" in error("o", "--label_values=0,1,2")
  assert "expected 4 different whole numbers" in error("o", "--label_values=0,(1,4),2,3")
  for flag in ("--input=", "--workdir="):
    assert f"{flag}: empty; name a folder or a file" in error("o", flag)
  assert "--compiled=: empty; name a folder" in error("o", "--compiled=")
  assert not list(tmp_path.iterdir())
  (tmp_path / "file").touch()
  assert "file: a file; choose another --output" in error("file")
  assert "file: a file; choose another --output" in error("file/masks")
  (tmp_path / "link").symlink_to(tmp_path / "nosuch")
  assert "link: a link that leads nowhere; choose another --output" in error("link")
  (tmp_path / "link").unlink()
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").touch()
  assert "run: a run, whose own report would be replaced" in error("run")
  for name, text in {"volumes.csv": "volume;LV_ml\n", "uncertainty.csv": "\ufeffvolume,structure\n"}.items():
    (tmp_path / name).write_text(text)
    assert f"{name}: not a table with the columns volume," in error(".")
    assert (tmp_path / name).read_text() == text
    (tmp_path / name).unlink()


def test_one_volume_s_file_needs_a_nifti_name(run_command, volumes, tmp_path):
  flags = [f"--workdir={tmp_path / 'nosuch'}", f"--input={volumes / 'volume0.nii.gz'}"]
  error = error_of(run_command("vamcei_jax.predict", *flags, f"--output={tmp_path / 'mask.NII.GZ'}"))
  assert "mask.NII.GZ: not a NIfTI name; choose one that ends in .nii or .nii.gz." in error
