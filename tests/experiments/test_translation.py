"""The experiments on a multi-stage run, by the README's commands."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def multistage_run(run_command, prepared, tmp_path_factory):
  """The workdir of a finished multi-stage run."""
  workdir = tmp_path_factory.mktemp("multistage") / "run"
  flags = ["--config=tests/configs/tiny_multistage.py", f"--config.data.prepared_dir={prepared}"]
  finished = run_command("vamcei_jax.main", *flags, f"--workdir={workdir}")
  assert finished.returncode == 0, finished.stderr
  return workdir


def test_a_judge_scores_translated_images(run_command, multistage_run, prepared, tmp_path):
  flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={prepared}"]
  finished = run_command("experiments.domain_gap", *flags, f"--workdir={tmp_path}")
  assert finished.returncode == 0, finished.stderr
  lines = finished.stdout.splitlines()
  assert [line.split()[0] for line in lines[-3:]] == ["bssfp_labels", "lge_labels", "difference"]

  judge = tmp_path / "lge_labels"
  finished = run_command("experiments.translation_gain", f"--workdir={multistage_run}", f"--judge={judge}")
  assert finished.returncode == 0, finished.stderr
  results = json.loads((multistage_run / "translation_gain.json").read_text())
  assert list(results) == ["source", "translated", "cycle_error"]
  assert results["source"]["mean"]["dice"]["mean"] != results["translated"]["mean"]["dice"]["mean"]
  assert 0.0 < results["cycle_error"] < 1.0
  assert f"mean absolute error of the cycle: {results['cycle_error']:.4f}" in finished.stdout


def test_the_student_is_timed_against_its_teachers(run_command, multistage_run):
  finished = run_command("experiments.prediction_speed", f"--workdir={multistage_run}")
  assert finished.returncode == 0, finished.stderr
  results = json.loads((multistage_run / "prediction_speed.json").read_text())
  assert results["ratio"] == pytest.approx(results["seconds"]["teachers"] / results["seconds"]["student"])
  assert f"The student is {results['ratio']:.1f} times as fast as its teachers." in finished.stdout
