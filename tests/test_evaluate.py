"""The command line `evaluate`: its numbers are those of the masks, and it names the files that it cannot use."""

import json
import re
import shlex

import numpy as np
import pytest

from tests.commands import error_of
from tests.evaluation.masks import assert_close, scores_of, write_folders, write_predictions
from vamcei_jax.evaluate import choose_label_values
from vamcei_jax.evaluation.statistics import compare
from vamcei_jax.phantom.scanner import draw_patient, write_patient


@pytest.fixture
def root(tmp_path):
  return write_folders(tmp_path)


@pytest.fixture
def evaluate(run_command, root):
  def run(predictions="near", labels="labels", *more):
    flags = [f"--predictions={root / predictions}", f"--labels={root / labels}", f"--output={root / 'scores'}"]
    return run_command("vamcei_jax.evaluate", *flags, *more)

  return run


def metrics_of(root):
  return json.loads((root / "scores" / "metrics.json").read_text())


def test_scores_are_those_of_the_masks(root, evaluate):
  finished = evaluate("near", "labels", f"--images={root / 'labels'}", f"--against={root / 'far'}")
  assert finished.returncode == 0, finished.stderr
  assert "1 of 3 predictions have no label and are not scored" in finished.stdout
  content, near, far = metrics_of(root), scores_of(1), scores_of(3)
  assert_close(content["methods"]["near"]["patients"], near)
  assert_close(content["methods"]["far"]["patients"], far)
  comparison = content["comparison"]["tests"]["LV"]["dice"]
  assert comparison == pytest.approx(compare(near, far)["LV"]["dice"], rel=1e-4)
  assert comparison["median_difference"] > 0
  mean = np.mean([near[patient]["Myo"]["assd_mm"] for patient in near])
  row = next(line for line in finished.stdout.split("ASSD, mm")[1].splitlines() if line.startswith("near"))
  assert row.split()[1] == f"{mean:.2f}"
  assert f"Report and numbers of 2 patients: {root / 'scores'}" in finished.stdout
  assert sorted(path.name for path in (root / "scores").iterdir()) == ["metrics.csv", "metrics.json", "report.html"]


def test_an_unreadable_prediction_is_named_and_the_others_are_scored(root, evaluate):
  (root / "near" / "patient1_LGE.nii.gz").write_bytes(b"no NIfTI")
  finished = evaluate()
  assert finished.returncode == 1
  assert "error: " in finished.stderr
  assert "patient1_LGE.nii.gz: not a readable NIfTI file" in finished.stderr
  assert list(metrics_of(root)["methods"]["near"]["patients"]) == ["patient2_LGE"]
  assert "Report and numbers of 1 patient: " in finished.stdout


def test_an_unreadable_image_is_named_and_its_prediction_is_scored(root, evaluate):
  (root / "labels" / "patient1_LGE.nii.gz").write_bytes(b"no image")
  finished = evaluate("near", "labels", f"--images={root / 'labels'}", "--label_values=0,200,500,(600,700)")
  assert finished.returncode == 1
  assert finished.stderr.count("error: ") == 1
  assert "labels/patient1_LGE.nii.gz: not a readable NIfTI file" in finished.stderr
  assert len(metrics_of(root)["methods"]["near"]["patients"]) == 2


def test_single_files_are_scored_whatever_their_names_are(root, evaluate):
  label, image = (root / "labels" / f"patient1_LGE{ending}.nii.gz" for ending in ("_manual", ""))
  (root / "mask.nii.gz").write_bytes((root / "near" / "patient1_LGE.nii.gz").read_bytes())
  finished = evaluate("mask.nii.gz", label.relative_to(root), f"--images={image}", f"--against={label}")
  assert finished.returncode == 0, finished.stderr
  patients = metrics_of(root)["methods"]["mask.nii.gz"]["patients"]
  assert_close(patients, {"patient1_LGE": scores_of(1)["patient1_LGE"]})


def test_masks_of_two_label_conventions_are_scored_as_the_error_says(root, evaluate):
  write_predictions(root / "others", 1, (0, 1, 2, 3))
  error = error_of(evaluate("others"))
  assert "others/patient1_LGE.nii.gz: unknown label values 1, 2, 3; expected only 0, 200, 500, 600. " in error
  way_out = re.search(r"give all values of each class, as in (--label_values=\S+)\.$", error)[1]
  finished = evaluate("others", "labels", *shlex.split(way_out))
  assert finished.returncode == 0, finished.stderr
  assert_close(metrics_of(root)["methods"]["others"]["patients"], scores_of(1))


def test_wrong_input_is_named_in_one_line(root, evaluate):
  assert "nosuch: no such file or folder" in error_of(evaluate("nosuch"))
  assert "--against=: empty" in error_of(evaluate("near", "labels", "--against="))
  error = error_of(evaluate("near", "labels", "--label_values=0,200"))
  assert "--label_values=(0, 200): expected 4 different values" in error
  assert "expected 4 different values" in error_of(evaluate("near", "labels", "--label_values={0,200,500,600}"))
  assert "expected 4 different values" in error_of(evaluate("near", "labels", "--label_values=open('x')"))
  assert "config.json" in error_of(evaluate("near", "labels", f"--workdir={root}"))
  (root / "config.json").write_text('{"stages": ["vamcei"], "data": {"label_values": [0, 200, 500, 600]}}')
  (root / "metrics.jsonl").write_text("damaged\n")
  assert "metrics.jsonl: a damaged line" in error_of(evaluate("near", "labels", f"--workdir={root}"))
  assert not (root / "scores").exists()
  assert "a run, whose own report would be replaced" in error_of(evaluate("near", "labels", f"--output={root}"))


def test_label_values_that_are_given_come_before_those_of_the_run(tmp_path):
  (tmp_path / "config.json").write_text('{"stages": ["vamcei"], "data": {"label_values": [0, 1, 2, 3]}}')
  assert choose_label_values("0,200,500,600", tmp_path) == (0, 200, 500, 600)
  assert list(choose_label_values(None, tmp_path)) == [0, 1, 2, 3]
  assert choose_label_values(None, None) == (0, 200, 500, 600)


def test_a_run_and_its_predictions_score_the_same(run_command, tiny_run, tmp_path):
  """The masks that `predict` writes for the test patients of a run get the scores of the run from `evaluate`."""
  options = json.loads((tiny_run / "config.json").read_text())["data"]["options"]
  first = options["train"] + options["validation"]
  for index in range(first, first + options["test"]):
    name = f"patient{index}.nii.gz"
    patient = draw_patient(options["seed"], index, "lge")
    write_patient(patient, tmp_path / "images" / name, tmp_path / "labels" / name)
  for command, flags in {
    "predict": [f"--input={tmp_path / 'images'}", f"--output={tmp_path / 'masks'}"],
    "evaluate": [
      f"--predictions={tmp_path / 'masks'}",
      f"--labels={tmp_path / 'labels'}",
      f"--output={tmp_path / 'scores'}",
    ],
  }.items():
    finished = run_command(f"vamcei_jax.{command}", f"--workdir={tiny_run}", *flags)
    assert finished.returncode == 0, finished.stderr
  run = json.loads((tiny_run / "vamcei" / "metrics.json").read_text())["methods"]["vamcei"]
  assert_close(metrics_of(tmp_path)["methods"]["masks"]["patients"], run["patients"])
  assert '"steps": 8' in (tmp_path / "scores" / "report.html").read_text().replace("&#34;", '"')
