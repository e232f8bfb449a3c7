"""Damaged checkpoints: the newest intact one is used, and no state is restored that differs from the saved one."""

import gc
import random
import shutil

import jax
import jax.numpy as jnp
import pytest

from tests.runs import assert_same, final_state
from vamcei_jax.config.schema import StageConfig
from vamcei_jax.errors import InputError
from vamcei_jax.inference.load import restore_stage
from vamcei_jax.methods.state import State, create_state
from vamcei_jax.training.checkpoints import open_checkpoints, restore_last, restore_newest, save, set_aside

CONFIG = StageConfig("no_adaptation")
# Orbax and TensorStore leave coroutines behind when a file that they read is damaged.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DAMAGES = {
  "truncated": lambda file, rng: file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)]),
  "removed": lambda file, rng: file.unlink(),
  "flipped": lambda file, rng: flip(file, rng),
}


@pytest.fixture(autouse=True)
def without_unfinished_reads():
  """Collects what a failed read leaves behind before a later test could find its errors in its outputs."""
  yield
  gc.collect()


def flip(file, rng):
  content = bytearray(file.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  file.write_bytes(content)


def state_of(step) -> State:
  """A small state, different for each step."""
  params = {"segmenter": {"kernel": jax.random.normal(jax.random.key(step), (64, 64))}}
  state = create_state(params, jax.random.key(step), CONFIG, terms=("segmentation",))
  return state.replace(step=jnp.int32(step))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
  """A folder with the checkpoints of the steps 1 and 2."""
  folder = tmp_path_factory.mktemp("checkpoints")
  with open_checkpoints(folder, 2) as manager:
    for step in (1, 2):
      save(manager, state_of(step), step)
  return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_restored_state_is_a_saved_one_whatever_file_is_damaged(checkpoints, damage, tmp_path):
  """Each file of the newest checkpoint in turn: its state or the one before it is restored."""
  rng, fallen_back = random.Random(0), 0
  files = sorted(file.relative_to(checkpoints) for file in (checkpoints / "2").rglob("*") if file.stat().st_size)
  abstract = jax.eval_shape(lambda: state_of(2))
  for file in (file for file in files if (checkpoints / file).is_file()):
    folder = shutil.copytree(checkpoints, tmp_path / "damaged", dirs_exist_ok=True)
    DAMAGES[damage](folder / file, rng)
    with open_checkpoints(folder, 2) as manager:
      state, damaged = restore_newest(manager, abstract)
    assert_same(state, state_of(1 if damaged else 2))
    assert damaged in ([], [2])
    fallen_back += bool(damaged)
    shutil.rmtree(folder)
  assert fallen_back >= 3


def test_every_flipped_bit_of_the_arrays_is_detected(checkpoints, tmp_path, capsys):
  """Orbax decodes some of them without an error; the digest detects these."""
  rng, abstract, detected = random.Random(1), jax.eval_shape(lambda: state_of(2)), 0
  files = [file for file in (checkpoints / "2").rglob("*") if file.is_file()]
  largest = max(files, key=lambda file: file.stat().st_size)
  for _ in range(20):
    folder = shutil.copytree(checkpoints, tmp_path / "damaged")
    flip(folder / largest.relative_to(checkpoints), rng)
    with open_checkpoints(folder, 2) as manager:
      state, damaged = restore_newest(manager, abstract)
    assert_same(state, state_of(1 if damaged else 2))
    detected += bool(damaged)
    shutil.rmtree(folder)
  assert detected >= 15  # the others are in bytes that nobody reads
  assert "its arrays differ from those that were saved" in capsys.readouterr().err


def test_without_an_intact_checkpoint_nothing_is_started_and_nothing_removed(checkpoints, tmp_path):
  folder = shutil.copytree(checkpoints, tmp_path / "damaged")
  for file in folder.rglob("manifest.ocdbt"):
    file.write_bytes(b"")
  with open_checkpoints(folder, 2) as manager, pytest.raises(InputError, match="no checkpoint in it is intact"):
    restore_newest(manager, jax.eval_shape(lambda: state_of(2)))
  assert {path.name for path in folder.iterdir()} == {"1", "2"}


def test_the_newest_checkpoints_stay_after_a_resumption(tmp_path):
  for steps in ((1, 2, 3), (4, 5, 6)):
    with open_checkpoints(tmp_path, 2) as manager:
      for step in steps:
        save(manager, state_of(step), step)
  with open_checkpoints(tmp_path, 2) as manager:
    assert sorted(manager.all_steps()) == [5, 6]
    state, damaged = restore_newest(manager, jax.eval_shape(lambda: state_of(6)))
  assert not damaged
  assert_same(state, state_of(6))


def test_a_damaged_step_is_set_aside_and_can_be_saved_again(checkpoints, tmp_path):
  folder, abstract = shutil.copytree(checkpoints, tmp_path / "checkpoints"), jax.eval_shape(lambda: state_of(2))
  for file in (folder / "2").rglob("manifest.ocdbt"):
    file.write_bytes(b"")
  with open_checkpoints(folder, 2) as manager:
    _, damaged = restore_newest(manager, abstract)
    set_aside(manager, damaged)
    save(manager, state_of(2), 2)
  with open_checkpoints(folder, 2) as manager:
    state, damaged = restore_newest(manager, abstract)
  assert not damaged
  assert_same(state, state_of(2))
  assert (tmp_path / "damaged" / "2").is_dir()


def test_a_run_is_resumed_from_the_newest_intact_checkpoint(run_process, tiny_run, prepared, tmp_path):
  """One line names the damaged one, although Orbax fails in several of its arrays."""
  workdir = shutil.copytree(tiny_run, tmp_path / "run")
  for file in (workdir / "vamcei" / "checkpoints" / "8" / "state" / "ocdbt.process_0" / "d").iterdir():
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  _, predicts = restore_stage(workdir / "vamcei")
  shutil.copytree(workdir / "vamcei", tmp_path / "older")
  shutil.rmtree(tmp_path / "older" / "checkpoints" / "8")
  _, older = restore_stage(tmp_path / "older")
  assert_same(predicts, older)
  flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={prepared}", f"--workdir={workdir}"]
  finished = run_process("vamcei_jax.main", *flags)
  assert finished.returncode == 0, finished.stderr
  assert len(finished.stderr.splitlines()) == 1, finished.stderr
  assert "vamcei/checkpoints/8: cannot be used" in finished.stderr
  assert "vamcei: resumes at step 6 of 8" in finished.stdout
  assert_same(final_state(workdir, "vamcei"), final_state(tiny_run, "vamcei"))


def test_the_last_networks_are_those_of_the_last_step_or_none(checkpoints, tmp_path):
  """An older checkpoint does not stand in for a last one that is damaged or missing."""
  abstract, folder = jax.eval_shape(lambda: state_of(2)), shutil.copytree(checkpoints, tmp_path / "copy")
  assert_same(restore_last(folder, 2, abstract), state_of(2).ema_params)
  assert restore_last(folder, 3, abstract) is None
  for file in (file for file in (folder / "2").rglob("*") if file.is_file()):
    file.write_bytes(b"")
  assert restore_last(folder, 2, abstract) is None
