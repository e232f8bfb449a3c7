"""`evaluate` from Python: its scores are those of the masks, and it names the files that it cannot use."""

import csv
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from tests.datasets.trees import draw
from tests.evaluation.masks import PATIENTS, assert_close, scores_of, spacing, write_folders, write_predictions
from vamcei_jax.data.labels import LABEL_VALUES
from vamcei_jax.data.nifti import read_mask, write_volume
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.metrics import METRICS
from vamcei_jax.evaluation.scoring import check_output, evaluate, read_case, read_image
from vamcei_jax.evaluation.statistics import compare, summarise
from vamcei_jax.phantom.scanner import write_patient


@pytest.fixture
def root(tmp_path):
  return write_folders(tmp_path)


def test_a_table_has_scores_summary_and_comparison(root):
  near, far = scores_of(1), scores_of(3)
  table = evaluate(root / "near", str(root / "labels"), against=root / "far")
  assert table.failures == ()
  assert list(table.methods) == ["far", "near"]
  assert_close(table.scores, near)
  assert_close(table.methods["far"], far)
  assert_close(table.summary, summarise(near))
  assert_close(table.comparison, compare(near, far))
  lines = str(table).splitlines()
  summaries = {"far": summarise(far), "near": summarise(near)}
  for metric, digits in (("dice", 3), ("assd_mm", 2), ("hd95_mm", 2)):
    start = next(number for number, line in enumerate(lines) if line.startswith(METRICS[metric].title))
    rows = {line.split()[0]: line.split()[1:] for line in lines[start + 1 : start + 5]}
    assert list(rows) == ["far", "near", "difference", "Wilcoxon's"]
    for method, summary in summaries.items():
      assert rows[method][0] == f"{summary['Myo'][metric]['mean']:.{digits}f}"
      assert rows[method][2] == f"{summary['Myo'][metric]['std']:.{digits}f}"
      assert rows[method][-1] == f"{summary['mean'][metric]['mean']:.{digits}f}"
    assert rows["Wilcoxon's"][1] == f"{compare(near, far)['Myo'][metric]['p_value']:.2g}"
  note = "1 of 3 predictions have no label and are not scored"
  assert lines[-2:] == [f"{root / 'far'}: {note}", f"{root / 'near'}: {note}"]


def test_a_structure_that_no_label_has_is_not_scored(root):
  """Some hospitals draw no RV. It is in the predictions, and counts neither as 0 nor as 1."""
  for file in (root / "labels").iterdir():
    image = nib.load(file)
    labels = np.asarray(image.dataobj).copy()
    labels[labels == LABEL_VALUES[3]] = 0
    nib.Nifti1Image(labels, image.affine, image.header).to_filename(file)
  table = evaluate(root / "near", root / "labels", against=root / "far")
  whole = {patient: {name: scores[name] for name in ("Myo", "LV")} for patient, scores in scores_of(1).items()}
  assert_close(table.scores, whole)
  means = [np.mean([scores["Myo"]["dice"], scores["LV"]["dice"]]) for scores in whole.values()]
  assert table.summary["mean"]["dice"]["mean"] == pytest.approx(np.mean(means))
  assert str(table).splitlines()[0].split() == ["Dice", "Myo", "LV", "mean"]
  assert table.save(root / "scores") == ()
  report = (root / "scores" / "report.html").read_text()
  assert "LV volume, ml" in report
  assert "RV volume, ml" not in report


def test_a_table_is_saved_as_json_csv_and_report(root):
  table = evaluate(root / "near", root / "labels", against=root / "far")
  assert table.save(str(root / "scores"), about={"run": "runs/uda"}) == ()
  assert sorted(path.name for path in (root / "scores").iterdir()) == ["metrics.csv", "metrics.json", "report.html"]
  content = json.loads((root / "scores" / "metrics.json").read_text())
  origins = {"predictions": root / "near", "labels": root / "labels", "against": root / "far"}
  assert {role: content[role] for role in origins} == {role: str(folder) for role, folder in origins.items()}
  assert {name: method["patients"] for name, method in content["methods"].items()} == table.methods
  assert content["comparison"] == {"method": "near", "against": "far", "tests": table.comparison}
  with (root / "scores" / "metrics.csv").open() as file:
    rows = {(row["patient"], row["structure"]): float(row["dice"]) for row in csv.DictReader(file)}
  dice = {(name, part): scores["dice"] for name, parts in table.scores.items() for part, scores in parts.items()}
  assert rows == pytest.approx(dice, rel=1e-5)
  report = report_of(root)
  assert "<dd>runs/uda</dd>" in report
  assert "Evaluation of near" in report
  assert report.count('class="case"') == len(table.scores)


def test_a_single_mask_is_scored_by_a_single_label(root):
  table = evaluate(root / "near" / "patient2_LGE.nii.gz", root / "labels" / "patient2_LGE_manual.nii.gz")
  assert_close(table.scores, {"patient2_LGE": scores_of(1)["patient2_LGE"]})
  assert table.comparison == {}
  assert table.summary["LV"]["dice"]["std"] is None
  assert str(table).splitlines()[1].split()[2:4] == ["±", "–"]
  table = evaluate(
    {"b": root / "far" / "patient2_LGE.nii.gz"}, {"b": str(root / "labels" / "patient2_LGE_manual.nii.gz")}
  )
  assert_close(table.scores, {"b": scores_of(3)["patient2_LGE"]})


def test_orientation_names_and_label_values_make_no_difference(root):
  """nnU-Net's layout: NAME_0000 against NAME; masks stored along other axes; several values of a class."""
  write_predictions(root / "nnunet", 1, (0, 4, 2, 3), "_0000")
  (root / "truth").mkdir()
  for number in range(1, PATIENTS):
    path = root / "labels" / f"patient{number}_LGE_manual.nii.gz"
    mask = nib.load(path)
    values = np.select([np.asarray(mask.dataobj) == value for value in LABEL_VALUES], (0, 1, 2, 3)).astype(np.uint8)
    turned = nib.Nifti1Image(values, mask.affine).as_reoriented([[2, 1], [0, -1], [1, -1]])
    turned.to_filename(root / "truth" / f"patient{number}_LGE.nii.gz")
  table = evaluate(root / "nnunet", root / "truth", label_values=(0, (1, 4), 2, 3))
  assert table.failures == ()
  assert_close(table.scores, scores_of(1))


def test_what_cannot_be_scored_is_named_and_the_rest_is_scored(root):
  (root / "near" / "patient1_LGE.nii.gz").write_bytes(b"no NIfTI")
  table = evaluate(root / "near", root / "labels")
  (failure,) = table.failures
  assert "near/patient1_LGE.nii.gz: not a readable NIfTI file" in failure
  assert list(table.scores) == ["patient2_LGE"]
  (root / "near" / "patient1_LGE.nii.gz").unlink()
  (failure,) = evaluate(root / "near", root / "labels").failures
  assert "labels/patient1_LGE_manual.nii.gz: no prediction of it in" in failure
  (root / "near" / "patient2_LGE.nii.gz").write_bytes(b"no NIfTI")
  with pytest.raises(InputError, match="near/patient2_LGE.nii.gz: not a readable NIfTI file"):
    evaluate(root / "near", root / "labels")


def test_an_empty_prediction_counts_as_a_failure_and_is_named(root):
  path = root / "near" / "patient1_LGE.nii.gz"
  mask = nib.load(path)
  nib.Nifti1Image(np.zeros(mask.shape, np.int16), mask.affine).to_filename(path)
  table = evaluate(root / "near", root / "labels")
  assert table.failures == ()
  assert "Empty masks: 3, the first near, patient1_LGE, Myo, prediction" in str(table)
  scores = table.scores["patient1_LGE"]["RV"]
  assert (scores["dice"], scores["volume_ml"]) == (0.0, 0.0)
  assert scores["hd95_mm"] == pytest.approx(np.linalg.norm(np.multiply(draw(1).classes.shape, spacing(1))))


def panels(root):
  """The panels' titles and images in the report, case after case."""
  pattern = r"<figcaption>(.+?)</figcaption>.+?src=\"data:image/webp;base64,(.+?)\""
  return re.findall(pattern, report_of(root), re.DOTALL)


def report_of(root):
  return (root / "scores" / "report.html").read_text()


def test_images_are_found_by_name_and_a_bad_one_is_named(root):
  images = root / "images"
  images.mkdir()
  for number in range(1, PATIENTS):
    shutil.copy(root / "labels" / f"patient{number}_LGE.nii.gz", images / f"patient{number}_LGE_0000.nii.gz")
  shutil.copytree(root / "near", root / "truth")  # a method may have the name of a panel
  assert evaluate(root / "truth", root / "labels").save(root / "scores") == ()
  blank = panels(root)
  assert [title for title, _ in blank] == ["truth", "truth"] * (PATIENTS - 1)
  table = evaluate(root / "truth", root / "labels", images=images)
  assert table.save(root / "scores") == ()
  with_images = panels(root)
  assert [title for title, _ in with_images] == ["image", "truth", "truth"] * (PATIENTS - 1)
  assert len({image for _, image in [*blank, *with_images]}) == 5 * (PATIENTS - 1)

  (images / "patient1_LGE_0000.nii.gz").write_bytes(b"no image")
  (failure,) = table.save(root / "scores")
  assert "images/patient1_LGE_0000.nii.gz: not a readable NIfTI file" in failure
  assert len(panels(root)) == len(with_images) - 1

  (images / "patient1_LGE_0000.nii.gz").unlink()
  table = evaluate(root / "truth", root / "labels", images=images)
  assert table.failures == ()
  label = root / "labels" / "patient1_LGE_manual.nii.gz"
  assert table.save(root / "scores") == (f"{label}: no image of it in {images}; shown without",)


def test_only_patients_of_both_are_tested(root):
  (root / "far" / "patient2_LGE.nii.gz").unlink()
  table = evaluate(root / "near", root / "labels", against=root / "far")
  (failure,) = table.failures
  assert "patient2_LGE_manual.nii.gz: no prediction of it in" in failure
  assert {name: list(scores) for name, scores in table.methods.items()} == {
    "far": ["patient1_LGE"],
    "near": ["patient1_LGE"],
  }
  table.save(root / "scores")
  methods = json.loads((root / "scores" / "metrics.json").read_text())["methods"]
  for method, step in (("near", 1), ("far", 3)):
    mean = methods[method]["summary"]["Myo"]["dice"]["mean"]
    assert mean == pytest.approx(scores_of(step)["patient1_LGE"]["Myo"]["dice"])
  assert table.comparison["Myo"]["dice"]["n"] == 1
  assert "Patients: 1." in report_of(root)

  (root / "near" / "patient1_LGE.nii.gz").unlink()
  with pytest.raises(InputError, match="far: no patient in common with .*near"):
    evaluate(root / "near", root / "labels", against=root / "far")


def test_bad_input_is_refused(root):
  near, labels = root / "near", root / "labels"
  (root / "others").mkdir()
  shutil.copy(near / "patient1_LGE.nii.gz", root / "others" / "someone.nii.gz")
  refused = [
    ((root / "nosuch", labels), {}, "nosuch: no such file or folder"),
    ((near, root / "nosuch"), {}, "nosuch: no such file or folder"),
    ((near, labels), {"images": root / "nosuch"}, "nosuch: no such file or folder"),
    ((near, labels), {"against": f"{near}/."}, "the folder of --predictions itself"),
    ((near, labels), {"label_values": (0, 200)}, r"^label_values=\(0, 200\): expected 4 different values"),
    ((near, labels), {"label_values": (0, 1, 2, 3)}, "unknown label values"),
    ((root / "others", labels), {}, "of a label in .*labels, as patient1_LGE; found someone.nii.gz. Rename them.$"),
    ((near, labels), {"images": root / "others"}, "no image bears the name of a label"),
  ]
  for sources, options, expected in refused:
    with pytest.raises(InputError, match=expected):
      evaluate(*sources, **options)


def test_a_file_or_a_run_is_no_folder_for_results(root):
  table = evaluate(root / "near", root / "labels")
  (root / "run").mkdir()
  (root / "run" / "config.json").touch()
  with pytest.raises(InputError, match="a run, whose own report would be replaced"):
    table.save(root / "run")
  assert [path.name for path in (root / "run").iterdir()] == ["config.json"]
  (root / "scores").touch()
  with pytest.raises(InputError, match="scores: a file; choose another --output"):
    check_output(root / "scores")


def test_the_pixels_of_a_case_are_those_of_its_mask(tmp_path):
  affine = draw(1).affine.copy()
  affine[:3, 2] *= 2  # columns twice as far apart as rows
  for name in ("predicted.nii.gz", "truth.nii.gz"):
    write_volume(tmp_path / name, np.array(LABEL_VALUES)[draw(1).classes], affine)
  table = evaluate(tmp_path / "predicted.nii.gz", tmp_path / "truth.nii.gz")
  case, _ = read_case(table.pairs, *table.scores, table.label_values)
  assert case.pixel == pytest.approx((4.5, 9.0), rel=1e-5)


def test_an_image_must_lie_where_its_mask_does(tmp_path):
  """An image on another grid would appear below outlines of other places."""
  patient = draw(1)
  write_patient(patient, tmp_path / "image.nii", tmp_path / "mask.nii")
  truth = read_mask(tmp_path / "mask.nii", (0, 200, 500, 600))
  image = read_image(tmp_path / "image.nii", truth)
  assert (image.min(), image.max(), image.shape) == (0.0, 1.0, truth.voxels.shape)
  assert np.corrcoef(image.ravel(), patient.voxels.ravel())[0, 1] > 0.95
  moved = patient.affine + np.pad(np.full((3, 1), 30.0), ((0, 1), (3, 0)))
  write_volume(tmp_path / "moved.nii", patient.voxels, moved)
  with pytest.raises(InputError, match="moved.nii: lies 52 mm from its place"):
    read_image(tmp_path / "moved.nii", truth)
  write_volume(tmp_path / "small.nii", patient.voxels[1:], patient.affine)
  with pytest.raises(InputError, match="Resample it to the image's grid"):
    read_image(tmp_path / "small.nii", truth)
