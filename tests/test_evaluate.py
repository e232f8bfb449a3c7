"""`evaluate` as a user meets it: its numbers are those of the masks, and what it cannot use is named."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from tests.datasets.trees import draw
from tests.test_command_lines import error_of
from vamcei_jax.data.labels import LABEL_VALUES
from vamcei_jax.data.nifti import write_volume
from vamcei_jax.evaluation.metrics import measure
from vamcei_jax.evaluation.statistics import compare
from vamcei_jax.phantom.scanner import draw_patient, write_patient

PATIENTS = 3


def predicted(number, step):
  """A patient's truth, moved by some pixels along the rows."""
  return np.roll(draw(number).classes, step, axis=2)


def write_predictions(folder, step, values=LABEL_VALUES, ending=""):
  for number in range(1, PATIENTS + 1):
    classes = np.array(values)[predicted(number, step)]
    write_volume(folder / f"patient{number}_LGE{ending}.nii.gz", classes, draw(number).affine)


@pytest.fixture
def root(tmp_path):
  """labels: images, and masks of all but the last patient; near, far: predictions of all."""
  for number in range(1, PATIENTS + 1):
    stem = tmp_path / "labels" / f"patient{number}_LGE"
    write_patient(draw(number), f"{stem}.nii.gz", f"{stem}_manual.nii.gz" if number < PATIENTS else None)
  for name, step in (("near", 1), ("far", 3)):
    (tmp_path / name).mkdir()
    write_predictions(tmp_path / name, step)
  return tmp_path


@pytest.fixture
def evaluate(run_command, root):
  def run(predictions="near", labels="labels", *more):
    flags = [f"--predictions={root / predictions}", f"--labels={root / labels}", f"--output={root / 'scores'}"]
    return run_command("vamcei_jax.evaluate", *flags, *more)

  return run


def metrics_of(root):
  return json.loads((root / "scores" / "metrics.json").read_text())


def spacing(number):
  return nib.affines.voxel_sizes(draw(number).affine)


def scores_of(step):
  """What the predictions that are moved by `step` pixels should score."""
  numbers = range(1, PATIENTS)
  return {f"patient{n}_LGE": measure(predicted(n, step), draw(n).classes, spacing(n)) for n in numbers}


def assert_same_scores(got, expected):
  assert list(got) == list(expected)
  for patient, structures in expected.items():
    for structure, values in structures.items():
      assert got[patient][structure] == pytest.approx(values, rel=1e-5)


def test_predictions_score_what_their_masks_are_worth(root, evaluate):
  finished = evaluate("near", "labels", f"--images={root / 'labels'}", f"--against={root / 'far'}")
  assert finished.returncode == 0, finished.stderr
  assert "1 of 3 predictions have no label and are not scored" in finished.stdout
  content, near, far = metrics_of(root), scores_of(1), scores_of(3)
  assert_same_scores(content["patients"], near)
  comparison = content["against"]["comparison"]["LV"]["dice"]
  assert comparison == pytest.approx(compare(near, far)["LV"]["dice"], rel=1e-4)
  assert comparison["median_difference"] > 0
  mean = np.mean([near[patient]["Myo"]["assd_mm"] for patient in near])
  row = next(line for line in finished.stdout.split("ASSD, mm")[1].splitlines() if line.startswith("near"))
  assert row.split()[1] == f"{mean:.2f}"
  assert sorted(path.name for path in (root / "scores").iterdir()) == ["metrics.csv", "metrics.json", "report.html"]


def test_orientation_names_and_label_values_make_no_difference(root, evaluate):
  """nnU-Net's layout: NAME_0000 against NAME; masks stored along other axes; several values of a class."""
  (root / "nnunet").mkdir()
  write_predictions(root / "nnunet", 1, (0, 4, 2, 3), "_0000")
  (root / "truth").mkdir()
  for number in range(1, PATIENTS):
    path = root / "labels" / f"patient{number}_LGE_manual.nii.gz"
    mask = nib.load(path)
    values = np.select([np.asarray(mask.dataobj) == value for value in LABEL_VALUES], (0, 1, 2, 3)).astype(np.uint8)
    turned = nib.Nifti1Image(values, mask.affine).as_reoriented([[2, 1], [0, -1], [1, -1]])
    turned.to_filename(root / "truth" / f"patient{number}_LGE.nii.gz")
  finished = evaluate("nnunet", "truth", "--label_values=(0,(1,4),2,3)")
  assert finished.returncode == 0, finished.stderr
  assert_same_scores(metrics_of(root)["patients"], scores_of(1))


def test_what_cannot_be_scored_is_named_and_the_rest_is_scored(root, evaluate):
  (root / "near" / "patient1_LGE.nii.gz").write_bytes(b"no NIfTI")
  finished = evaluate()
  assert finished.returncode == 1
  assert "error: " in finished.stderr
  assert "patient1_LGE.nii.gz: not a readable NIfTI file" in finished.stderr
  assert list(metrics_of(root)["patients"]) == ["patient2_LGE"]

  (root / "near" / "patient1_LGE.nii.gz").unlink()
  finished = evaluate()
  assert finished.returncode == 1
  assert "patient1_LGE_manual.nii.gz: no prediction of it in" in finished.stderr


def test_an_empty_prediction_counts_as_a_failure_and_is_named(root, evaluate):
  path = root / "near" / "patient1_LGE.nii.gz"
  mask = nib.load(path)
  nib.Nifti1Image(np.zeros(mask.shape, np.int16), mask.affine).to_filename(path)
  finished = evaluate()
  assert finished.returncode == 0, finished.stderr
  assert "Empty masks: 3, the first near, patient1_LGE, Myo, prediction" in finished.stdout
  scores = metrics_of(root)["patients"]["patient1_LGE"]["RV"]
  assert (scores["dice"], scores["volume_ml"]) == (0.0, 0.0)
  assert scores["hd95_mm"] == pytest.approx(np.linalg.norm(np.multiply(draw(1).classes.shape, spacing(1))))


def panels(root):
  """The panels' titles and pictures in the report, case after case."""
  pattern = r"<figcaption>(.+?)</figcaption>.+?src=\"data:image/webp;base64,(.+?)\""
  return re.findall(pattern, report_of(root), re.DOTALL)


def report_of(root):
  return (root / "scores" / "report.html").read_text()


def test_images_are_found_by_name_and_a_bad_one_is_named(root, evaluate):
  (root / "images").mkdir()
  for number in range(1, PATIENTS):
    shutil.copy(root / "labels" / f"patient{number}_LGE.nii.gz", root / "images" / f"patient{number}_LGE_0000.nii.gz")
  shutil.copytree(root / "near", root / "truth")  # a method may be called like a panel
  assert evaluate("truth", "labels").returncode == 0
  blank = panels(root)
  assert [title for title, _ in blank] == ["truth", "truth"] * (PATIENTS - 1)
  shown = evaluate("truth", "labels", f"--images={root / 'images'}")
  assert shown.returncode == 0, shown.stderr
  pictures = panels(root)
  assert [title for title, _ in pictures] == ["image", "truth", "truth"] * (PATIENTS - 1)
  assert len({picture for _, picture in [*blank, *pictures]}) == 5 * (PATIENTS - 1)

  (root / "images" / "patient1_LGE_0000.nii.gz").write_bytes(b"no image")
  finished = evaluate("truth", "labels", f"--images={root / 'images'}")
  assert finished.returncode == 1
  assert finished.stderr.count("error: ") == 1
  assert "images/patient1_LGE_0000.nii.gz: not a readable NIfTI file" in finished.stderr
  assert len(panels(root)) == len(pictures) - 1


def test_only_patients_of_both_are_tested(root, evaluate):
  (root / "far" / "patient2_LGE.nii.gz").unlink()
  finished = evaluate("near", "labels", f"--against={root / 'far'}")
  assert finished.returncode == 1
  assert "patient2_LGE_manual.nii.gz: no prediction of it in" in finished.stderr
  content = metrics_of(root)
  assert list(content["patients"]) == ["patient1_LGE"]
  expected = {step: scores_of(step)["patient1_LGE"]["Myo"]["dice"] for step in (1, 3)}
  assert content["Myo"]["dice"]["mean"] == pytest.approx(expected[1])
  assert content["against"]["Myo"]["dice"]["mean"] == pytest.approx(expected[3])
  assert content["against"]["comparison"]["Myo"]["dice"]["n"] == 1
  assert "Patients: 1." in report_of(root)

  (root / "near" / "patient1_LGE.nii.gz").unlink()
  assert "no patient in common" in error_of(evaluate("near", "labels", f"--against={root / 'far'}"))


def test_bad_input_is_one_line(root, evaluate):
  assert "nosuch: no such file or folder" in error_of(evaluate("nosuch"))
  assert "nosuch: no such file or folder" in error_of(evaluate("near", "nosuch"))
  assert "nosuch: no such file or folder" in error_of(evaluate("near", "labels", f"--images={root / 'nosuch'}"))
  assert "--against=: empty" in error_of(evaluate("near", "labels", "--against="))
  assert "the folder of --predictions itself" in error_of(evaluate("near", "labels", f"--against={root / 'near'}/."))
  assert "expected 4 different values" in error_of(evaluate("near", "labels", "--label_values={0,200,500,600}"))
  assert "expected 4 different values" in error_of(evaluate("near", "labels", "--label_values=open('x')"))
  assert "unknown label values" in error_of(evaluate("near", "labels", "--label_values=0,1,2,3"))
  assert "config.json" in error_of(evaluate("near", "labels", f"--workdir={root}"))
  (root / "others").mkdir()
  shutil.copy(root / "near" / "patient1_LGE.nii.gz", root / "others" / "someone.nii.gz")
  assert "of a label in" in (said := error_of(evaluate("others")))
  assert said.endswith("labels, as patient1_LGE; found someone.nii.gz. Rename them.")
  assert "no image bears the name of a label" in error_of(evaluate("near", "labels", f"--images={root / 'others'}"))
  (root / "config.json").write_text('{"stages": ["vamcei"], "data": {"label_values": [0, 200, 500, 600]}}')
  (root / "metrics.jsonl").write_text("damaged\n")
  assert "metrics.jsonl: a damaged line" in error_of(evaluate("near", "labels", f"--workdir={root}"))
  assert not (root / "scores").exists()
  assert "a run, whose own report would be replaced" in error_of(evaluate("near", "labels", f"--output={root}"))
  (root / "scores").touch()
  assert "scores: a file; choose another --output" in error_of(evaluate())


def test_a_run_and_its_predictions_score_the_same(run_command, tiny_run, tmp_path):
  """What `main` says of its test patients, `evaluate` says of what `predict` makes of their files."""
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
  run = json.loads((tiny_run / "vamcei" / "metrics.json").read_text())
  assert_same_scores(metrics_of(tmp_path)["patients"], run["patients"])
  assert '"steps": 8' in (tmp_path / "scores" / "report.html").read_text().replace("&#34;", '"')
