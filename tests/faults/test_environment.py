"""Variables of the shell, terminals without UTF-8, homes that are missing: no traceback, and the same results."""

import errno
import fcntl
import io
import json
import os
import pwd
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from tests.commands import ROOT, command, error_of
from tests.datasets.trees import write
from vamcei_jax import cli, load_segmenter, train
from vamcei_jax.environment import SETTINGS, jax_settings, require_device
from vamcei_jax.errors import InputError
from vamcei_jax.files import locked, one_at_a_time

STRICT = {
  "JAX_ENABLE_X64": "1",
  "JAX_NUMPY_DTYPE_PROMOTION": "strict",
  "JAX_NUMPY_RANK_PROMOTION": "raise",
  "JAX_DEFAULT_PRNG_IMPL": "rbg",
  "JAX_THREEFRY_PARTITIONABLE": "0",
}
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def run_with():
  """Runs `python -m ARGUMENTS` in a process with these variables; None removes one."""

  def run(variables, *arguments):
    environment = {name: value for name, value in (os.environ | variables).items() if value is not None}
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)

  return run


@pytest.fixture
def no_home(monkeypatch):
  """A user that the system does not know, as in many containers."""

  def unknown(number):
    raise KeyError(number)

  monkeypatch.delenv("HOME", raising=False)
  monkeypatch.setattr(pwd, "getpwuid", unknown)


def strict_host():
  """A host program with double precision, strict promotion and another random generator."""
  return jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.default_prng_impl("rbg")


def test_settings_of_the_host_program_are_replaced_in_a_block_and_kept_after_it():
  types = lambda: (jnp.ones(2).dtype, str(jax.random.key_impl(jax.random.key(0))))
  usual = types()
  double, strict, generator = strict_host()
  with double, strict, generator:
    host = types()
    assert host != usual
    with jax_settings():
      assert types() == usual
      assert (jnp.int32(1) + jnp.bool_(True)).dtype == np.int32
    assert types() == host
    with pytest.raises(jax.dtypes.TypePromotionError):
      jnp.ones(2, np.float32) + jnp.ones(2, np.int32)


def test_the_settings_are_those_of_jax_by_default():
  """So that a program without these variables computes as ever."""
  assert {name: getattr(jax.config, name) for name in SETTINGS} == SETTINGS


def test_prediction_is_the_same_in_a_host_program_with_other_settings(tiny_run):
  volume = np.random.default_rng(0).normal(size=(3, 40, 40)).astype(np.float32)
  predict = lambda: load_segmenter(tiny_run / "vamcei", samples=2)(volume, spacing=(8.0, 1.5, 1.5)).probabilities
  expected = predict()
  double, strict, generator = strict_host()
  with double, strict, generator:
    np.testing.assert_array_equal(predict(), expected)


def test_a_finished_run_is_found_intact_whatever_variables_of_jax_are_set(run_with, tiny_run, tmp_path):
  """Its parameters are restored and compared with their digests."""
  data, workdir = tiny_run.parent / "tiny_data", shutil.copytree(tiny_run, tmp_path / "run")
  flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={data}", f"--workdir={workdir}"]
  finished = run_with(STRICT, "vamcei_jax.main", *flags)
  assert finished.returncode == 0, finished.stderr
  assert "stages: no_adaptation (skip), vamcei (skip)" in finished.stdout


@pytest.mark.slow
def test_training_is_the_same_whatever_variables_of_jax_are_set(run_with, tiny_run, tmp_path):
  flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={tmp_path / 'data'}"]
  finished = run_with(STRICT | ASCII, "vamcei_jax.main", *flags, f"--workdir={tmp_path / 'run'}")
  assert finished.returncode == 0, finished.stderr
  assert " +- " in finished.stdout  # the table
  digests = [json.loads((workdir / "run.json").read_text())["stages"] for workdir in (tiny_run, tmp_path / "run")]
  assert digests[0] == digests[1]


@pytest.mark.slow
def test_training_is_the_same_in_a_host_program_with_other_settings(tiny_run, tiny_config, tmp_path, without_pictures):
  double, strict, generator = strict_host()
  with double, strict, generator:
    train(tiny_config, tmp_path / "run")
    assert jax.config.jax_enable_x64
  digests = [json.loads((workdir / "run.json").read_text())["stages"] for workdir in (tiny_run, tmp_path / "run")]
  assert digests[0] == digests[1]


# Devices


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize\nbackend 'cuda'")])
def test_a_missing_device_is_named_in_one_line(monkeypatch, error):
  def devices():
    raise error

  monkeypatch.setattr(jax, "devices", devices)
  with pytest.raises(InputError, match=r"no such device is found.*; unset JAX_PLATFORMS") as raised:
    require_device()
  assert str(raised.value).isprintable()


@pytest.mark.parametrize(
  "platform", ["cuda", *(pytest.param(each, marks=pytest.mark.slow) for each in ("tpu", "nonsense"))]
)
def test_a_run_on_a_platform_that_is_not_there_ends_before_anything_is_written(run_with, tmp_path, platform):
  if any(device.platform == platform.replace("cuda", "gpu") for device in jax.devices()):
    pytest.skip("this machine has the platform")
  flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={tmp_path}", f"--workdir={tmp_path / 'run'}"]
  error = error_of(run_with({"JAX_PLATFORMS": platform}, "vamcei_jax.main", *flags))
  assert error.startswith(f"error: JAX_PLATFORMS={platform}: no such device is found")
  assert list(tmp_path.iterdir()) == []


def test_a_run_says_first_on_which_devices_it_runs(run_command, tiny_run):
  flags = ["--config=tests/configs/tiny.py", "--config.data.name=nosuch", f"--workdir={tiny_run}"]
  finished = run_command("vamcei_jax.main", *flags)
  expected = f"device: {jax.device_count()} x cpu; data: nosuch, bssfp to lge; workdir: {tiny_run}"
  assert finished.stdout.splitlines()[0] == expected


# The terminal and the home folder


def test_what_a_terminal_lacks_is_replaced(monkeypatch):
  for encoding, expected in (("ascii", "0.5 +- 0.1, 1-2, p??t?"), ("latin-1", "0.5 ± 0.1, 1-2, p??t?")):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    cli.make_printable()
    print("0.5 ± 0.1, 1–2, p\udcc3\udca4t→", end="", flush=True)
    assert written.getvalue().decode(encoding) == expected


def test_without_a_home_the_flag_that_names_another_folder_is_named(run_command, no_home, tmp_path):
  prepare = ["vamcei_jax.prepare", "--config=tests/configs/tiny.py"]
  error = error_of(run_command(*prepare))
  assert error.endswith("there is no home folder; set HOME, or name another folder: --config.data.prepared_dir=DIR")
  finished = run_command(*prepare, f"--config.data.prepared_dir={tmp_path}")
  assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("module", ["main", "prepare"])
def test_a_home_that_cannot_be_written_is_named_with_the_flag(run_command, tmp_path, monkeypatch, module):
  (tmp_path / "home").touch()
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  workdir = [f"--workdir={tmp_path / 'run'}"] if module == "main" else []
  error = error_of(run_command(f"vamcei_jax.{module}", "--config=tests/configs/tiny.py", *workdir))
  assert f"{tmp_path / 'home'}/.cache/vamcei_jax/data: cannot be written" in error
  assert error.endswith("name another folder: --config.data.prepared_dir=DIR")
  assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("home", ["a file", None])
def test_compiled_programs_are_not_kept_where_no_folder_can_be_written(home, tmp_path, monkeypatch, request, capsys):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  if home:
    (tmp_path / home).touch()
    monkeypatch.setenv("HOME", str(tmp_path / home))
  else:
    request.getfixturevalue("no_home")
  cli.set_compilation_cache(cli.Path("~/.cache/vamcei_jax/compiled"))
  assert capsys.readouterr().err.strip().endswith("name another folder: --compiled=DIR")
  assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_the_compiled_network_of_predict_is_kept(tmp_path, monkeypatch, run_process):
  for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
    monkeypatch.delenv(name, raising=False)
  voxels = np.random.default_rng(0).random((64, 64, 1), np.float32)
  nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 8.0, 1.0])), tmp_path / "volume.nii.gz")
  paths = [f"--input={tmp_path / 'volume.nii.gz'}", f"--output={tmp_path / 'mask.nii.gz'}"]
  finished = run_process("vamcei_jax.predict", "--weights=weights/lge", *paths, f"--compiled={tmp_path / 'kept'}")
  assert finished.returncode == 0, finished.stderr
  assert list((tmp_path / "kept").glob("*/jit_predict-*"))


@pytest.mark.slow
def test_all_commands_work_in_a_terminal_without_utf_8_and_without_a_home(run_with, tiny_run, tmp_path):
  """The user is unknown to Python from its start on."""
  (tmp_path / "site").mkdir()
  lines = ["import pwd", "def unknown(number): raise KeyError(number)", "pwd.getpwuid = unknown"]
  (tmp_path / "site" / "sitecustomize.py").write_text("\n".join(lines))
  variables = {**ASCII, "PYTHONPATH": str(tmp_path / "site"), "HOME": None}
  images = tmp_path / "bilder ä"
  images.mkdir()
  write(images / "p1.nii.gz", images / "p1_manual.nii.gz", 1)
  masks = tmp_path / "masken ä"
  for arguments in (
    ["prepare", "--config=tests/configs/tiny.py", f"--config.data.prepared_dir={tmp_path / 'data'}"],
    ["predict", f"--workdir={tiny_run}", f"--input={images}", f"--output={masks}", "--samples=2"],
    ["evaluate", f"--predictions={masks}", f"--labels={images}", f"--output={tmp_path / 'scores'}"],
    ["export", f"--workdir={tiny_run}", f"--output={tmp_path / 'weights'}"],
  ):
    finished = run_with(variables, f"vamcei_jax.{arguments[0]}", *arguments[1:])
    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr
  assert (masks / "p1.nii.gz").exists()
  assert (tmp_path / "scores" / "report.html").exists()


def test_a_file_system_that_cannot_lock_is_said_and_used(tmp_path, monkeypatch, capsys):
  def flock(file, operation):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

  monkeypatch.setattr(fcntl, "flock", flock)
  with locked(tmp_path), one_at_a_time(tmp_path):
    assert (tmp_path / ".lock").exists()
  assert capsys.readouterr().err == f"{tmp_path}: not locked (Function not implemented); start no other run in it\n"
