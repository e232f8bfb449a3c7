"""An ablation grid: each of its runs equals a run alone, and an interrupted grid is resumed."""

import csv
import json
import shutil
import signal
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest

from configs import ablation
from experiments import grid_training
from experiments.grid_results import Run, draw_curves, format_table, over_seeds, validation_curves, write_grid_results
from experiments.grid_training import STAGE, Part, progress, run_grid
from tests.commands import error_of
from tests.configs import tiny_ablation
from tests.runs import assert_same, final_state
from vamcei_jax.config.schema import GridConfig, vary
from vamcei_jax.errors import InputError
from vamcei_jax.methods import vamcei
from vamcei_jax.methods.state import config_arrays
from vamcei_jax.pipeline.domains import prepare_datasets
from vamcei_jax.pipeline.record import read_record
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.results import describe_circumstances
from vamcei_jax.pipeline.stages import stage_key
from vamcei_jax.pipeline.teachers import load_stage
from vamcei_jax.training.checkpoints import open_checkpoints, restore_newest
from vamcei_jax.training.log import read_log
from vamcei_jax.training.loop import train

RUNS = [Run(row, seed) for row, _ in tiny_ablation.get_config().grid.rows for seed in (0, 1)]


@pytest.fixture(scope="module")
def config(prepared):
  config = tiny_ablation.get_config()
  config.data.prepared_dir = str(prepared)
  return config


@pytest.fixture(scope="module")
def grid(tmp_path_factory, config):
  """The workdir of a finished grid."""
  workdir = tmp_path_factory.mktemp("grid") / "tiny"
  run_grid(config, workdir)
  return workdir


def final_states(workdir):
  config = resolve(tiny_ablation.get_config()).stages[STAGE]
  abstract = jax.eval_shape(lambda: [vamcei.init_state(config, jax.random.key(0)) for _ in RUNS])
  with open_checkpoints(workdir / "part0" / "checkpoints", 2) as checkpoints:
    states, damaged = restore_newest(checkpoints, abstract)
  assert not damaged
  assert [int(state.step) for state in states] == [8] * len(RUNS)
  return dict(zip(RUNS, states, strict=True))


def test_a_run_of_the_grid_equals_the_run_alone(grid, tiny_run):
  states, alone = final_states(grid), final_state(tiny_run, "vamcei")
  assert_same(states["all", 0].params, alone.params)
  assert_same(states["all", 0].ema_params, alone.ema_params)
  lines = [line for line in read_log(grid / "metrics.jsonl") if (line["row"], line["seed"]) == ("all", 0)]
  expected = [line for line in read_log(tiny_run / "metrics.jsonl") if line["stage"] == "vamcei"][1:]
  # The run alone has a log line of its first step, which the mean of its next line leaves out.
  losses, expected_losses = ([line["loss"] for line in each] for each in (lines, expected))
  np.testing.assert_allclose(losses[1:], expected_losses[1:], rtol=1e-6)
  for name in ("dice", "expected_dice"):
    dices, expected_dices = ([line.get(name) for line in each] for each in (lines, expected))
    assert dices == pytest.approx(expected_dices)
    assert dices[0] is None
    assert None not in dices[1::2]  # every four steps, of log lines every two


@pytest.fixture
def late_config(tiny_config):
  """The stage of a run with the changes of the row "late"."""
  tiny_config.stages = (STAGE,)
  tiny_config.loss.ramp = tiny_ablation.LATE["loss.ramp"]
  tiny_config.loss.weights.generator = tiny_ablation.LATE["loss.weights.generator"]
  tiny_config.optimizer.rates.segmenter = tiny_ablation.LATE["optimizer.rates.segmenter"]
  return resolve(tiny_config).stages[STAGE]


def test_a_row_changes_the_arrays_of_its_state(grid, late_config):
  states = final_states(grid)
  arrays = config_arrays(late_config, networks=vamcei.NETWORKS, terms=vamcei.TERMS)
  for name, expected in arrays.items():
    assert_same(getattr(states["late", 1], name), expected)
  equal = jax.tree.map(np.array_equal, states["all", 1].ema_params, states["late", 1].ema_params)
  assert not any(jax.tree.leaves(equal))


@pytest.mark.slow
def test_a_row_equals_the_run_with_its_fields_changed(grid, late_config, tmp_path):
  config = late_config
  datasets = prepare_datasets(config.data, tmp_path)
  load = lambda: load_stage(config, datasets, {}, {})
  alone, states = train(config, vamcei, stage_key(1, STAGE), load, lambda *_: {}, tmp_path), final_states(grid)
  assert_same(states["late", 1].ema_params, alone)


def test_the_rows_of_the_ablation_use_the_terms_that_they_name():
  config = ablation.get_config()
  weights = {
    row: vary(resolve(config).stages[STAGE], changes).loss.weights for row, changes in resolve(config).grid.rows
  }
  used = {row: {name for name, weight in of_row.items() if np.any(weight)} for row, of_row in weights.items()}
  assert used == {row: {"segmentation", *terms} for row, terms in ablation.TERMS.items()}
  assert weights["all"] == config.loss.weights.to_dict()


def test_the_table_is_the_mean_over_seeds(grid, tiny_run):
  with (grid / "ablation.csv").open() as file:
    lines = list(csv.DictReader(file))
  assert [(line["row"], int(line["seed"])) for line in lines] == RUNS
  alone = json.loads((tiny_run / "results.json").read_text())["methods"]["vamcei"]["summary"]
  scores = dict(zip(RUNS, lines, strict=True))["all", 0]
  assert float(scores["LV"]) == pytest.approx(alone["LV"]["dice"]["mean"], abs=1e-4)
  summary = json.loads((grid / "ablation.json").read_text())
  table = (grid / "ablation.md").read_text().splitlines()
  for number, row in enumerate(dict(RUNS)):
    values = [float(line["LV"]) for line in lines if line["row"] == row]
    assert summary["mean"][row]["LV"] == pytest.approx(np.mean(values), abs=1e-4)
    assert summary["std"][row]["LV"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    assert table[2 + number].startswith(f"| {row} |")
    assert f"{summary['mean'][row]['LV']:.3f} ± {summary['std'][row]['LV']:.3f}" in table[2 + number]
  assert (grid / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_one_seed_has_no_standard_deviation():
  means, stds = over_seeds(["all"], {Run("all", 0): {"LV": 0.75, "RV": 0.5}})
  assert stds == {"all": {"LV": None, "RV": None}}
  assert "| all | 0.750 | 0.500 |" in format_table(means, stds)


def test_a_bar_in_the_name_of_a_row_begins_no_cell():
  assert "| a\\|b | 0.500 |" in format_table({"a|b": {"LV": 0.5}}, {"a|b": {"LV": None}})


def test_the_report_of_a_single_row_names_its_dice(tmp_path):
  grid, scores = GridConfig(rows=(("all", {}),)), {Run("all", 0): {"LV": 0.75, "mean": 0.5}}
  write_grid_results(grid, scores, "2 patients", {}, tmp_path)
  text = " ".join((tmp_path / "report.html").read_text().split())
  assert "<p>“all” has this mean Dice: 0.500.</p>" in text


def test_the_report_has_rows_changes_and_curves(grid):
  text = (grid / "report.html").read_text()
  means = json.loads((grid / "ablation.json").read_text())["mean"]
  assert all(f"{means[row]['mean']:.3f} ± " in text for row in means)
  assert "loss.ramp = (2, 4), optimizer.rates.segmenter = 0.001, loss.weights.generator = 0.2" in text
  assert text.count("data:image/png;base64,") == text.count("data:image/svg+xml;base64,") == 1
  curves = validation_curves(read_log(grid / "metrics.jsonl"))
  assert {row: [[step for step, _ in points] for points in runs] for row, runs in curves.items()} == {
    row: [[4, 8]] * 2 for row, _ in RUNS
  }
  texts = [element.text for element in ElementTree.fromstring(draw_curves(curves)).iter() if element.text]
  assert all(f" {row}" in texts for row in curves)
  assert all(f"<dt>{name}</dt><dd>{value}</dd>" in text for name, value in describe_circumstances(grid, []).items())


@pytest.mark.parametrize("row", ["all", "a row with a name that is far too long for a line of the terminal, " * 3])
def test_a_line_of_progress_has_at_most_100_characters(row):
  part = Part("part10", [Run("baseline", 0), Run(row, 0)], (), later=2)
  scores = [{"loss": 1.5, "dice": 0.25}, {"loss": 0.5, "dice": 0.75}]
  line = progress(part, scores, 10_000, 30_000, 12.3)
  assert line.startswith(f"part10 10000/30000  loss 1.00  validation Dice 0.250 to 0.750 ({row[:3]}")
  assert line.endswith("  12.3 steps/s  1 h 08 min left")  # 20,000 steps of this part, 30,000 of the next one
  assert len(line) == 100 if len(row) > 100 else len(line) < 100
  assert progress(part, [{"loss": 1.0}] * 2, 1, 9, None) == "part10     1/9  loss 1.00"


def test_an_interrupted_grid_is_resumed(grid, run_command, config, tmp_path):
  workdir = tmp_path / "interrupted"
  shutil.copytree(grid, workdir)
  shutil.rmtree(workdir / "part0" / "checkpoints" / "8")
  (workdir / "ablation.md").unlink()
  flags = [f"--config.data.prepared_dir={config.data.prepared_dir}", f"--workdir={workdir}"]
  finished = run_command("experiments.ablation_grid", "--config=tests/configs/tiny_ablation.py", *flags)
  assert finished.returncode == 0, finished.stderr
  assert "part0: 6 of 6 runs, step 6 of 8; compiling" in finished.stdout
  assert "part0     8/8  loss " in finished.stdout
  assert_same(final_states(workdir), final_states(grid))
  assert read_record(workdir) == read_record(grid) is not None
  assert (workdir / "ablation.md").read_text() == (grid / "ablation.md").read_text()
  assert (workdir / "metrics.jsonl").read_text() == (grid / "metrics.jsonl").read_text()


def test_a_signal_stops_a_grid_after_the_current_step(grid, config, tmp_path, monkeypatch, capsys):
  """A step of each run, not all steps up to the next line of the log."""
  compile_program = grid_training.compile_grid

  def interrupted(*arguments, **options):
    advance = compile_program(*arguments, **options)

    def once(*arguments):
      signal.raise_signal(signal.SIGTERM)
      return advance(*arguments)

    return once

  monkeypatch.setattr(grid_training, "compile_grid", interrupted)
  changed = config.copy_and_resolve_references()
  changed.train.update(log_every=8, eval_every=8, checkpoint_every=8)
  with pytest.raises(SystemExit, match="143"):
    run_grid(changed, tmp_path / "stopped")
  assert "part0 stopped at step 1, which is saved" in capsys.readouterr().err


def test_a_training_of_a_single_run_refuses_a_grid(run_command, tmp_path):
  flags = ["--config=tests/configs/tiny_ablation.py", f"--workdir={tmp_path / 'run'}"]
  assert "experiments.ablation_grid" in error_of(run_command("vamcei_jax.main", *flags))
  assert not (tmp_path / "run").exists()


def test_another_configuration_is_refused(grid, config):
  changed = config.copy_and_resolve_references()
  changed.train.batch_size = 2
  with pytest.raises(InputError, match="train.batch_size was 3, is 2; use another --workdir"):
    run_grid(changed, grid)


def test_another_grid_is_refused(grid, config):
  changed = config.copy_and_resolve_references()
  changed.grid.seeds = (0, 2)
  with pytest.raises(InputError, match=r"grid.seeds had \[0, 1\], has \[0, 2\]; use another --workdir"):
    run_grid(changed, grid)
  changed = config.copy_and_resolve_references()
  changed.grid.rows = (config.grid.rows[0], ("late", {"loss.ramp": (0, 4)}), config.grid.rows[2])
  with pytest.raises(InputError, match=r"grid.rows had \['late', {.*}\], has \['late', {'loss.ramp': \[0, 4\]}\]; use"):
    run_grid(changed, grid)


def test_rows_of_version_0_1_are_refused(grid, config, tmp_path):
  old = json.loads((grid / "config.json").read_text())
  old["grid"]["rows"] = [["baseline", []], ["all", ["reconstruction", "generator"]]]
  (tmp_path / "config.json").write_text(json.dumps(old))
  with pytest.raises(InputError, match=r"grid.rows had \['baseline', \[\]\], has \['baseline', {.*; use another --wor"):
    run_grid(config, tmp_path)
  changed = config.copy_and_resolve_references()
  changed.grid.rows = (("all", ("generator",)),)
  with pytest.raises(InputError, match=r"^config.grid.rows=.*\('generator',\).*must be .* a dictionary of the fields"):
    run_grid(changed, tmp_path)


def test_a_row_that_cannot_be_varied_is_refused_with_the_fields_that_can(config, tmp_path):
  changed = config.copy_and_resolve_references()
  changed.grid.rows = (("long", {"train.steps": 16}),)
  with pytest.raises(InputError) as error:
    run_grid(changed, tmp_path)
  assert str(error.value) == (
    "config.grid.rows: 'long' changes 'train.steps'; choose from loss.weights.(segmentation, reconstruction, prior_kl, "
    "global_alignment, prototypes, generator), loss.ramp, optimizer.rates.(segmenter, decoders, discriminator)"
  )
  assert not list(tmp_path.iterdir())


def test_a_configuration_without_a_grid_is_refused(tiny_config, tmp_path):
  with pytest.raises(InputError, match="config.grid: no rows"):
    run_grid(tiny_config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_grid_of_other_stages_is_refused(config, tmp_path):
  changed = config.copy_and_resolve_references()
  changed.stages = ("no_adaptation", "vamcei")
  with pytest.raises(InputError, match="only stage of a grid"):
    run_grid(changed, tmp_path)
