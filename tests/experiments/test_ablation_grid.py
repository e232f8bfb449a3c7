"""An ablation grid: each of its runs equals a run alone, and an interrupted grid is resumed."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest

from experiments.grid_training import STAGE, Run, run_grid, write_table
from tests.configs import tiny_ablation
from tests.runs import assert_same, final_state
from vamcei_jax.errors import InputError
from vamcei_jax.methods import vamcei
from vamcei_jax.pipeline.record import read_record
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.training.checkpoints import open_checkpoints, restore_newest
from vamcei_jax.training.log import read_log

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
  losses = [line["loss all, seed 0"] for line in read_log(grid / "metrics.jsonl")]
  expected = [line["loss"] for line in read_log(tiny_run / "metrics.jsonl") if line["stage"] == "vamcei"][1:]
  # The run alone has a log line of its first step, which the mean of its next line leaves out.
  np.testing.assert_allclose(losses[1:], expected[1:], rtol=1e-6)


def test_rows_weigh_the_terms_that_they_name(grid):
  states = final_states(grid)
  used = {row: {name for name, weight in states[row, 0].weights.items() if np.any(weight)} for row, _ in RUNS}
  bound = {"segmentation", "reconstruction", "prior_kl"}
  assert used == {
    "baseline": {"segmentation"},
    "+ global KL": bound | {"global_alignment"},
    "all": bound | {"global_alignment", "prototypes", "generator"},
  }


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


def test_one_seed_has_no_standard_deviation(tmp_path):
  write_table(["all"], {Run("all", 0): {"LV": 0.75, "RV": 0.5}}, tmp_path)
  assert "| all | 0.750 ± – | 0.500 ± – |" in (tmp_path / "ablation.md").read_text()
  assert json.loads((tmp_path / "ablation.json").read_text())["std"] == {"all": {"LV": None, "RV": None}}


def test_an_interrupted_grid_is_resumed(grid, run_command, config, tmp_path):
  workdir = tmp_path / "interrupted"
  shutil.copytree(grid, workdir)
  shutil.rmtree(workdir / "part0" / "checkpoints" / "8")
  (workdir / "ablation.md").unlink()
  flags = [f"--config.data.prepared_dir={config.data.prepared_dir}", f"--workdir={workdir}"]
  finished = run_command("experiments.ablation_grid", "--config=tests/configs/tiny_ablation.py", *flags)
  assert finished.returncode == 0, finished.stderr
  assert "part0: 6 of 6 runs, step 6 of 8" in finished.stdout
  assert_same(final_states(workdir), final_states(grid))
  assert read_record(workdir) == read_record(grid) is not None
  assert (workdir / "ablation.md").read_text() == (grid / "ablation.md").read_text()


def test_another_configuration_is_refused(grid, config):
  changed = config.copy_and_resolve_references()
  changed.train.batch_size = 2
  with pytest.raises(InputError, match="train.batch_size was 3, is 2; use another --workdir"):
    run_grid(changed, grid)


def test_another_grid_is_refused(grid, config):
  changed = config.copy_and_resolve_references()
  changed.grid.seeds = (0, 2)
  with pytest.raises(InputError, match=r"grid.seeds was \[0, 1\], is \[0, 2\]; use another --workdir"):
    run_grid(changed, grid)


def test_a_configuration_without_a_grid_is_refused(tiny_config, tmp_path):
  with pytest.raises(InputError, match="config.grid: no rows"):
    run_grid(tiny_config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_grid_of_other_stages_is_refused(config, tmp_path):
  changed = config.copy_and_resolve_references()
  changed.stages = ("no_adaptation", "vamcei")
  with pytest.raises(InputError, match="only stage of a grid"):
    run_grid(changed, tmp_path)
