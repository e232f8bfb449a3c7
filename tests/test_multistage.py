"""The multi-stage framework as a run: kills, skipped and repeated stages, changed settings, prediction by any stage."""

import itertools
import json
import shutil
import signal
import subprocess

import jax
import nibabel as nib
import numpy as np
import pytest

from tests.conftest import ROOT, command
from tests.runs import assert_same, final_state
from vamcei_jax.config import read_config, write_config
from vamcei_jax.data.apex import apical_odds
from vamcei_jax.data.loader import load_patients, load_slices, load_stacks
from vamcei_jax.data.phantom import write_nifti
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.postprocess import smooth_slices, taper_apex
from vamcei_jax.methods import cyclegan
from vamcei_jax.pipeline import load_stage, prepare_datasets, teaching, translate_datasets
from vamcei_jax.restore import restore_predict, restore_stage
from vamcei_jax.stages import STAGES, TEACHERS

ORDER = ("no_adaptation", "translate", "target_vamcei", "source_vamcei", "distill")
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


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_as_an_unbroken_one(finished, flags, tmp_path):
  arguments, said = command(*flags, f"--workdir={tmp_path}"), []
  for stage, step in zip(ORDER, (2, 4, 6, 2, 6), strict=True):
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
      said.append(line)
      if line.startswith(f"{stage} ") and int(line.split()[1].split("/")[0]) >= step:
        process.send_signal(signal.SIGKILL)
        break
    process.stdout.read()
    assert process.wait() == -signal.SIGKILL

  resumed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
  assert resumed.returncode == 0, resumed.stderr
  for stage in ("target_vamcei", "distill"):  # killed at step 6: the checkpoint of step 4 is whole
    assert f"{stage}: resumes at step" in "".join(said) + resumed.stdout
  for stage in ORDER:
    assert_same(final_state(tmp_path, stage), final_state(finished, stage))
  assert json.loads((tmp_path / "results.json").read_text()) == json.loads((finished / "results.json").read_text())


def test_the_final_table_has_every_row(finished):
  results = json.loads((finished / "results.json").read_text())
  assert list(results) == ["no_adaptation", "target_vamcei", "source_vamcei", "teachers", "distill"]
  for stage in ORDER:
    pictures = list((finished / stage / "pictures").iterdir())
    assert pictures
    assert list((finished / stage / "checkpoints").iterdir())


@pytest.mark.slow
def test_finished_stages_are_skipped_and_named_ones_trained_again(finished, flags, run_command):
  before = {stage: final_state(finished, stage) for stage in ORDER}
  changed = [*flags, f"--workdir={finished}", "--config.stage.distill.distillation.temperature=5.0"]
  refused = run_command(*changed)
  assert refused.returncode == 2
  assert "distillation.temperature was 2.0, is 5.0" in refused.stderr

  again = run_command(*changed, "--stages=distill")
  assert again.returncode == 0, again.stderr
  for stage in ORDER[:-1]:
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
  for folder in (finished, *(finished / stage for stage in ORDER)):
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


def test_a_network_that_is_not_trained_to_its_end_is_used_and_said_to_be(finished, tmp_path, capsys):
  restore_stage(finished / "distill")
  assert capsys.readouterr().err == ""
  shutil.copytree(finished / "distill", tmp_path / "distill")
  config = read_config(tmp_path / "distill")
  config.train.steps += 1
  write_config(tmp_path / "distill", config)
  restore_stage(tmp_path / "distill")
  assert capsys.readouterr().err == f"{tmp_path / 'distill'}: training did not end; its newest checkpoint is used\n"


def test_a_student_has_no_latents_to_draw(finished):
  with pytest.raises(InputError, match="a plain U-Net has no latents to draw; name another stage, .*/target_vamcei"):
    restore_predict(finished, sampled=True)
  for stage in TEACHERS:
    predict, config = restore_predict(finished / stage, sampled=True)
    image = np.random.default_rng(0).uniform(size=(3, *config.data.size)).astype(np.float32)
    first, second = (predict(image, jax.random.key(number)) for number in (1, 2))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(predict(image, jax.random.key(1)), first)


def test_teachers_say_the_mean_over_the_views_that_they_have_learned(finished):
  """A network that says the same of every image is contradicted by its views, the more they are turned."""
  configs = {stage: read_config(finished / stage) for stage in (*TEACHERS, "distill")}
  configs["source_vamcei"].augment.rotation = 1.5
  left = np.float32(np.mgrid[:64, :64][1] < 32)
  says_left = lambda networks, images: jax.numpy.stack([1.0 - left, left], -1)[None] + 0.0 * images
  predict = dict.fromkeys(TEACHERS, says_left)
  teach = teaching(configs, predict)
  image = np.ones((1, 64, 64, 1), np.float32)
  gaps = [float(abs(np.asarray(teach[teacher]({}, image))[0, ..., 1] - left).mean()) for teacher in TEACHERS]
  assert 0.01 < 2 * gaps[0] < gaps[1]

  configs["distill"].distillation.views = False
  assert teaching(configs, predict) == predict


def test_stages_see_the_images_that_they_should(finished):
  """Which translator made which data, whose images each teacher judges, and what the student is taught."""
  translation, translators = restore_stage(finished / "translate")
  datasets = prepare_datasets(translation, finished)
  stages = {stage: restore_stage(finished / stage) for stage in TEACHERS}

  def translate(direction, images):
    translator = translators["translators"][direction]
    return np.asarray(jax.jit(cyclegan.make_predict(translation))(translator, images[..., None]))[..., 0]

  def fail(*_):
    raise AssertionError("translated again")

  kept = translate_datasets(fail, translators, datasets, finished / "translate" / "data")
  images = {name: load_slices(data, "train", labels=False)["image"] for name, data in (datasets | kept).items()}
  np.testing.assert_allclose(images["source_as_target"], translate("to_target", images["source"]), atol=1e-5)
  np.testing.assert_allclose(images["target_as_source"], translate("to_source", images["target"]), atol=1e-5)

  predict = {stage: jax.jit(STAGES[stage].method.make_predict(own)) for stage, (own, _) in stages.items()}
  said = {stage: predict[stage](stages[stage][1], images[STAGES[stage].target][..., None]) for stage in TEACHERS}
  networks = {stage: networks for stage, (_, networks) in stages.items()}
  own, _ = restore_stage(finished / "distill")
  stored = load_stage("distill", own, datasets | kept, predict, networks)
  taught = {domain: slices.load() for domain, slices in stored.items()}
  assert set(taught["target"]) == {"image", "teacher"}  # and no label
  first, second, third = (np.asarray(said[teacher]) for teacher in TEACHERS)
  assert min(np.abs(first - second).max(), np.abs(second - third).max()) > 0.02
  patients = list(load_patients(datasets["target"], "train", labelled=False))
  each = np.cumsum([len(patient.image) for patient in patients])[:-1]
  means = zip(np.split(0.6 * first + 0.2 * second + 0.2 * third, each), patients, strict=True)
  apex = apical_odds(load_stacks(datasets["source"], "train", "mask"))
  smoothed, tapered = [], []
  for mean, patient in means:
    smoothed.append(smooth_slices(mean, patient.spacing[0], 6.0))
    tapered.append(taper_apex(smoothed[-1], patient.spacing[0], apex))
  expected = np.concatenate(tapered)
  ways = 0.6 * first + 0.2 * second + 0.2 * third, np.concatenate(smoothed), expected
  assert all(np.abs(a - b).max() > 0.01 for a, b in itertools.pairwise(ways))
  np.testing.assert_allclose(taught["target"]["teacher"], expected, atol=2e-3)
  for teacher in TEACHERS:
    assert set(load_stage(teacher, stages[teacher][0], datasets | kept, predict, networks)["target"][0]) == {"image"}
  np.testing.assert_array_equal(taught["target"]["image"], images["target"])
  np.testing.assert_array_equal(taught["source"]["image"], images["source_as_target"])

  alone, _ = restore_predict(finished / "source_vamcei")
  np.testing.assert_allclose(alone(images["target"][:3]), said["source_vamcei"][:3], atol=1e-4)
  student, _ = restore_predict(finished)
  assert np.abs(student(images["target"][:3]) - said["source_vamcei"][:3]).max() > 1e-3
