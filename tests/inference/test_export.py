"""Exported weights: their content, that they predict as the run does, and the errors of damaged ones."""

import json
import re
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest

from tests.commands import error_of
from tests.configs import tiny_folder
from vamcei_jax.config.schema import InferenceConfig
from vamcei_jax.data.nifti import list_volumes
from vamcei_jax.errors import InputError
from vamcei_jax.inference.export import export_weights, trained_grid
from vamcei_jax.inference.load import last_stage, load_segmenter, restore_stage
from vamcei_jax.inference.weights import WEIGHTS_FILE, read_weights, write_weights
from vamcei_jax.phantom.anatomy import Grid
from vamcei_jax.phantom.scanner import write_nifti, write_nnunet
from vamcei_jax.pipeline.domains import prepare_datasets, with_datasets
from vamcei_jax.pipeline.resolve import resolve

FLAGS = ("--tta", "--postprocess", "--smooth=5")
OPTIONS = {"tta": True, "postprocess": True, "smooth": 5.0}


@pytest.fixture(scope="module")
def weights(run_command, tiny_run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("weights") / "student"
  finished = run_command("vamcei_jax.export", f"--workdir={tiny_run}", f"--output={folder}", *FLAGS)
  assert finished.returncode == 0, finished.stderr
  return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
  folder = tmp_path_factory.mktemp("volumes")
  write_nifti(folder, seed=5, sources=0, targets=2)
  return folder / "LGE"


def test_weights_are_those_of_the_run_in_half_precision(weights, tiny_run):
  config, inference, networks = read_weights(weights)
  trained_config, trained = restore_stage(last_stage(tiny_run))
  assert list(networks) == ["segmenter"]
  half = jax.tree.map(lambda x: np.asarray(x).astype(np.float16).astype(np.float32), trained)
  jax.tree.map(np.testing.assert_array_equal, networks, half)
  assert (inference.tta, inference.postprocess, inference.smooth) == (True, True, 5.0)
  assert config.model == trained_config.model
  assert (weights / WEIGHTS_FILE).stat().st_size < 2.1 * sum(x.size for x in jax.tree.leaves(networks)) + 10_000


def test_weights_hold_no_path_of_the_machine_that_made_them(weights, tiny_run):
  text = (weights / "config.json").read_text()
  assert str(tiny_run.parent) in (tiny_run / "config.json").read_text()
  assert str(tiny_run.parent) not in text
  assert json.loads(text)["data"]["root"] is None


def test_prediction_uses_the_options_that_weights_come_with(run_command, weights, tiny_run, volumes, tmp_path):
  off = {"tta": False, "postprocess": False, "smooth": 0.0}
  segmenters = {"weights": load_segmenter(weights), "run": load_segmenter(tiny_run, **OPTIONS)}
  segmenters["plain"] = load_segmenter(weights, **off)
  masks = {name: [segmenter(path).mask for path in list_volumes(volumes)] for name, segmenter in segmenters.items()}
  differ = lambda a, b: np.mean([np.mean(x != y) for x, y in zip(masks[a], masks[b], strict=True)])
  assert len(masks["run"]) == 2
  assert differ("weights", "run") < 0.002  # half precision
  assert differ("weights", "plain") > 2 * differ("weights", "run")

  flags = f"--weights={weights}", f"--input={volumes}", f"--output={tmp_path}"
  finished = run_command("vamcei_jax.predict", *flags, "--notta", "--nopostprocess", "--smooth=0")
  assert finished.returncode == 0, finished.stderr
  written = [np.asarray(nib.load(path).dataobj) for path in sorted(tmp_path.glob("*.nii.gz"))]
  for mask, expected in zip(written, masks["plain"], strict=True):
    np.testing.assert_array_equal(mask, expected)


def test_volumes_of_other_pixels_are_resampled_to_those_trained_on(run_command, weights, volumes, tmp_path):
  _, inference, _ = read_weights(weights)
  low, high = inference.pixel_mm
  paths = list_volumes(volumes)
  (tmp_path / "finer").mkdir()
  for path in paths:
    image = nib.load(path)
    assert all(0.999 * low <= mm <= 1.001 * high for mm in sorted(image.header.get_zooms())[:2])
    finer_voxels, affine = np.asarray(image.dataobj), image.affine.copy()
    for axis in {0, 1, 2} - {int(np.argmax(image.header.get_zooms()))}:
      finer_voxels, affine[:, axis] = np.repeat(finer_voxels, 2, axis), affine[:, axis] / 2
    nib.save(nib.Nifti1Image(finer_voxels, affine), tmp_path / "finer" / path.name)
  affine[:3, :3] *= 0.02
  nib.save(nib.Nifti1Image(finer_voxels, affine), tmp_path / "finer" / "tiny.nii.gz")

  flags = f"--weights={weights}", f"--input={tmp_path / 'finer'}", f"--output={tmp_path / 'masks'}"
  finished = run_command("vamcei_jax.predict", *flags)
  assert finished.returncode == 1, finished.stderr
  assert "tiny.nii.gz: voxels of" in finished.stderr
  assert f"resampled to the {low:.3g} mm of the training" in finished.stdout

  finer = [tmp_path / "finer" / path.name for path in paths]
  as_it_is = load_segmenter(weights, resample=False)
  predictions = {"original": list(map(load_segmenter(weights), paths)), "as it is": list(map(as_it_is, finer))}
  masks = {name: [prediction.mask for prediction in each] for name, each in predictions.items()}
  masks["resampled"] = [np.asarray(nib.load(tmp_path / "masks" / path.name).dataobj) for path in paths]
  for prediction in sum(predictions.values(), []):
    assert "pixels resampled" not in [finding.name for finding in prediction.quality.findings]
  coarser = lambda mask, like: mask[
    tuple(slice(None, None, n // m) for n, m in zip(mask.shape, like.shape, strict=True))
  ]
  differ = lambda name: np.mean(
    [np.mean(coarser(mask, like) != like) for mask, like in zip(masks[name], masks["original"], strict=True)]
  )
  assert 3 * differ("resampled") < differ("as it is")


def test_the_grid_of_weights_is_that_of_the_target_volumes_in_the_plane(tmp_path):
  for domain, pixels, spacing in (("bssfp", 40, 4.0), ("lge", 36, 5.0)):
    write_nnunet(tmp_path / domain, sources=1, targets=1, masks=1, grid=Grid(pixels, spacing, 8.0, 1, 1))
  shutil.copytree(tmp_path / "lge" / "lge", tmp_path / "bssfp" / "lge", dirs_exist_ok=True)
  config = tiny_folder.get_config()
  config.data.update(root=str(tmp_path / "bssfp"), prepared_dir=str(tmp_path), spacing=None)
  stage = resolve(config).stages["vamcei"]
  data = with_datasets(stage, prepare_datasets(stage.data, tmp_path)).data
  assert trained_grid(data) == ((5.0, 5.0), (180.0, 180.0))


def test_without_its_prepared_data_a_run_is_exported_and_resamples_nothing(tiny_run, tmp_path, capsys):
  moved = shutil.copytree(tiny_run, tmp_path / "moved")
  change(moved / "vamcei", lambda config: config["data"].update(datasets=["other", "other"]))
  export_weights(moved, tmp_path / "weights")
  assert "prepared data not found" in capsys.readouterr().err
  assert read_weights(tmp_path / "weights")[1].pixel_mm is None


def test_weights_without_a_later_field_have_its_default(weights, tmp_path):
  shutil.copytree(weights, tmp_path / "earlier")
  later = ("smooth", "samples", "resample", "pixel_mm", "extent_mm")
  change(tmp_path / "earlier", lambda config: [config["inference"].pop(name) for name in later])
  assert read_weights(tmp_path / "earlier")[1] == InferenceConfig(tta=True, postprocess=True)


def test_removed_options_of_version_0_1_are_accepted_where_they_are_off(weights, volumes, tmp_path):
  off = {"odds": [1.0, 1.0, 1.0], "apex": None}
  earlier = shutil.copytree(weights, tmp_path / "earlier")
  change(earlier, lambda config: config["inference"].update(off))
  change(earlier, lambda config: config["data"].update(view=config["data"].pop("plane")))
  path = list_volumes(volumes)[0]
  np.testing.assert_array_equal(load_segmenter(earlier)(path).mask, load_segmenter(weights)(path).mask)
  for field, value in (("odds", [1.0, 0.5, 1.0]), ("apex", [[0.1, 0.1, 0.1]])):
    change(earlier, lambda config, field=field, value=value: config["inference"].update(off | {field: value}))
    with pytest.raises(InputError, match=f"earlier/config.json: config.inference.{field}=.*: a removed option"):
      read_weights(earlier)


@pytest.mark.parametrize("mm", ["nan", "-1"])
def test_smoothing_by_a_length_that_is_negative_or_nan_is_refused(run_command, weights, volumes, tmp_path, mm):
  flags = f"--weights={weights}", f"--input={volumes}", f"--output={tmp_path}", f"--smooth={mm}"
  assert "--smooth" in error_of(run_command("vamcei_jax.predict", *flags))


def test_weights_that_cannot_be_used_are_named(weights, volumes, tmp_path, run_command):
  for name in ("cut", "flipped", "other"):
    shutil.copytree(weights, tmp_path / name)
  path = tmp_path / "cut" / WEIGHTS_FILE
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(InputError, match=re.escape(f"{path}: damaged")):
    load_segmenter(tmp_path / "cut")
  flags = f"--weights={weights}", f"--input={volumes}", f"--output={tmp_path / 'masks'}"
  assert "either --weights or --workdir" in error_of(run_command("vamcei_jax.predict", f"--workdir={weights}", *flags))
  assert not (tmp_path / "masks").exists()

  path = tmp_path / "flipped" / WEIGHTS_FILE
  content = bytearray(path.read_bytes())
  content[-1000] ^= 1
  path.write_bytes(content)
  with pytest.raises(InputError, match=r"flipped.*damaged"):
    read_weights(tmp_path / "flipped")
  change(tmp_path / "other", lambda config: config["model"].update(norm="group", widths=[8, 8, 8]))
  for read in (read_weights, load_segmenter):
    with pytest.raises(InputError, match=r"other.*not the weights"):
      read(tmp_path / "other")


def test_weights_without_a_network_are_refused(weights, tmp_path):
  config, inference, _ = read_weights(weights)
  write_weights(tmp_path, config, inference, {})
  for read in (read_weights, load_segmenter):
    with pytest.raises(InputError, match="not the weights"):
      read(tmp_path)


def change(folder, edit):
  """Rewrites config.json as edit(content) leaves it."""
  content = json.loads((folder / "config.json").read_text())
  edit(content)
  (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
  "edit",
  [
    lambda config: config.update(stages=["nosuch"]),
    lambda config: config.update(stages="vamcei"),
    lambda config: config.update(stages=5),
    lambda config: config.pop("model"),
    lambda config: config.pop("data"),
    lambda config: config.pop("inference"),
    lambda config: config.update(inference=[]),
    lambda config: config["inference"].update(tta="no"),
    lambda config: config["inference"].update(pixel_mm=[1.0]),
    lambda config: config["inference"].pop("sha256"),
    lambda config: config["model"].update(widths="a"),
    lambda config: config["data"].update(size=[63, 64]),
    lambda config: config["data"].update(percentiles=[99, 1]),
    lambda config: config.update({"a.b": 1}),
  ],
)
def test_a_config_that_is_not_of_weights_is_named(weights, tmp_path, edit):
  folder = shutil.copytree(weights, tmp_path / "weights")
  change(folder, edit)
  with pytest.raises(InputError, match=str(folder)):
    read_weights(folder)


def test_a_stage_that_cannot_be_exported_is_named(tiny_run, tmp_path):
  before = (tiny_run / "config.json").read_text()
  with pytest.raises(InputError, match="choose another --output"):
    export_weights(tiny_run, tiny_run)
  assert (tiny_run / "config.json").read_text() == before
  cut = shutil.copytree(tiny_run, tmp_path / "cut")
  shutil.rmtree(cut / "vamcei" / "checkpoints" / "8")
  with pytest.raises(InputError, match="no intact checkpoint of its last step"):
    export_weights(cut, tmp_path / "weights")
  assert not (tmp_path / "weights").exists()


def test_parameters_beyond_half_precision_are_not_written(weights, tmp_path):
  config, inference, networks = read_weights(weights)
  with pytest.raises(InputError, match="float16"):
    write_weights(tmp_path, config, inference, jax.tree.map(lambda x: 1e6 * (1.0 + x), networks))
  assert not list(tmp_path.iterdir())
