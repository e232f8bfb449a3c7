"""A grid of ablations: its rows are runs of their own, and it goes on where it was broken off."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from vamcei_jax.checkpoints import open_checkpoints, restore_newest
from vamcei_jax.provenance import read_record

from tests.configs import tiny_ablation
from tests.runs import assert_same, final_state
from vamcei_jax.methods import vamcei
from vamcei_jax.training import read_log

RUNS = [(row, seed) for row, _ in tiny_ablation.get_config().grid.rows for seed in (0, 1)]


@pytest.fixture(scope="module")
def flags(prepared):
  config = "--config=tests/configs/tiny_ablation.py"
  return ["experiments.ablation_grid", config, f"--config.data.prepared_dir={prepared}"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory, run_command, flags):
  """The workdir of a finished grid."""
  workdir = tmp_path_factory.mktemp("grid") / "tiny"
  finished = run_command(*flags, f"--workdir={workdir}")
  assert finished.returncode == 0, finished.stderr
  return workdir


def final_states(workdir):
  config = tiny_ablation.get_config()
  abstract = jax.eval_shape(lambda: [vamcei.init_state(config, jax.random.key(0)) for _ in RUNS])
  with open_checkpoints(workdir / "part0" / "checkpoints", 2) as checkpoints:
    states, damaged = restore_newest(checkpoints, abstract)
  assert not damaged
  assert [int(state.step) for state in states] == [8] * len(RUNS)
  return dict(zip(RUNS, states, strict=True))


def test_a_row_is_the_run_alone(grid, tiny_run):
  states, alone = final_states(grid), final_state(tiny_run, "vamcei")
  assert_same(states["all", 0].params, alone.params)
  assert_same(states["all", 0].ema, alone.ema)
  losses = [line["loss all, seed 0"] for line in read_log(grid / "metrics.jsonl")]
  theirs = [line["loss"] for line in read_log(tiny_run / "metrics.jsonl") if line["stage"] == "vamcei"][1:]
  # The run alone logs its first step by itself, and the mean of the next interval without it.
  np.testing.assert_allclose(losses[1:], theirs[1:], rtol=1e-6)


def test_rows_keep_the_terms_that_they_say(grid):
  states = final_states(grid)
  kept = {row: {name for name, weight in states[row, 0].weights.items() if np.any(weight)} for row, _ in RUNS}
  bound = {"segmentation", "reconstruction", "prior_kl"}
  assert kept == {
    "baseline": {"segmentation"},
    "+ global KL": bound | {"global_alignment"},
    "all": bound | {"global_alignment", "prototypes", "generator"},
  }


def test_the_table_is_the_mean_over_seeds(grid):
  with (grid / "ablation.csv").open() as file:
    lines = list(csv.DictReader(file))
  assert [(line["row"], int(line["seed"])) for line in lines] == RUNS
  summary = json.loads((grid / "ablation.json").read_text())
  table = (grid / "ablation.md").read_text().splitlines()
  for number, row in enumerate(dict(RUNS)):
    values = [float(line["LV"]) for line in lines if line["row"] == row]
    assert summary["mean"][row]["LV"] == pytest.approx(np.mean(values), abs=1e-4)
    assert summary["std"][row]["LV"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    assert table[2 + number].startswith(f"| {row} |")
    assert f"{summary['mean'][row]['LV']:.3f} ± {summary['std'][row]['LV']:.3f}" in table[2 + number]
  assert (grid / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_a_broken_grid_goes_on(grid, run_command, flags, tmp_path):
  workdir = tmp_path / "broken"
  shutil.copytree(grid, workdir)
  shutil.rmtree(workdir / "part0" / "checkpoints" / "8")
  (workdir / "ablation.md").unlink()
  finished = run_command(*flags, f"--workdir={workdir}")
  assert finished.returncode == 0, finished.stderr
  assert "part0: 6 of 6 runs, step 6 of 8" in finished.stdout
  assert_same(final_states(workdir), final_states(grid))
  assert read_record(workdir) == read_record(grid) is not None
  assert (workdir / "ablation.md").read_text() == (grid / "ablation.md").read_text()


def test_another_configuration_is_refused(grid, run_command, flags):
  finished = run_command(*flags, f"--workdir={grid}", "--config.train.batch_size=3")
  assert finished.returncode == 2
  assert "train.batch_size was 2, is 3; use another --workdir" in finished.stderr
  assert finished.stderr.count("\n") == 1
