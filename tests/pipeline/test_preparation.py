"""The table of prepared data, and the sizes of hearts."""

import itertools
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from configs import mscmrseg
from tests.configs import tiny_adapt, tiny_folder
from vamcei_jax.data.labels import CLASSES
from vamcei_jax.data.nifti import list_volumes
from vamcei_jax.errors import InputError
from vamcei_jax.phantom.anatomy import Grid
from vamcei_jax.phantom.scanner import write_nnunet
from vamcei_jax.pipeline.domains import outline_at_myo, prepare_datasets
from vamcei_jax.pipeline.preparation import prepare_run, size_warnings
from vamcei_jax.pipeline.resolve import resolve


def test_the_table_names_the_grid_the_patients_and_their_masks(tiny_config, capsys):
  """Of data that are not resampled to a spacing; tests/test_own_data.py has those that are."""
  assert tiny_config.data.spacing is None
  assert prepare_run(tiny_config)
  lines = capsys.readouterr().out.splitlines()
  described = [line.split(", in ")[0] for line in lines if " about the " in line]
  grid = "32 x 32 pixels, 0.333 of the files' grid whatever its spacing, about the image"
  assert described == [f"source: phantom/bssfp, {grid}", f"target: phantom/lge, {grid}"]
  rows = [line.split()[:3] for line in lines if line.startswith("  ")]
  expected = [["split", "volumes", "masks"], ["train", "2", "2"], ["validation", "1", "1"], ["test", "2", "2"]]
  assert [row for row in rows if row != expected[0]] == expected[1:] * 2
  assert not any("warning" in line or "no mask" in line for line in lines)


@pytest.fixture
def folder_config(tmp_path):
  write_nnunet(tmp_path / "raw", sources=2, targets=3, masks=2, grid=Grid(48, 4.5, oversampling=1, sub_slices=1))
  config = tiny_folder.get_config()
  config.data.update(root=str(tmp_path / "raw"), prepared_dir=str(tmp_path / "data"))
  return config


def test_the_sizes_of_a_disc_are_those_of_geometry(folder_config, tmp_path, capsys):
  """An LV of radius 20 mm in a wall of 10 mm, in three slices of 8 mm, is 30 ml, and the heart is 60 mm wide."""
  row, column = (np.indices((48, 48)) - 23.5) * 4.5
  for file in list_volumes(tmp_path / "raw" / "bssfp" / "labelsTr"):
    image = nib.load(file)
    classes = np.zeros(image.shape, np.int16)
    for radius, value in ((30, 1), (20, 2)):
      classes[np.hypot(row, column) <= radius, 2:5] = value
    nib.Nifti1Image(classes, image.affine).to_filename(file)
  prepare_run(folder_config)
  millilitres, width = next(line.split()[-2:] for line in capsys.readouterr().out.splitlines() if " train " in line)
  assert int(millilitres) == pytest.approx(np.pi * 20**2 * 24 / 1000, rel=0.1)  # pixels of 4.5 mm
  assert int(width) == pytest.approx(60, rel=0.05)


def test_a_wrong_spacing_in_the_headers_of_a_domain_is_warned_of(folder_config, tmp_path, capsys):
  for kind in ("imagesTr", "labelsTr"):
    for file in (tmp_path / "raw" / "bssfp" / kind).iterdir():
      image = nib.load(file)
      affine = image.affine @ np.diag([1.4, 1.4, 1, 1])
      nib.Nifti1Image(np.asarray(image.dataobj), affine).to_filename(file)
  assert prepare_run(folder_config)  # the files can be used
  warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
  assert [line.split(":")[1] for line in warnings] == [" LV, ml", " heart, mm"]
  assert all("check the spacing in the headers" in line for line in warnings)


@pytest.mark.parametrize("values", list(itertools.permutations((1, 2, 3))))
def test_masks_with_their_values_in_another_order_are_warned_of(folder_config, tmp_path, capsys, values):
  folder_config.data.label_values = (0, *values)
  assert prepare_run(folder_config)
  warned = [line.split(":")[1] for line in capsys.readouterr().out.splitlines() if "of the outline of LV" in line]
  assert warned == ([] if values == (1, 2, 3) else [" source", " target"])
  prepare_datasets(resolve(folder_config).stages["vamcei"].data, tmp_path / "run")
  noted = [line for line in capsys.readouterr().out.splitlines() if "of the outline of LV" in line]
  assert [line.split(":")[0] for line in noted] == ["source"][: len(warned)]  # a run opens no mask of the target


def test_masks_of_a_source_of_the_stage_adapt_are_warned_of(folder_config, capsys):
  config = tiny_adapt.get_config()
  config.init = "weights/lge"
  config.data.update(root=folder_config.data.root, prepared_dir=folder_config.data.prepared_dir)
  config.data.source, config.data.label_values = "bssfp", (0, 2, 3, 1)
  assert prepare_run(config)
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(":")[1] for line in lines if "of the outline of LV" in line] == [" source", " target"]


@pytest.mark.parametrize("axis", [1, 2])
def test_the_share_of_the_outline_at_myo_is_counted_in_edges(axis):
  """A square of 3 x 3 pixels has 12 edges; where it lies at the border of the image, these edges count as well."""
  truth = np.zeros((2, 6, 6), np.uint8)
  assert np.isnan(outline_at_myo(truth))
  truth[0, :3, 1:4] = CLASSES.index("LV")
  truth[1] = CLASSES.index("Myo")  # another slice
  truth = np.moveaxis(truth, 1, axis)
  assert outline_at_myo(truth) == 0
  np.moveaxis(truth, axis, 1)[0, :3, 0] = CLASSES.index("Myo")
  np.moveaxis(truth, axis, 1)[0, 3, 1:3] = CLASSES.index("Myo")
  assert outline_at_myo(truth) == 5 / 12


def test_a_target_without_masks_is_compared_by_its_images(folder_config, tmp_path, capsys):
  for file in (tmp_path / "raw" / "lge" / "labelsTr").iterdir():
    file.unlink()
  prepare_run(folder_config)
  (line,) = (line for line in capsys.readouterr().out.splitlines() if "its hearts cannot be measured" in line)
  assert "no mask in the target" in line
  assert "216 mm in the source, 216 mm in the target" in line  # 48 pixels of 4.5 mm


def test_a_run_and_prepare_refuse_an_image_of_both_domains(folder_config, tmp_path):
  images = [sorted((tmp_path / "raw" / domain / "imagesTr").iterdir())[0] for domain in ("bssfp", "lge")]
  shutil.copy(*images)
  config = resolve(folder_config).stages["vamcei"]
  for use in (lambda: prepare_run(folder_config), lambda: prepare_datasets(config.data, tmp_path / "run")):
    with pytest.raises(InputError, match=f"{images[0]}: the same image as {images[1]}, in source and target"):
      use()


def sizes(millilitres, diameter):
  return np.array([(millilitres, diameter, 300.0)] * 3)


@pytest.mark.parametrize(
  ("source", "target", "named"),
  [
    ((100, 70), (125, 75), []),
    ((100, 70), (135, 75), ["LV, ml"]),
    ((135, 75), (100, 70), ["LV, ml"]),
    ((100, 60), (110, 80), ["heart, mm"]),
    ((0.1, 7), (0.1, 7), ["LV, ml", "heart, mm"]),  # both in centimetres
    ((np.nan, np.nan), (100, 70), ["no mask in the source"]),
    ((np.nan, np.nan), (np.nan, np.nan), ["no mask in the source", "no mask in the target"]),
  ],
)
def test_sizes_that_differ_or_are_no_heart_s_are_named(source, target, named):
  for resampled in (False, True):
    warnings = size_warnings(sizes(*source), sizes(*target), resampled=resampled)
    assert [warning.partition(":")[0] for warning in warnings] == named


@pytest.mark.skipif("MSCMRSEG_DIR" not in os.environ, reason="MSCMRSEG_DIR names no MS-CMRSeg folder")
def test_the_wrong_headers_of_mscmrseg_are_warned_of(tmp_path, capsys):
  (tmp_path / "LGE").mkdir()
  (tmp_path / "C0").symlink_to(Path(os.environ["MSCMRSEG_DIR"], "C0"))
  for number in range(1, 6):  # the patients with masks, of whom the medians are
    for file in Path(os.environ["MSCMRSEG_DIR"], "LGE").glob(f"patient{number}_*"):
      (tmp_path / "LGE" / file.name).symlink_to(file)
  config = mscmrseg.get_config()
  config.data.update(root=str(tmp_path), prepared_dir=str(tmp_path / "prepared"))
  assert prepare_run(config)
  warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
  assert [line.partition(" (medians)")[0] for line in warnings] == [
    "warning: LV, ml: 416 in the source and 112 in the target",
    "warning: heart, mm: 125 in the source and 69 in the target",
  ]
