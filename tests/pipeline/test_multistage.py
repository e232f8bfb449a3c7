"""The multi-stage framework as a run: kills, skipped and repeated stages, changed settings, prediction by any stage."""

import json
import shutil
import signal
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.commands import ROOT, command
from tests.configs import tiny_multistage
from tests.runs import assert_same, final_state, mislabel_target
from vamcei_jax.config.files import read_config, write_config
from vamcei_jax.data.loader import load_patients, load_slices
from vamcei_jax.data.preprocess import preprocess_settings, restore_probabilities
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.metrics import measure
from vamcei_jax.inference.load import load_segmenter, restore_stage
from vamcei_jax.inference.postprocess import smooth_slices
from vamcei_jax.methods import cyclegan
from vamcei_jax.phantom.scanner import write_nifti
from vamcei_jax.pipeline.domains import prepare_datasets, translate_datasets
from vamcei_jax.pipeline.run import run
from vamcei_jax.pipeline.stages import STAGES, TEACHERS
from vamcei_jax.pipeline.teachers import load_stage

ORDER = ("no_adaptation", "translate", "target_vamcei", "source_vamcei", "distill")
CONFIG = "--config=tests/configs/tiny_multistage.py"


def make_config(prepared):
  config = tiny_multistage.get_config()
  config.data.prepared_dir = str(prepared)
  return config


@pytest.fixture
def config(prepared):
  return make_config(prepared)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prepared):
  """The workdir of a finished run."""
  workdir = tmp_path_factory.mktemp("runs") / "multistage"
  run(make_config(prepared), workdir)
  return workdir


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_as_an_uninterrupted_one(finished, prepared, tmp_path):
  flags = CONFIG, f"--config.data.prepared_dir={prepared}", f"--workdir={tmp_path}"
  arguments, lines = command("vamcei_jax.main", *flags), []
  for stage, step in zip(ORDER, (2, 4, 6, 2, 6), strict=True):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(arguments, cwd=ROOT, text=True, **pipes) as process:
      for line in process.stdout:
        lines.append(line)
        if line.startswith(f"{stage} ") and int(line.split()[1].split("/")[0]) >= step:
          process.send_signal(signal.SIGKILL)
          break
      process.stdout.read()
      assert process.wait() == -signal.SIGKILL

  resumed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
  assert resumed.returncode == 0, resumed.stderr
  for stage in ("target_vamcei", "distill"):  # killed at step 6: the checkpoint of step 4 is complete
    assert f"{stage}: resumes at step" in "".join(lines) + resumed.stdout
  for stage in ORDER:
    assert_same(final_state(tmp_path, stage), final_state(finished, stage))
  assert json.loads((tmp_path / "results.json").read_text()) == json.loads((finished / "results.json").read_text())


def test_the_final_table_has_every_row(finished):
  results = json.loads((finished / "results.json").read_text())
  assert list(results["methods"]) == ["no_adaptation", "target_vamcei", "source_vamcei", "teachers", "distill"]
  for stage in ORDER:
    pictures = list((finished / stage / "pictures").iterdir())
    assert pictures
    assert list((finished / stage / "checkpoints").iterdir())


@pytest.mark.slow
def test_finished_stages_are_skipped_and_named_ones_trained_again(finished, config, prepared, capsys):
  before = {stage: final_state(finished, stage) for stage in ORDER}
  config.stage.distill.distillation.temperature = 5.0
  with pytest.raises(InputError, match="distillation.temperature was 2.0, is 5.0"):
    run(config, finished)
  capsys.readouterr()
  run(config, finished, ["distill"])
  printed = capsys.readouterr().out
  for stage in ORDER[:-1]:
    assert f"{stage}: finished at step" in printed
    assert_same(final_state(finished, stage), before[stage])
  assert "distill: starts" in printed
  with pytest.raises(AssertionError):
    assert_same(final_state(finished, "distill"), before["distill"])

  run(make_config(prepared), finished, ["distill"])
  assert_same(final_state(finished, "distill"), before["distill"])


def set_blocks(config):
  config.stage.translate.translation.blocks = 3


def set_width(config):
  config.model.discriminator_width = 3


@pytest.mark.parametrize(
  ("change", "field"), [(set_blocks, "translation.blocks"), (set_width, "model.discriminator_width")]
)
def test_a_changed_setting_of_a_finished_stage_is_named(finished, config, change, field):
  change(config)
  with pytest.raises(InputError, match=f"made with another configuration: {field} was .*, is 3; use another --workdir"):
    run(config, finished)


def test_every_stage_predicts_but_the_one_that_translates(finished, tmp_path):
  write_nifti(tmp_path / "data", sources=0, targets=1)
  (volume,) = [p for p in (tmp_path / "data" / "LGE").iterdir() if "manual" not in p.name]
  masks = {stage: load_segmenter(finished / stage)(volume).mask for stage in ORDER if stage != "translate"}
  with pytest.raises(InputError, match="translates and segments nothing"):
    load_segmenter(finished / "translate")
  np.testing.assert_array_equal(load_segmenter(finished)(volume).mask, masks["distill"])


def test_target_labels_change_no_stage(finished, config, tmp_path, monkeypatch, without_pictures):
  """A run in which all target masks have other classes ends with the same parameters, in every stage."""
  mislabel_target(monkeypatch)
  config.data.prepared_dir = str(tmp_path / "mislabelled")
  results = run(config, tmp_path / "run")
  for stage in ORDER:
    assert_same(final_state(tmp_path / "run", stage), final_state(finished, stage))
  expected = json.loads((finished / "results.json").read_text())
  for method, scores in results["methods"].items():
    assert scores["patients"] != expected["methods"][method]["patients"]


def test_the_rows_of_the_teachers_are_scores_of_their_images_and_of_their_smoothed_weighted_mean(finished):
  stages = {stage: restore_stage(finished / stage) for stage in TEACHERS}
  data = stages["no_adaptation"][0].data
  datasets = prepare_datasets(data, finished)
  _, translators = restore_stage(finished / "translate")
  datasets |= translate_datasets(print, translators, datasets, finished / "translate" / "data")  # finds them on disk
  patients = {stage: list(load_patients(datasets[STAGES[stage].target], "test")) for stage in TEACHERS}

  def predict(stage, number):
    stage_config, networks = stages[stage]
    images = jnp.asarray(patients[stage][number].image[..., None])
    return np.asarray(STAGES[stage].method.make_predict(stage_config)(networks, images))

  def mask_of(probs, patient):
    settings = preprocess_settings(data)
    return restore_probabilities(probs, patient.shape, patient.spacing, settings, patient.centre).argmax(-1)

  methods = json.loads((finished / "results.json").read_text())["methods"]
  assert list(methods["teachers"]["patients"]) == [patient.name for patient in patients["no_adaptation"]]
  for number, patient in enumerate(patients["no_adaptation"]):
    first, second, third = (predict(stage, number) for stage in TEACHERS)
    mean = 0.6 * first + 0.2 * second + 0.2 * third
    smoothed = smooth_slices(mean, patient.spacing[0], 6.0)
    mask = mask_of(smoothed, patient)
    for row, probs in zip(("teachers", *TEACHERS), (smoothed, first, second, third), strict=True):
      scored = methods[row]["patients"][patient.name]
      for structure, scores in measure(mask_of(probs, patient), patient.truth, patient.spacing).items():
        assert scored[structure]["dice"] == pytest.approx(scores["dice"], abs=1e-3)
    for other in (mean, first, second, third):
      assert (mask_of(other, patient) != mask).mean() > 0.001


def test_a_note_names_a_stage_whose_training_is_not_finished(finished, tmp_path, capsys):
  restore_stage(finished / "distill")
  assert "training is not finished" not in capsys.readouterr().err  # Orbax may have remarks of its own
  shutil.copytree(finished / "distill", tmp_path / "distill")
  config = read_config(tmp_path / "distill")
  config["train"]["steps"] += 1
  write_config(tmp_path / "distill", config)
  restore_stage(tmp_path / "distill")
  note = f"{tmp_path / 'distill'}: training is not finished; its newest checkpoint is used\n"
  assert capsys.readouterr().err.endswith(note)


def test_a_student_has_no_latents_to_sample(finished):
  with pytest.raises(InputError, match="a plain U-Net has no latents to sample; name another stage, .*/target_vamcei"):
    load_segmenter(finished, samples=2)
  for stage in TEACHERS:
    segmenter = load_segmenter(finished / stage, samples=2)
    image = np.random.default_rng(0).uniform(size=(3, *segmenter.config.data.size)).astype(np.float32)
    first, second = (segmenter.segment(image, jax.random.key(number)) for number in (1, 2))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(segmenter.segment(image, jax.random.key(1)), first)


def test_every_stage_learns_from_its_images_and_its_teachers(finished):
  """Images of each translator, images that each teacher predicts, and what the student learns from."""
  translation, translators = restore_stage(finished / "translate")
  datasets = prepare_datasets(translation.data, finished)
  stages = {stage: restore_stage(finished / stage) for stage in TEACHERS}

  def translate(direction, images):
    translator = translators["translators"][direction]
    return np.asarray(cyclegan.make_predict(translation)(translator, jnp.asarray(images[..., None])))[..., 0]

  def fail(*_):
    raise AssertionError("translated again")

  translated = translate_datasets(fail, translators, datasets, finished / "translate" / "data")
  images = {name: load_slices(data, "train", labels=False)["image"] for name, data in (datasets | translated).items()}
  np.testing.assert_allclose(images["source_as_target"], translate("to_target", images["source"]), atol=1e-5)
  np.testing.assert_allclose(images["target_as_source"], translate("to_source", images["target"]), atol=1e-5)

  predict = {stage: STAGES[stage].method.make_predict(config) for stage, (config, _) in stages.items()}
  target = lambda stage: jnp.asarray(images[STAGES[stage].target][..., None])
  probs = {stage: predict[stage](stages[stage][1], target(stage)) for stage in TEACHERS}
  networks = {stage: networks for stage, (_, networks) in stages.items()}
  compiled = {stage: jax.jit(function) for stage, function in predict.items()}
  student_config, _ = restore_stage(finished / "distill")
  stored = load_stage(student_config, datasets | translated, compiled, networks)
  slices = {domain: slices_on_disk.load() for domain, slices_on_disk in stored.items()}
  assert set(slices["target"]) == {"image", "teacher"}  # and no label
  first, second, third = (np.asarray(probs[teacher]) for teacher in TEACHERS)
  assert min(np.abs(first - second).max(), np.abs(second - third).max()) > 0.02
  patients = list(load_patients(datasets["target"], "train", labelled=False))
  starts = np.cumsum([len(patient.image) for patient in patients])[:-1]
  means = zip(np.split(0.6 * first + 0.2 * second + 0.2 * third, starts), patients, strict=True)
  smoothed = [smooth_slices(mean, patient.spacing[0], 6.0) for mean, patient in means]
  expected = np.concatenate(smoothed)
  assert np.abs(expected - (0.6 * first + 0.2 * second + 0.2 * third)).max() > 0.01
  np.testing.assert_allclose(slices["target"]["teacher"], expected, atol=2e-3)
  learned = {each: load_stage(stages[each][0], datasets | translated, compiled, networks) for each in TEACHERS}
  assert "target" not in learned.pop("no_adaptation")
  assert all(set(maps["target"][0]) == {"image"} for maps in learned.values())
  np.testing.assert_array_equal(slices["target"]["image"], images["target"])
  np.testing.assert_array_equal(slices["source"]["image"], images["source_as_target"])

  source_teacher = load_segmenter(finished / "source_vamcei").segment
  np.testing.assert_allclose(source_teacher(images["target"][:3]), probs["source_vamcei"][:3], atol=1e-4)
  student = load_segmenter(finished).segment
  assert np.abs(student(images["target"][:3]) - probs["source_vamcei"][:3]).max() > 1e-3
