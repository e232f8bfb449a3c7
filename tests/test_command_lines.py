"""The command lines: an expected error is one line and exit code 2, and masks have the grid of their volumes."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.commands import ROOT, command, error_of
from vamcei_jax import cli
from vamcei_jax.errors import InputError
from vamcei_jax.phantom.scanner import write_nifti
from vamcei_jax.pipeline import run as runs

TINY = "--config=tests/configs/tiny.py"


def test_a_command_whose_output_nobody_reads_ends_with_one_line():
  reader, writer = os.pipe()
  os.close(reader)
  with os.fdopen(writer, "wb") as output:
    arguments = command("vamcei_jax.main", TINY, "--print_config")
    finished = subprocess.run(arguments, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True)
  assert finished.returncode == 2
  assert finished.stderr == "error: the program that reads the output has ended; send the output to a file\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder in the layout of MS-CMRSeg."""
  root = tmp_path_factory.mktemp("mscmrseg")
  write_nifti(root, sources=2, targets=6)
  return root


@pytest.fixture
def damaged(folder, tmp_path):
  """A copy of the folder, to be damaged."""
  return shutil.copytree(folder, tmp_path / "data")


def train_on(run_command, root, tmp_path):
  return run_command(
    "vamcei_jax.main",
    TINY,
    "--config.data.name=mscmrseg",
    "--config.data.options={}",
    f"--config.data.root={root}",
    f"--config.data.prepared_dir={tmp_path / 'prepared'}",
    f"--workdir={tmp_path / 'run'}",
  )


def rewrite(path, change, dtype=None):
  """Replaces the voxels of a NIfTI file by change(voxels)."""
  image = nib.load(path)
  voxels = change(np.asarray(image.dataobj))
  nib.Nifti1Image(voxels, image.affine, dtype=dtype).to_filename(path)


def set_first_voxel(value):
  def change(voxels):
    voxels = voxels.copy()
    voxels[0, 0, 0] = value
    return voxels

  return change


DAMAGES = {
  "truncated": ("LGE/patient6_LGE.nii.gz", lambda p: p.write_bytes(p.read_bytes()[:-2000]), "Export or copy"),
  "4-D": ("C0/patient1_C0.nii.gz", lambda p: rewrite(p, lambda v: np.stack([v, v], -1)), "Split the series"),
  "NaN": ("LGE/patient6_LGE.nii.gz", lambda p: rewrite(p, set_first_voxel(np.nan)), "NaN"),
  "shape": ("C0/patient2_C0_manual.nii.gz", lambda p: rewrite(p, lambda v: v[:, :, 1:]), "Resample it"),
  "label": ("C0/patient2_C0_manual.nii.gz", lambda p: rewrite(p, set_first_voxel(77)), "77"),
  "missing mask": ("C0/patient1_C0_manual.nii.gz", lambda p: p.unlink(), "no such mask"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_is_named_before_training(run_command, damaged, tmp_path, damage):
  name, apply, reason = DAMAGES[damage]
  apply(damaged / name)
  error = error_of(train_on(run_command, damaged, tmp_path))
  assert name in error
  assert reason in error
  assert not (tmp_path / "run").exists()


def test_a_missing_and_an_empty_folder_are_named(run_command, tmp_path):
  (tmp_path / "empty").mkdir()
  assert "no such folder" in error_of(train_on(run_command, tmp_path / "missing", tmp_path))
  assert "C0/patientN_C0.nii.gz" in error_of(train_on(run_command, tmp_path / "empty", tmp_path))


def test_a_stage_is_not_resumed_with_other_volumes(damaged, tiny_config, tmp_path, monkeypatch):
  tiny_config.data.update(name="mscmrseg", root=str(damaged), prepared_dir=str(tmp_path / "prepared"))
  tiny_config.data.options = ConfigDict()
  zoom = tiny_config.data.zoom
  monkeypatch.setattr(runs, "train", Mock(side_effect=KeyboardInterrupt))
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "results.json").write_text("of stages that are trained again")
  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      runs.run(tiny_config, tmp_path / "run")
  assert not (tmp_path / "run" / "results.json").exists()
  tiny_config.data.zoom = 0.5
  with pytest.raises(InputError, match="another configuration: data.zoom was"):
    runs.run(tiny_config, tmp_path / "run")
  tiny_config.data.zoom = zoom
  rewrite(damaged / "LGE" / "patient1_LGE.nii.gz", lambda voxels: voxels[::-1])
  with pytest.raises(InputError, match="another configuration: data.datasets was .*--stages=no_adaptation"):
    runs.run(tiny_config, tmp_path / "run")


def test_a_stage_is_resumed_with_the_same_volumes_elsewhere(damaged, tiny_config, tmp_path, monkeypatch):
  tiny_config.data.update(name="mscmrseg", root=str(damaged), prepared_dir=str(tmp_path / "prepared"))
  tiny_config.data.options = ConfigDict()
  monkeypatch.setattr(runs, "train", Mock(side_effect=KeyboardInterrupt))
  file = tmp_path / "run" / "no_adaptation" / "config.json"

  def run():
    with pytest.raises(KeyboardInterrupt):
      runs.run(tiny_config, tmp_path / "run")
    return json.loads(file.read_text())

  names = run()["data"]["datasets"]
  tiny_config.data.root = str(damaged.rename(tmp_path / "moved"))
  assert run()["data"]["datasets"] == names


WITH_SPACING = {"folder": 1.5, "mmwhs": 2.0, "myops": 1.5, "mscmrseg": None, "mscmrseg_best": None, "uda": None}


@pytest.mark.parametrize("name", WITH_SPACING)
def test_a_number_is_replaced_by_none_and_none_by_a_number(run_command, name):
  command = ["vamcei_jax.main", f"--config=configs/{name}.py", "--print_config"]
  printed = lambda *flags: run_command(*command, *flags).stdout.splitlines()
  found = lambda *flags: {line.strip() for line in printed(*flags) if line.strip().startswith("spacing:")}
  spacing = lambda *flags: found(*flags) - {"spacing: 4.0"}  # of the stage locate
  default = WITH_SPACING[name]
  assert spacing() == {f"spacing: {'null' if default is None else default}"}
  assert spacing("--config.data.spacing=None") == {"spacing: null"}
  assert spacing("--config.data.spacing=2") == {"spacing: 2.0"}
  assert "root: /data/a" in {line.strip() for line in printed("--config.data.root", "/data/a")}
  assert spacing("--config.data.spacing=2", "--config.data.spacing=None") == {"spacing: null"}
  assert error_of(run_command(*command, "--config.data.spacing=wide")).endswith("or None")
  assert "unknown config field" in error_of(run_command(*command, "--config.stage.nosuch.data.spacing=None"))
  assert "init: weights/lge" in {line.strip() for line in printed("--config.init=weights/lge")}


def test_a_field_that_a_config_file_sets_to_a_plain_none_can_be_set(run_command, tmp_path):
  file = tmp_path / "plain.py"
  lines = ["from configs import uda", "from ml_collections import ConfigDict", "def get_config():"]
  lines += [
    "  config = uda.get_config().to_dict()",
    "  config['data']['spacing'] = None",
    "  return ConfigDict(config)",
  ]
  file.write_text("\n".join(lines))
  flags = [f"--config={file}", "--print_config", "--config.data.spacing=1.5", "--config.data.root=1.5"]
  printed = run_command("vamcei_jax.main", *flags).stdout
  assert "spacing: 1.5" in printed
  assert "root: '1.5'" in printed


def test_the_workdir_of_another_config_is_refused(run_command, tiny_run, prepared):
  flags = [TINY, f"--config.data.prepared_dir={prepared}", f"--workdir={tiny_run}"]
  error = error_of(run_command("vamcei_jax.main", *flags, "--config.train.batch_size=5"))
  assert "train.batch_size was 3, is 5" in error


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    ([TINY, "--config.train.stepz=3"], "stepz"),
    ([TINY, "--config.train.steps=many"], "steps"),
    ([TINY, "--config.train.steps=0"], "config.train.steps=0"),
    ([TINY, "--config.data.crop=(24,25)"], "config.data.crop"),
    ([TINY, "--config.stages=('nosuch',)"], "no_adaptation, vamcei"),
    ([TINY, "--config.loss.ramp=(0,)"], "config.loss.ramp"),
    ([TINY, "--config.data.percentiles=(1.0,)"], "config.data.percentiles"),
    ([TINY, "--config.data.source='nosuch'"], "no such domain"),
    (["--config=README.md"], "README.md"),
    ([TINY, "--nosuch=1"], "nosuch"),
    (["--config=configs/nosuch.py"], "configs/nosuch.py"),
    ([], "--config"),
  ],
)
def test_wrong_flags_are_named_before_anything_is_written(run_command, tmp_path, flags, expected):
  assert expected in error_of(run_command("vamcei_jax.main", *flags, f"--workdir={tmp_path / 'run'}"))
  assert not (tmp_path / "run").exists()


def test_masks_have_the_grid_of_their_volumes(run_command, tiny_run, folder, tmp_path):
  """Shape, affine, axes and header code. The run predicts in another folder, without its data."""
  workdir = tmp_path / "run"
  shutil.copytree(tiny_run, workdir)
  turned = tmp_path / "volumes"
  turned.mkdir()
  for path in sorted((folder / "LGE").glob("*LGE.nii.gz"))[:2]:
    shutil.copy(path, turned)
  image = nib.load(turned / "patient1_LGE.nii.gz")
  nib.as_closest_canonical(image).to_filename(turned / "turned.nii.gz")
  output = tmp_path / "o"
  finished = run_command("vamcei_jax.predict", f"--workdir={workdir}", f"--input={turned}", f"--output={output}")
  assert finished.returncode == 0, finished.stderr

  assert {path.name for path in output.glob("*.nii.gz")} == {path.name for path in turned.iterdir()}
  for path in turned.iterdir():
    volume, mask = nib.load(path), nib.load(tmp_path / "o" / path.name)
    assert mask.shape == volume.shape
    np.testing.assert_array_equal(mask.affine, volume.affine)
    assert mask.header["sform_code"] == volume.header["sform_code"]
    assert set(np.unique(mask.dataobj)) <= {0, 200, 500, 600}
  straight = nib.as_closest_canonical(nib.load(tmp_path / "o" / "patient1_LGE.nii.gz"))
  np.testing.assert_array_equal(straight.dataobj, nib.load(tmp_path / "o" / "turned.nii.gz").dataobj)


def test_predict_names_the_run_file_or_folder_that_it_cannot_use(run_command, tiny_run, folder, tmp_path):
  volume = folder / "LGE" / "patient1_LGE.nii.gz"
  predict = lambda workdir, source, output: error_of(
    run_command("vamcei_jax.predict", f"--workdir={workdir}", f"--input={source}", f"--output={output}")
  )
  assert "config.json" in predict(tmp_path, volume, tmp_path / "o")
  assert "nosuch.nii.gz" in predict(tiny_run, tmp_path / "nosuch.nii.gz", tmp_path / "o")
  assert "choose another --output" in predict(tiny_run, volume, volume.parent)
  cut = tmp_path / "cut.nii.gz"
  cut.write_bytes(gzip.compress(gzip.decompress(volume.read_bytes())[:5000]))
  assert "cut.nii.gz" in predict(tiny_run, cut, tmp_path / "o")
  assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
  ("kernel", "tunables", "hinted"),
  [
    ("always [madvise] never", "", True),
    ("always [madvise] never", "glibc.malloc.perturb=1", True),
    ("always [madvise] never", "glibc.malloc.hugetlb=0", False),
    ("[always] madvise never", "", False),
    (None, "", False),
  ],
)
def test_huge_pages_are_hinted_at_where_they_would_help(tmp_path, monkeypatch, capsys, kernel, tunables, hinted):
  if kernel:
    (tmp_path / "enabled").write_text(kernel)
  monkeypatch.setattr(cli, "_HUGE_PAGES", tmp_path / "enabled")
  monkeypatch.setenv("GLIBC_TUNABLES", tunables)
  cli.hint_huge_pages()
  printed = capsys.readouterr().out
  assert printed.count("\n") == int(hinted)
  assert ("GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in printed) == hinted


def test_all_modules_are_imported_in_one_process():
  """Flags of one command line do not collide with those of another, and the API stays callable."""
  code = """
import importlib, pkgutil, vamcei_jax
modules = [module.name for module in pkgutil.walk_packages(vamcei_jax.__path__, "vamcei_jax.")]
for module in modules:
  importlib.import_module(module)
print(len(modules) > 60, all(map(callable, (vamcei_jax.evaluate, vamcei_jax.train, vamcei_jax.load_segmenter))))
"""
  printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert printed.stdout == "True True\n", printed.stderr


def test_importing_the_package_imports_no_heavy_library():
  heavy = "{'jax', 'numpy', 'flax', 'tensorflow_datasets', 'nibabel', 'absl'}"
  code = f"import sys, vamcei_jax; print(sorted({heavy} & set(sys.modules)))"
  printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert printed.stdout == "[]\n"


def test_the_resolved_configuration_is_printed(run_command, tmp_path):
  flags = [TINY, "--config.train.steps=5", "--print_config", f"--workdir={tmp_path / 'run'}"]
  printed = run_command("vamcei_jax.main", *flags)
  assert printed.returncode == 0, printed.stderr
  assert printed.stdout.count("steps: 5\n") == 2
  assert not (tmp_path / "run").exists()


def test_importing_the_pipeline_imports_neither_tensorflow_nor_matplotlib():
  heavy = "{'tensorflow', 'matplotlib'}"
  code = f"import sys, vamcei_jax.losses, vamcei_jax.pipeline.run; print({heavy} & set(sys.modules))"
  printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert printed.stdout.strip() == "set()"


def test_predicting_with_exported_weights_imports_nothing_of_training():
  """Each of these libraries takes 0.2 s or more to import."""
  heavy = "{'tensorflow_datasets', 'orbax', 'matplotlib', 'grain', 'tensorboardX'}"
  run = "vamcei_jax.load_segmenter('weights/lge')(np.zeros((32, 32, 1), 'float32'), spacing=(1, 1, 8)).mask"
  code = f"import sys, numpy as np, vamcei_jax; {run}; print({heavy} & set(sys.modules))"
  printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert printed.stdout.strip() == "set()", printed.stderr


@pytest.mark.slow
def test_the_advice_on_a_changed_configuration_works(tiny_run, prepared, tmp_path, run_command):
  """It names every stage that differs: advice with one stage of the two would be refused because of the other."""
  workdir = shutil.copytree(tiny_run, tmp_path / "run")
  command = ["vamcei_jax.main", TINY, f"--config.data.prepared_dir={prepared}", f"--workdir={workdir}"]
  advice = error_of(run_command(*command, "--config.seed=5"))
  assert "seed was 0, is 5" in advice
  assert advice.endswith("--stages=no_adaptation,vamcei")
  retrained = run_command(*command, "--config.seed=5", advice.split()[-1])
  assert retrained.returncode == 0, retrained.stderr
  assert "no_adaptation: starts" in retrained.stdout
  assert json.loads((workdir / "config.json").read_text())["seed"] == 5


@pytest.mark.parametrize(
  ("module", "flags", "expected"),
  [
    ("vamcei_jax.export", ["--workdir=", "--output=o"], "--workdir=: empty"),
    ("vamcei_jax.export", ["--workdir=w", "--output="], "--output=: empty"),
    ("vamcei_jax.predict", ["--weights=", "--input=.", "--output=o"], "--weights=: empty"),
    ("vamcei_jax.main", [TINY, "--workdir="], "--workdir=: empty"),
    ("vamcei_jax.main", ["--reproduce=run", "--describe"], "--describe and --print_config go with --config=FILE"),
  ],
)
def test_flags_without_a_folder_or_a_configuration_are_refused(
  run_command, module, flags, expected, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  flags = [flag.replace("tests/configs", str(ROOT / "tests" / "configs")) for flag in flags]
  assert expected in error_of(run_command(module, *flags))
  assert not list(tmp_path.iterdir())
