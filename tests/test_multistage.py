"""The multi-stage framework as a run: kills, skipped and repeated stages, changed settings, prediction by any stage."""

import json
import signal
import subprocess

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import ROOT, command
from tests.test_training import assert_same, final_state
from vamcei_jax.data.phantom import write_nifti
from vamcei_jax.pipeline import restore_predict, restore_stage

STAGES = ("no_adaptation", "translate", "target_vamcei", "source_vamcei", "distill")
CONFIG = "--config=tests/configs/tiny_multistage.py"


@pytest.fixture(scope="module")
def flags(prepared):
  return ["vamcei_jax.main", CONFIG, f"--config.data.prepared_dir={prepared}"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, flags, run_command):
  """The workdir of a finished run."""
  workdir = tmp_path_factory.mktemp("runs") / "multistage"
  run = run_command(*flags, f"--workdir={workdir}")
  assert run.returncode == 0, run.stderr
  return workdir


def test_a_run_killed_in_every_stage_ends_as_an_unbroken_one(finished, flags, tmp_path):
  arguments = command(*flags, f"--workdir={tmp_path}")
  for stage, step in zip(STAGES, (2, 4, 6, 2, 6), strict=True):
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
      if line.startswith(f"{stage} ") and int(line.split()[1].split("/")[0]) >= step:
        process.send_signal(signal.SIGKILL)
        break
    process.stdout.read()
    assert process.wait() == -signal.SIGKILL

  resumed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
  assert resumed.returncode == 0, resumed.stderr
  for stage in STAGES:
    assert_same(final_state(tmp_path, stage), final_state(finished, stage))
  assert json.loads((tmp_path / "results.json").read_text()) == json.loads((finished / "results.json").read_text())


def test_the_final_table_has_every_row(finished):
  results = json.loads((finished / "results.json").read_text())
  assert list(results) == ["no_adaptation", "target_vamcei", "source_vamcei", "teachers", "distill"]
  for stage in STAGES:
    pictures = list((finished / stage / "pictures").iterdir())
    assert pictures
    assert list((finished / stage / "checkpoints").iterdir())


def test_finished_stages_are_skipped_and_named_ones_trained_again(finished, flags, run_command):
  before = {stage: final_state(finished, stage) for stage in STAGES}
  changed = [*flags, f"--workdir={finished}", "--config.stage.distill.distillation.temperature=5.0"]
  refused = run_command(*changed)
  assert refused.returncode == 2
  assert "distillation.temperature was 2.0, is 5.0" in refused.stderr

  again = run_command(*changed, "--stages=distill")
  assert again.returncode == 0, again.stderr
  for stage in STAGES[:-1]:
    assert f"{stage}: finished at step" in again.stdout
    assert_same(final_state(finished, stage), before[stage])
  assert "distill: starts" in again.stdout
  with pytest.raises(AssertionError):
    assert_same(final_state(finished, "distill"), before["distill"])

  back = run_command(*flags, f"--workdir={finished}", "--stages=distill")
  assert back.returncode == 0, back.stderr
  assert_same(final_state(finished, "distill"), before["distill"])


def test_a_changed_setting_of_a_finished_stage_is_named(finished, flags, run_command):
  for field in ("stage.translate.translation.blocks", "model.discriminator_width"):
    refused = run_command(*flags, f"--workdir={finished}", f"--config.{field}=3")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert field.removeprefix("stage.translate.") in refused.stderr


def test_any_stage_predicts_but_the_one_that_translates(finished, tmp_path, run_command):
  write_nifti(tmp_path / "data", sources=0, targets=1)
  (volume,) = [p for p in (tmp_path / "data" / "LGE").iterdir() if "manual" not in p.name]
  masks = {}
  for folder in (finished, *(finished / stage for stage in STAGES)):
    output = tmp_path / "masks" / folder.name
    run = run_command("vamcei_jax.predict", f"--workdir={folder}", f"--input={volume}", f"--output={output}")
    if folder.name == "translate":
      assert run.returncode == 2
      assert "translates and segments nothing" in run.stderr
      assert not output.exists()
    else:
      assert run.returncode == 0, run.stderr
      masks[folder.name] = np.asarray(nib.load(output / volume.name).dataobj)
  np.testing.assert_array_equal(masks["multistage"], masks["distill"])


def test_source_vamcei_sees_translated_images(finished):
  """Its prediction of a target image is that of its segmenter on the image in the source's contrast."""
  image = np.random.default_rng(0).uniform(size=(3, 32, 32)).astype(np.float32)
  predict, _ = restore_predict(finished / "source_vamcei")
  _, translators = restore_stage(finished / "translate")
  from vamcei_jax.methods import cyclegan, vamcei

  translation, _ = restore_stage(finished / "translate")
  config, networks = restore_stage(finished / "source_vamcei")
  translated = cyclegan.make_predict(translation)(translators["translators"]["to_source"], image[..., None])
  expected = vamcei.make_predict(config)(networks, translated)
  np.testing.assert_allclose(predict(image), expected, atol=1e-5)
