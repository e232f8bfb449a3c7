"""`evaluate` from Python: its scores are those of the masks, and its files are those of the command line."""

import json

import nibabel as nib
import numpy as np
import pytest

from tests.datasets.trees import draw
from vamcei_jax.data.labels import LABEL_VALUES
from vamcei_jax.data.nifti import read_mask, write_volume
from vamcei_jax.data.phantom import write_patient
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.metrics import METRICS, measure
from vamcei_jax.evaluation.scoring import evaluate, read_image
from vamcei_jax.evaluation.statistics import compare, summarise

NAMES = {1: "a", 2: "b"}  # number of a patient -> name of its files


def moved(number, step):
  """A patient's true classes, moved by some pixels along the rows."""
  return np.roll(draw(number).classes, step, axis=2)


@pytest.fixture
def root(tmp_path):
  """labels: true masks; near, far: predictions, moved by 1 and by 3 pixels."""
  for folder, step in (("labels", 0), ("near", 1), ("far", 3)):
    (tmp_path / folder).mkdir()
    for number, name in NAMES.items():
      classes = np.array(LABEL_VALUES)[moved(number, step)]
      write_volume(tmp_path / folder / f"{name}.nii.gz", classes, draw(number).affine)
  return tmp_path


def expected(step):
  """What the predictions that are moved by `step` pixels should score."""
  spacing = lambda number: nib.affines.voxel_sizes(draw(number).affine)
  return {name: measure(moved(n, step), draw(n).classes, spacing(n)) for n, name in NAMES.items()}


def assert_close(got, wanted):
  """Of nested dictionaries of numbers; files hold affines as float32."""
  assert got.keys() == wanted.keys()
  for name, value in wanted.items():
    if isinstance(value, dict):
      assert_close(got[name], value)
    else:
      assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_a_table_has_scores_summary_and_comparison(root):
  near, far = expected(1), expected(3)
  table = evaluate(root / "near", str(root / "labels"), against=root / "far")
  assert table.failures == ()
  assert list(table.methods) == ["far", "near"]
  assert_close(table.scores, near)
  assert_close(table.methods["far"], far)
  assert_close(table.summary, summarise(near))
  assert_close(table.comparison, compare(near, far))
  lines = str(table).splitlines()
  means = {method: summarise(scores) for method, scores in (("far", far), ("near", near))}
  for metric, digits in (("dice", 3), ("assd_mm", 2), ("hd95_mm", 2)):
    start = next(number for number, line in enumerate(lines) if line.startswith(METRICS[metric].title))
    rows = {line.split()[0]: line.split()[1:] for line in lines[start + 1 : start + 5]}
    assert list(rows) == ["far", "near", "difference", "Wilcoxon's"]
    for method, summary in means.items():
      assert rows[method][0] == f"{summary['Myo'][metric]['mean']:.{digits}f}"
      assert rows[method][2] == f"{summary['Myo'][metric]['std']:.{digits}f}"
      assert rows[method][-1] == f"{summary['mean'][metric]['mean']:.{digits}f}"
    assert rows["Wilcoxon's"][1] == f"{compare(near, far)['Myo'][metric]['p_value']:.2g}"


def test_a_table_is_saved_as_json_csv_and_report(root):
  table = evaluate(root / "near", root / "labels", against=root / "far")
  assert table.save(str(root / "scores"), about={"run": "runs/uda"}) == ()
  assert sorted(path.name for path in (root / "scores").iterdir()) == ["metrics.csv", "metrics.json", "report.html"]
  content = json.loads((root / "scores" / "metrics.json").read_text())
  origins = {"predictions": root / "near", "labels": root / "labels", "against": root / "far"}
  assert {role: content[role] for role in origins} == {role: str(folder) for role, folder in origins.items()}
  assert {name: method["patients"] for name, method in content["methods"].items()} == table.methods
  assert content["comparison"] == {"method": "near", "against": "far", "tests": table.comparison}
  assert len((root / "scores" / "metrics.csv").read_text().splitlines()) == 1 + 3 * len(NAMES)
  report = (root / "scores" / "report.html").read_text()
  assert "<dd>runs/uda</dd>" in report
  assert "Evaluation of near" in report
  assert report.count('class="case"') == len(NAMES)


def test_a_single_mask_is_scored_by_a_single_label(root):
  table = evaluate(root / "near" / "b.nii.gz", root / "labels" / "b.nii.gz")
  assert_close(table.scores, {"b": expected(1)["b"]})
  assert table.comparison == {}
  assert table.summary["LV"]["dice"]["std"] is None
  assert str(table).splitlines()[1].split()[2:4] == ["±", "–"]
  exchanged = evaluate({"b": root / "far" / "b.nii.gz"}, {"b": str(root / "labels" / "b.nii.gz")})
  assert_close(exchanged.scores, {"b": expected(3)["b"]})


def test_files_that_cannot_be_used_are_failures(root):
  (root / "near" / "a.nii.gz").write_bytes(b"no NIfTI")
  (root / "labels" / "c.nii.gz").touch()
  table = evaluate(root / "near", root / "labels")
  assert list(table.scores) == ["b"]
  assert len(table.failures) == 2
  assert "near/a.nii.gz: not a readable NIfTI file" in table.failures[0]
  assert "labels/c.nii.gz: no prediction of it in" in table.failures[1]
  (root / "near" / "b.nii.gz").write_bytes(b"no NIfTI")
  with pytest.raises(InputError, match="near/a.nii.gz: not a readable NIfTI file"):
    evaluate(root / "near", root / "labels")


def test_label_values_and_the_output_folder_are_checked(root):
  with pytest.raises(InputError, match=r"label_values=\(0, 1\): expected 4 different values"):
    evaluate(root / "near", root / "labels", label_values=(0, 1))
  table = evaluate(root / "near", root / "labels")
  (root / "run").mkdir()
  (root / "run" / "config.json").touch()
  with pytest.raises(InputError, match="a run, whose own report would be replaced"):
    table.save(root / "run")
  assert [path.name for path in (root / "run").iterdir()] == ["config.json"]


def test_a_case_without_an_image_is_named(root):
  write_patient(draw(1), root / "images" / "a_0000.nii.gz", None)
  table = evaluate(root / "near", root / "labels", images=root / "images")
  assert table.failures == ()
  (failure,) = table.save(root / "scores")
  assert failure == f"{root / 'labels' / 'b.nii.gz'}: no image of it in {root / 'images'}; shown without"
  report = (root / "scores" / "report.html").read_text()
  assert report.count("<figcaption>image</figcaption>") == 1


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
