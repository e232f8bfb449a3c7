"""Volumes of a user from the folder to the mask: prepare, train and predict by config alone; the field on the heart."""

import json
import shutil
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest

from tests.commands import error_of
from vamcei_jax.config.files import read_stage_config
from vamcei_jax.data.loader import load_patients
from vamcei_jax.data.nifti import read_classes, read_volume
from vamcei_jax.data.preprocess import Preprocess, preprocess_image
from vamcei_jax.evaluation.metrics import dice
from vamcei_jax.inference.heart import find_centre
from vamcei_jax.phantom.anatomy import Grid
from vamcei_jax.phantom.scanner import write_nnunet
from vamcei_jax.pipeline import run as runs
from vamcei_jax.pipeline.domains import prepare_datasets

CONFIG = "--config=tests/configs/tiny_folder.py"
LABELS = (0, 1, 2, 3)
GRID = Grid(pixels=48, spacing=4.5, oversampling=1, sub_slices=1)
LOCATED = "--config.stages=('locate','vamcei')"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A source and a target in the layout of nnU-Net."""
  folder = tmp_path_factory.mktemp("volumes")
  write_nnunet(folder, sources=3, targets=4, masks=3, grid=GRID)
  return folder


@pytest.fixture(scope="module")
def train(run_command, prepared):
  """Trains on a folder; returns the finished process."""

  def run(root, workdir, *flags):
    where = [f"--config.data.root={root}", f"--config.data.prepared_dir={prepared}", f"--workdir={workdir}"]
    return run_command("vamcei_jax.main", CONFIG, *where, *flags)

  return run


@pytest.fixture(scope="module")
def located_run(root, train, tmp_path_factory):
  """The workdir of a finished run that finds the hearts first."""
  workdir = tmp_path_factory.mktemp("runs") / "located"
  finished = train(root, workdir, LOCATED)
  assert finished.returncode == 0, finished.stderr
  return workdir


def break_files(root):
  """One file of each kind that cannot be used; returns them with part of the reason."""
  images, labels = root / "bssfp" / "imagesTr", root / "bssfp" / "labelsTr"
  for number in (4, 5, 6, 7):
    for folder, ending in ((images, "_0000"), (labels, "")):
      shutil.copy(folder / f"bssfp_001{ending}.nii.gz", folder / f"bssfp_00{number}{ending}.nii.gz")
  image = lambda number: images / f"bssfp_00{number}_0000.nii.gz"
  image(4).write_bytes(image(4).read_bytes()[:-50])
  source = nib.load(image(5))
  nib.Nifti1Image(np.stack([source.get_fdata()] * 2, -1), source.affine).to_filename(image(5))
  mask = nib.load(labels / "bssfp_006.nii.gz")
  nib.Nifti1Image(np.zeros(mask.shape, np.int16), mask.affine).to_filename(labels / "bssfp_006.nii.gz")
  brighter = nib.load(image(6))
  nib.Nifti1Image(brighter.get_fdata() + 1, brighter.affine).to_filename(image(6))
  return {
    image(4): "not a readable NIfTI file",
    image(5): "4-D image",
    labels / "bssfp_006.nii.gz": "the mask is empty",
    image(7): f"the same image as {image(1)}",
  }


def test_prepare_names_the_files_that_it_leaves_out_and_the_run_is_trained_without_them(
  run_command, train, root, prepared, tmp_path
):
  copy = shutil.copytree(root, tmp_path / "copy")
  expected = break_files(copy)
  refused = error_of(train(copy, tmp_path / "run"))
  file, reason = next(iter(expected.items()))
  assert f"{file}: {reason}" in refused
  assert "3 more cannot be used. (python -m vamcei_jax.prepare leaves out" in refused
  assert not (tmp_path / "run").exists()

  flags = [CONFIG, f"--source={copy}", f"--config.data.prepared_dir={prepared}"]
  finished = run_command("vamcei_jax.prepare", *flags)
  assert finished.returncode == 1, finished.stderr
  assert finished.stderr == ""
  lines = finished.stdout.splitlines()
  for file, reason in expected.items():
    assert any(line.startswith(f"left out: {file}: {reason}") for line in lines)
  assert sum(line.startswith("left out: ") for line in lines) == 4
  table = [line.split() for line in lines if line.startswith("  ")]
  assert table[0][:4] == ["split", "volumes", "masks", "slices"]
  assert [row[:3] for row in table] == [
    ["split", "volumes", "masks"],
    ["train", "3", "3"],
    ["split", "volumes", "masks"],
    ["train", "4", "0"],
    ["validation", "1", "1"],
    ["test", "2", "2"],
  ]

  finished = train(copy, tmp_path / "run", "--config.stages=('no_adaptation',)")
  assert finished.returncode == 0, finished.stderr
  assert "4 files were left out when it was prepared" in finished.stdout
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert set(results["methods"]) == {"no_adaptation"}


def test_the_summary_of_prepare_agrees_with_the_files(run_command, root, prepared):
  finished = run_command("vamcei_jax.prepare", CONFIG, f"--source={root}", f"--config.data.prepared_dir={prepared}")
  source = next(line.split() for line in finished.stdout.splitlines() if line.startswith("  train"))
  volumes = [read_volume(file) for file in sorted((root / "bssfp" / "imagesTr").iterdir())]
  masks = [
    read_classes(file, volume, LABELS)
    for file, volume in zip(sorted((root / "bssfp" / "labelsTr").iterdir()), volumes, strict=True)
  ]
  low, high = min(v.voxels.min() for v in volumes), max(v.voxels.max() for v in volumes)
  shares = np.bincount(np.concatenate([mask.ravel() for mask in masks])) / sum(mask.size for mask in masks)
  slices = sum(len(mask) for mask in masks)
  pixel = 4.5 * 4.5
  millilitres = np.median([(mask == 2).sum() * pixel * 8 / 1000 for mask in masks])
  areas = [((mask == 1) | (mask == 2)).sum((1, 2)).max() * pixel for mask in masks]
  hearts = [f"{millilitres:.0f}", f"{2 * np.sqrt(np.median(areas) / np.pi):.0f}"]
  expected = ["train", "3", "3", str(slices), "4.5", "8", f"{low:.4g}–{high:.4g}", *(f"{x:.1%}" for x in shares)]
  assert source == [*expected, *hearts]


def test_a_class_that_no_mask_has_is_named(run_command, root, prepared, tmp_path):
  copy = shutil.copytree(root, tmp_path / "copy")
  for file in (copy / "bssfp" / "labelsTr").iterdir():
    image = nib.load(file)
    labels = np.asarray(image.dataobj).copy()
    labels[labels == 3] = 0
    nib.Nifti1Image(labels, image.affine).to_filename(file)
  flags = [CONFIG, f"--source={copy}", f"--config.data.prepared_dir={prepared}"]
  printed = run_command("vamcei_jax.prepare", *flags).stdout
  assert "train: no RV in its masks; look at config.data.label_values" in printed
  assert printed.count("look at config.data.label_values") == 1


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    (["--source=nosuch"], "give either --dataset or --config"),
    ([CONFIG, "--dataset=phantom"], "give either --dataset or --config"),
    (["--config=configs/nosuch.py"], "configs/nosuch.py: no such config"),
    (["--dataset=nosuch"], "phantom, mscmrseg, myops, mmwhs, folder"),
    (["--dataset=mscmrseg"], "config.data.root: not set"),
    (["--dataset=folder", "--source=nosuch"], "nosuch/bssfp: no such folder; expected DOMAIN/imagesTr"),
  ],
)
def test_prepare_refuses_what_it_cannot_use(run_command, flags, expected):
  assert expected in error_of(run_command("vamcei_jax.prepare", *flags))


@pytest.mark.slow
def test_a_target_without_any_mask_is_trained_on_and_pictured(root, train, tmp_path):
  copy = shutil.copytree(root, tmp_path / "copy")
  shutil.rmtree(copy / "lge" / "labelsTr")
  finished = train(copy, tmp_path / "run")
  assert finished.returncode == 0, finished.stderr
  assert "folder/lge has no masks to score predictions with" in finished.stdout
  assert json.loads((tmp_path / "run" / "results.json").read_text()) == {"split": "train", "methods": {}}
  assert (tmp_path / "run" / "overlays.png").stat().st_size > 1000
  assert 'id="summary"' not in (tmp_path / "run" / "report.html").read_text()
  assert (tmp_path / "run" / "vamcei" / "pictures" / "000008.png").stat().st_size > 1000
  assert not (tmp_path / "run" / "vamcei" / "metrics.json").exists()


# The field on the heart


def test_fields_are_centred_on_the_mask_of_a_source_and_on_the_heart_found_in_a_target(located_run):
  config = read_stage_config(located_run / "vamcei")
  assert config.data.located
  datasets = prepare_datasets(config.data, located_run)
  for patient in load_patients(datasets["source"], "train"):
    centre = np.argwhere(patient.truth > 0).mean(0)[1:]
    np.testing.assert_allclose(patient.centre, centre, atol=0.13)  # quarters of a pixel
  centres = json.loads((located_run / "locate" / "centres.json").read_text())
  everyone = [f"lge_00{number}" for number in (1, 2, 3, 4)]
  assert sorted(centres) == everyone
  found = {patient.name: list(patient.centre) for patient in load_patients(datasets["target"], "train", labelled=False)}
  assert found == centres
  assert config.data.datasets != read_stage_config(located_run / "locate").data.datasets


def test_prepare_of_a_located_run_makes_whole_images_and_fields_on_the_hearts_of_the_source(
  located_run, root, run_command, prepared
):
  flags = [CONFIG, LOCATED, f"--source={root}", f"--config.data.prepared_dir={prepared}"]
  finished = run_command("vamcei_jax.prepare", *flags)
  assert finished.returncode == 0, finished.stderr
  assert "preparing" not in finished.stdout  # the run prepared them
  described = [line.split(", in ")[0] for line in finished.stdout.splitlines() if " about the " in line]
  assert described == [
    "source: folder/bssfp, 32 x 32 pixels of 9 mm about the image",
    "target: folder/lge, 32 x 32 pixels of 9 mm about the image",
    "source: folder/bssfp, 32 x 32 pixels of 4.5 mm about the mask",
  ]


def test_a_located_run_predicts_what_it_scored(located_run, root, run_command, tmp_path):
  """The heart is found in the file as well, and the mask is restored from the field on it."""
  output = tmp_path / "masks"
  where = [f"--input={root / 'lge' / 'imagesTr'}", f"--output={output}"]
  finished = run_command("vamcei_jax.predict", f"--workdir={located_run}", *where)
  assert finished.returncode == 0, finished.stderr
  metrics = json.loads((located_run / "vamcei" / "metrics.json").read_text())
  assert metrics["split"] == "test"
  patients = metrics["methods"]["vamcei"]["patients"]
  assert set(patients) == {"lge_002", "lge_003"}
  for name, scores in patients.items():
    volume = read_volume(root / "lge" / "imagesTr" / f"{name}_0000.nii.gz")
    masks = (output / f"{name}_0000.nii.gz", root / "lge" / "labelsTr" / f"{name}.nii.gz")
    predicted, truth = (read_classes(mask, volume, LABELS) for mask in masks)
    assert dice(predicted, truth) == pytest.approx({name: score["dice"] for name, score in scores.items()})


@pytest.mark.slow
def test_a_finished_located_run_is_skipped_and_a_retrained_locator_retrains_all(located_run, root, train, tmp_path):
  workdir = shutil.copytree(located_run, tmp_path / "run")
  same = train(root, workdir, LOCATED)
  assert same.returncode == 0, same.stderr
  assert [line for line in same.stdout.splitlines() if ": starts" in line] == []
  retrained = train(root, workdir, LOCATED, "--stages=locate")
  assert retrained.returncode == 0, retrained.stderr
  started = [line.split(":")[0] for line in retrained.stdout.splitlines() if ": starts" in line]
  assert started == ["locate", "vamcei"]


def test_a_run_that_did_not_look_for_the_heart_is_not_replaced_by_one_that_does(root, train, tmp_path, monkeypatch):
  monkeypatch.setattr(runs, "train", Mock(side_effect=KeyboardInterrupt))
  with pytest.raises(KeyboardInterrupt):
    train(root, tmp_path / "run", "--config.stages=('no_adaptation',)")
  before = sorted(path for path in (tmp_path / "run").rglob("*") if "locate" not in path.parts)
  refused = error_of(train(root, tmp_path / "run", "--config.stages=('locate','no_adaptation')"))
  assert "data.located was False, is True" in refused
  assert sorted((tmp_path / "run").rglob("*")) == before


def test_the_heart_is_found_where_it_is():
  """By a network that segments it: off the middle, in images not square, of any spacing. Without a heart, None."""
  rng = np.random.default_rng(0)
  look = lambda image: np.eye(4)[(image > 0.5).astype(int) * 2]
  for shape, spacing, at in (((4, 90, 60), (8, 1.5, 2.0), (60, 20)), ((3, 50, 120), (8, 3.0, 1.2), (15, 90))):
    voxels = rng.uniform(0, 0.2, shape)
    voxels[1:, at[0] - 5 : at[0] + 6, at[1] - 5 : at[1] + 6] = 1.0
    settings = Preprocess(size=(48, 48), spacing=4.0, percentiles=(0, 100))
    image = preprocess_image(voxels, spacing, settings)
    found = find_centre(look, image, shape, spacing, settings)
    np.testing.assert_allclose(np.subtract(found, at) * spacing[1:], 0, atol=2.0)
    assert find_centre(look, np.zeros_like(image), shape, spacing, settings) is None


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    (["--config.stages=('no_adaptation','locate')"], "locate must come first"),
    (["--config.stages=('locate',)"], "locate must come first, with others after it"),
    (["--config.data.orientation=estimate"], "config.data.orientation='estimate': must be header or file without"),
    (["--config.label_values=1"], "label_values"),
    (["--config.data.label_values=(0,1,2)"], "config.data.label_values"),
    (["--config.data.label_values=(0,(1,2),2,3)"], "config.data.label_values"),
    (["--config.data.options.sorces=3"], "sorces"),
  ],
)
def test_wrong_settings_are_named_before_anything_is_written(root, train, tmp_path, flags, expected):
  assert expected in error_of(train(root, tmp_path / "run", *flags))
  assert not (tmp_path / "run").exists()
