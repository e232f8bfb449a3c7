"""The stage adapt: what the teacher says of the files, what the student starts from, and what a source adds."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from ml_collections import ConfigDict
from nibabel.orientations import apply_orientation
from scipy import ndimage

import vamcei_jax
from tests.commands import error_of
from tests.configs import tiny, tiny_adapt
from tests.methods.batches import make_hearts
from tests.methods.steps import moved_state, program
from tests.runs import final_state
from vamcei_jax.config.files import read_stage_config
from vamcei_jax.data.loader import load_patients
from vamcei_jax.data.nifti import Volume, read_mask
from vamcei_jax.data.preprocess import foreground_centre, preprocess_probabilities, preprocess_settings
from vamcei_jax.data.scan import read_scan
from vamcei_jax.errors import InputError
from vamcei_jax.inference.export import export_weights
from vamcei_jax.inference.load import load_segmenter, restore_stage
from vamcei_jax.inference.weights import read_weights
from vamcei_jax.methods import distillation
from vamcei_jax.methods.state import start_from
from vamcei_jax.phantom.anatomy import Grid
from vamcei_jax.phantom.scanner import write_nnunet
from vamcei_jax.pipeline.domains import prepare_domain
from vamcei_jax.pipeline.preparation import prepare_run
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.same_patients import correct
from vamcei_jax.pipeline.teacher_predictions import (
  masks_of_same_patients,
  predict_target,
  predictions_folder,
  prepare_for_adapt,
  read_prediction,
  target_cases,
  teacher_maps,
  teacher_rows,
)

CONFIG = "--config=tests/configs/tiny_adapt.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Five unlabelled target volumes, two of which are validation and test, and three source volumes with masks."""
  folder = tmp_path_factory.mktemp("volumes")
  write_nnunet(folder, sources=3, targets=4, masks=2, grid=Grid(pixels=48, spacing=4.5, oversampling=1, sub_slices=1))
  return folder


@pytest.fixture(scope="module")
def adapt(run_command, prepared, tiny_run, root):
  """Adapts the network of the tiny run; returns the finished process."""

  def run(workdir, *flags):
    where = [f"--config.data.root={root}", f"--config.data.prepared_dir={prepared}", f"--workdir={workdir}"]
    return run_command("vamcei_jax.main", CONFIG, f"--config.init={tiny_run}", *where, *flags)

  return run


@pytest.fixture(scope="module")
def adapted(adapt, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "adapted"
  finished = adapt(workdir)
  assert finished.returncode == 0, finished.stderr
  assert "arrays start from" in finished.stdout
  return workdir


def test_the_teacher_says_of_a_file_what_prediction_says(adapted, tiny_run, root):
  config = read_stage_config(adapted / "adapt")
  target = prepare_for_adapt(config)["target"]
  segmenter = load_segmenter(tiny_run, tta=True)
  for file in sorted((root / "lge" / "imagesTr").iterdir()):
    prediction, canonical = segmenter(file), read_scan(file, "short_axis").orientation
    predicted, mask = (apply_orientation(maps, canonical) for maps in (prediction.probabilities, prediction.mask))
    said = read_prediction(predictions_folder(config.init, config, target), file.name.removesuffix("_0000.nii.gz"))
    near = ndimage.maximum_filter(mask > 0, (1, 3, 3))  # 5 mm are one pixel
    assert near.any()
    np.testing.assert_allclose(said[near], predicted[near], atol=0.01)
    np.testing.assert_array_equal(said[~near], np.broadcast_to([1, 0, 0, 0], said[~near].shape))


def test_the_results_have_the_teacher_and_the_student(adapted):
  results = json.loads((adapted / "results.json").read_text())
  assert list(results["methods"]) == ["teachers", "adapt"]
  assert results["split"] == "test"


def test_several_teachers_are_averaged(adapted, tmp_path):
  student = str(tmp_path / "student")
  export_weights(adapted, tmp_path / "student")
  config = read_stage_config(adapted / "adapt")
  one, other, both = (
    dataclasses.replace(config, teachers=teachers) for teachers in ((config.init,), (student,), (config.init, student))
  )
  cases = target_cases(prepare_domain(config.data, "target"))
  folders = [predict_target(each, config, prepare_domain(config.data, "target")) for each in both.teachers]
  data = prepare_for_adapt(both)["target"]
  centres = {patient.name: patient.centre for patient in load_patients(data, "train", labelled=False)}
  for case in cases:
    mean = (read_prediction(folders[0], case.name) + read_prediction(folders[1], case.name)) / 2
    np.testing.assert_allclose(centres[case.name], foreground_centre(mean[..., 1:].sum(-1) > 0.5), rtol=1e-6)
  first, second, mean = (
    teacher_maps(each, {"target": data}, ["lge_001"])[0].astype(np.float64) for each in (one, other, both)
  )
  assert np.abs(first - second).max() > 0.01
  np.testing.assert_allclose(mean, (first + second) / 2, atol=2e-3)


def test_teachers_smooth_along_the_stack_if_the_configuration_says_so(adapted, root):
  config = read_stage_config(adapted / "adapt")
  smooth = dataclasses.replace(config, distillation=dataclasses.replace(config.distillation, smooth=7.0))
  target = prepare_domain(config.data, "target")
  folder = predict_target(config.init, smooth, target)
  assert folder != predictions_folder(config.init, config, target)
  file = root / "lge" / "imagesTr" / "lge_001_0000.nii.gz"
  prediction, canonical = (
    load_segmenter(config.init, tta=True, smooth=7.0)(file),
    read_scan(file, "short_axis").orientation,
  )
  predicted, mask = (apply_orientation(maps, canonical) for maps in (prediction.probabilities, prediction.mask))
  np.testing.assert_allclose(read_prediction(folder, "lge_001")[mask > 0], predicted[mask > 0], atol=0.01)


def test_a_student_of_runs_alone_starts_from_random_parameters_and_can_be_exported(adapt, tiny_run, adapted, tmp_path):
  teachers = (str(tiny_run / "vamcei"), str(adapted))
  shutil.copytree(adapted, tmp_path / "vamcei")
  finished = adapt(
    tmp_path / "run", "--config.init=None", f"--config.teachers={(teachers[0], str(tmp_path / 'vamcei'))}"
  )
  assert finished.returncode == 0, finished.stderr
  assert "arrays start from" not in finished.stdout
  export_weights(tmp_path / "run", tmp_path / "weights")  # both teachers have the name "vamcei"
  config, _, _ = read_weights(tmp_path / "weights")
  assert (config.init, config.teachers) == (None, ("vamcei",))


def test_a_teacher_counts_once_and_is_no_stage_of_the_run_itself(adapt, adapted, tmp_path):
  twice = f"--config.teachers=('{adapted}','{adapted / 'adapt'}')"
  assert "the same weights twice" in error_of(adapt(tmp_path / "run", twice))
  assert "config.teachers=" in error_of(adapt(adapted, f"--config.teachers=('{adapted / 'adapt'}',)"))


def test_fields_are_centred_on_the_hearts_of_the_teacher(adapted):
  config = read_stage_config(adapted / "adapt")
  target = prepare_for_adapt(config)["target"]
  folder = predictions_folder(config.init, config, target)
  for patient in load_patients(target, "train", labelled=False):
    heart = read_prediction(folder, patient.name)[..., 1:].sum(-1) > 0.5
    np.testing.assert_allclose(patient.centre, foreground_centre(heart), rtol=1e-6)
  assert config.data.datasets == (target.info.full_name,)


def test_a_student_with_a_rate_of_0_is_its_teacher(adapt, adapted, tmp_path):
  """So it starts from the parameters of `config.init`."""
  export_weights(adapted, tmp_path / "weights")
  _, _, networks = read_weights(tmp_path / "weights")
  finished = adapt(tmp_path / "run", f"--config.init={tmp_path / 'weights'}", "--config.optimizer.rates.segmenter=0.0")
  assert finished.returncode == 0, finished.stderr
  jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / "run", "adapt").params, networks)


def test_an_interrupted_teacher_goes_on_and_a_finished_one_is_kept(adapt, adapted, tmp_path):
  config = read_stage_config(adapted / "adapt")
  folder = predictions_folder(config.init, config, prepare_for_adapt(config)["target"])
  kept, lost = folder / "lge_001.safetensors.gz", folder / "lge_002.safetensors.gz"
  before, content = kept.stat().st_mtime_ns, lost.read_bytes()
  lost.unlink()
  finished = adapt(tmp_path / "run")
  assert finished.returncode == 0, finished.stderr
  assert kept.stat().st_mtime_ns == before
  assert lost.read_bytes() == content


def test_a_damaged_prediction_is_named(adapt, adapted, tmp_path):
  config = read_stage_config(adapted / "adapt")
  file = predictions_folder(config.init, config, prepare_for_adapt(config)["target"]) / "lge_001.safetensors.gz"
  content = file.read_bytes()
  file.write_bytes(content[:100])
  try:
    assert f"{file}: damaged" in error_of(adapt(tmp_path / "run"))
  finally:
    file.write_bytes(content)


def test_exported_weights_look_at_a_field_around_the_heart(adapted, tmp_path):
  export_weights(adapted, tmp_path / "weights")
  _, inference, _ = read_weights(tmp_path / "weights")
  assert inference.extent_mm == (144.0, 144.0)
  assert load_segmenter(adapted).inference.extent_mm == (144.0, 144.0)


def test_exported_weights_have_no_path_of_the_machine_that_trained_them(adapted, tiny_run, tmp_path):
  export_weights(adapted, tmp_path / "weights")
  assert str(tiny_run.parent) not in (tmp_path / "weights" / "config.json").read_text()


def test_the_masks_of_a_source_are_learned_too(adapt, root, tmp_path):
  finished = adapt(tmp_path / "run", "--config.data.source=bssfp")
  assert finished.returncode == 0, finished.stderr
  assert len(read_stage_config(tmp_path / "run" / "adapt").data.datasets) == 2
  assert "cross_entropy" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_without_a_source_the_step_is_that_of_eq_16_alone():
  step, batch, state = program("distill").step, make_hearts(0), moved_state("distill")
  state = state.replace(weights=state.weights | {"segmentation": jnp.float32(0.0)})
  both, _ = step(state, batch)
  alone, metrics = step(state, {"target": batch["target"]})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), alone.params, both.params)
  assert set(metrics) == {"loss", "distillation", "gradient_segmenter", "skipped"}


def test_a_network_with_other_heads_takes_over_all_but_the_heads(tiny_run):
  config, networks = restore_stage(tiny_run / "vamcei")
  student = distillation.init_state(dataclasses.replace(config, name="adapt"), jax.random.key(1))
  state, taken = start_from(student, networks)
  own, trained = student.params["segmenter"], networks["segmenter"]
  assert taken == len(jax.tree.leaves({name: own[name] for name in own if name != "head"}))
  for name, arrays in state.params["segmenter"].items():
    jax.tree.map(np.testing.assert_array_equal, arrays, own[name] if name == "head" else trained[name])
  jax.tree.map(np.testing.assert_array_equal, state.params, state.ema_params)


def test_any_method_starts_from_weights(tiny_run, run_command, prepared, tmp_path):
  flags = ["--config=tests/configs/tiny.py", f"--config.init={tiny_run / 'no_adaptation'}"]
  flags += ["--config.stages=('no_adaptation',)", "--config.optimizer.rates.segmenter=0.0"]
  finished = run_command(
    "vamcei_jax.main", *flags, f"--config.data.prepared_dir={prepared}", f"--workdir={tmp_path / 'run'}"
  )
  assert finished.returncode == 0, finished.stderr
  trained = final_state(tiny_run, "no_adaptation").ema_params
  jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / "run", "no_adaptation").params, trained)
  count = len(jax.tree.leaves(trained))
  assert f"{count} of {count} arrays start from" in finished.stdout


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    ({"init": None}, "config.init=None: must be the folder of weights"),
    ({"teachers": ("a", "b", "a")}, "config.teachers=.*: must be different folders"),
    ({"teachers": "weights/lge"}, "config.teachers=.*: must be one or more values, each a text, or None"),
    ({"teachers": ("a",), "stages": ("vamcei",), "data.source": "bssfp"}, "only the stage adapt has teachers"),
    ({"stages": ("adapt", "no_adaptation")}, "adapt stands alone"),
    ({"data.spacing": None}, "config.data.spacing=None: must be the pixel size"),
    ({"stages": ("vamcei",)}, "config.data.source=None: must be a domain with masks"),
  ],
)
def test_what_does_not_fit_together_is_named(change, expected):
  config = tiny_adapt.get_config()
  with config.unlocked():
    config.update_from_flattened_dict({"init": "weights/mscmrseg_student"} | change)
  with pytest.raises(InputError, match=expected):
    resolve(config)


def test_a_dataset_without_files_is_refused(adapt, tmp_path):
  refused = error_of(adapt(tmp_path / "run", "--config.data.name=phantom", "--config.data.options={}"))
  assert "config.data.name=phantom: must be a dataset of files, such as folder, for adapt" in refused


def test_weights_that_fit_no_network_are_refused(adapt, tmp_path):
  refused = error_of(adapt(tmp_path / "run", "--config.model.widths=(6, 10)"))
  assert "no kernel of it fits adapt; set config.model as it has it" in refused


def test_weights_that_do_not_fit_a_later_stage_are_refused_before_the_first_one(adapted, prepared, tmp_path):
  config = tiny.get_config()
  config.init, config.data.prepared_dir = str(adapted), str(prepared)
  config.stage = ConfigDict({"vamcei": {"model": {"widths": (6, 10)}}})
  with pytest.raises(InputError, match="no kernel of it fits vamcei; set config.model as it has it"):
    vamcei_jax.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_weights_that_are_missing_are_named_before_any_work(adapt, prepared, tmp_path):
  before = sorted(prepared.rglob("*"))
  assert "nosuch/config.json: not found" in error_of(adapt(tmp_path / "run", "--config.init=nosuch"))
  assert sorted(prepared.rglob("*")) == before
  assert not (tmp_path / "run").exists()


def test_a_run_is_not_touched_by_weights_that_cannot_be_loaded(run_command, prepared, tiny_run, tmp_path):
  """Not even if its stages are to be trained again."""
  flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={prepared}", "--stages=no_adaptation"]
  shutil.copytree(tiny_run, tmp_path / "run")
  before = sorted((tmp_path / "run").rglob("*"))
  run = lambda init: run_command("vamcei_jax.main", *flags, f"--workdir={tmp_path / 'run'}", f"--config.init={init}")
  assert "nosuch/config.json: not found" in error_of(run("nosuch"))
  assert "use another --workdir" in error_of(run(tmp_path / "run" / "no_adaptation"))
  assert sorted((tmp_path / "run").rglob("*")) == before


def test_another_voxel_size_in_a_header_is_another_prediction(adapted, root, tmp_path):
  config = read_stage_config(adapted / "adapt")
  shutil.copytree(root, tmp_path / "volumes")
  file = tmp_path / "volumes" / "lge" / "imagesTr" / "lge_003_0000.nii.gz"
  elsewhere = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(tmp_path / "volumes")))
  folder = lambda config: predictions_folder(config.init, config, prepare_domain(config.data, "target"))
  assert folder(elsewhere) == folder(config)
  image = nib.load(file)
  nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine * [[0.6, 0.6, 1, 1]]), file)
  assert folder(elsewhere) != folder(config)


def test_the_predictions_of_a_folder_that_is_named_by_its_path_are_kept_with_the_others(adapted, root):
  config = read_stage_config(adapted / "adapt")
  by_path = dataclasses.replace(config, data=dataclasses.replace(config.data, target=str(root / "lge")))
  folder = lambda config: predictions_folder(config.init, config, prepare_domain(config.data, "target"))
  assert folder(by_path) == folder(config)


@pytest.fixture
def with_cine(adapted, root, tmp_path):
  """The configuration of the adaptation with a folder cine: two target patients in another contrast, with masks.

  The masks are those of the teacher, whose hearts have another size than the true ones.
  """
  shutil.copytree(root / "lge", tmp_path / "lge")
  config = read_stage_config(adapted / "adapt")
  teacher = load_segmenter(config.init, tta=True)
  for name in ("lge_001", "lge_002"):
    volume = nib.load(root / "lge" / "imagesTr" / f"{name}_0000.nii.gz")
    (tmp_path / "cine" / "imagesTr").mkdir(parents=True, exist_ok=True)
    cine = nib.Nifti1Image(np.sqrt(np.abs(volume.get_fdata())), volume.affine)
    nib.save(cine, tmp_path / "cine" / "imagesTr" / f"{name}_0000.nii.gz")
    (tmp_path / "cine" / "labelsTr").mkdir(exist_ok=True)
    found = np.searchsorted((0, 200, 500, 600), teacher(root / "lge" / "imagesTr" / f"{name}_0000.nii.gz").mask)
    nib.save(nib.Nifti1Image(found.astype(np.uint8), volume.affine), tmp_path / "cine" / "labelsTr" / f"{name}.nii.gz")
  return dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(tmp_path), same_patients="cine"))


def test_masks_of_the_same_patients_correct_the_predictions(with_cine, capsys):
  datasets = prepare_for_adapt(with_cine)
  corrected = teacher_maps(with_cine, datasets, ["lge_001", "lge_003"])
  as_predicted = teacher_maps(with_cine, {"target": datasets["target"]}, ["lge_001", "lge_003"])
  assert "cine: masks correct the predictions for 1 of 2 volumes" in capsys.readouterr().out
  mask = Path(with_cine.data.root, "cine", "labelsTr", "lge_001.nii.gz")
  volume = read_mask(mask, with_cine.data.label_values)
  folder = predictions_folder(with_cine.init, with_cine, datasets["target"])
  prediction = Volume(read_prediction(folder, "lge_001"), volume.affine)
  probs, _ = correct(prediction, volume)
  centre = foreground_centre(prediction.voxels[..., 1:].sum(-1) > 0.5)
  expected = preprocess_probabilities(probs, volume.spacing, preprocess_settings(with_cine.data), centre)
  np.testing.assert_allclose(corrected[0], expected, atol=1e-3)
  assert np.abs(corrected[0] - as_predicted[0]).max() > 0.01
  np.testing.assert_array_equal(corrected[1], as_predicted[1])


def test_the_results_have_the_teachers_before_and_after_the_correction(with_cine):
  datasets, patients = prepare_for_adapt(with_cine), ["lge_001"]
  rows = teacher_rows(with_cine, datasets, patients)
  assert list(rows) == ["teachers", "corrected_teachers"]
  np.testing.assert_array_equal(rows["corrected_teachers"], teacher_maps(with_cine, datasets, patients))
  np.testing.assert_array_equal(rows["teachers"], teacher_maps(with_cine, {"target": datasets["target"]}, patients))
  assert np.abs(rows["teachers"][0] - rows["corrected_teachers"][0]).max() > 0.01


def test_masks_whose_headers_have_lost_the_directions_are_not_used(with_cine, capsys):
  for file in Path(with_cine.data.root, "cine").glob("*/*.nii.gz"):
    volume = nib.load(file)
    volume.header.set_sform(None, 0)
    volume.header.set_qform(None, 0)
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj), None, volume.header), file)
  teacher_maps(with_cine, prepare_for_adapt(with_cine), ["lge_001"])
  printed = capsys.readouterr().out
  assert "same_patients: headers without the directions" in printed
  assert "their masks are not used" in printed
  assert "cine: masks correct the predictions for 0 of 1 volumes" in printed


def test_masks_of_the_targets_own_images_are_an_error(with_cine):
  for file in Path(with_cine.data.root, "cine", "imagesTr").iterdir():
    shutil.copy(Path(with_cine.data.root, "lge", "imagesTr", file.name), file)
  with pytest.raises(InputError, match=r"the same image as .* in config.data.same_patients and target"):
    prepare_for_adapt(with_cine)


def test_prepare_leaves_out_masks_of_the_same_patients_that_cannot_be_used(with_cine, tmp_path, capsys):
  (tmp_path / "cine" / "labelsTr" / "lge_002.nii.gz").write_bytes(b"damaged")
  with pytest.raises(InputError, match=r"vamcei_jax\.prepare"):
    prepare_for_adapt(with_cine)
  config = tiny_adapt.get_config()
  config.init, config.data.root, config.data.prepared_dir = with_cine.init, str(tmp_path), with_cine.data.prepared_dir
  config.data.same_patients = "cine"
  assert not prepare_run(config)
  assert "same_patients: folder/cine" in capsys.readouterr().out
  assert masks_of_same_patients(prepare_for_adapt(with_cine)).keys() == {"lge_001"}


def test_patients_without_a_common_name_are_an_error(adapted, root):
  config = read_stage_config(adapted / "adapt")
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, same_patients="bssfp"))
  with pytest.raises(InputError, match=r"bssfp_001.*lge_001.*no name in common"):
    prepare_for_adapt(config)
