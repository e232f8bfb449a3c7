"""What the report of a run says about the run: commit, device and training time."""

import json

import pytest

from vamcei_jax.pipeline.results import describe_circumstances, describe_ranking, training_seconds

CPU = {"platform": "cpu", "kind": "cpu", "count": 1, "hosts": 1, "processor": "Processor X", "cores": 2}
GPU = {"platform": "gpu", "kind": "NVIDIA H200", "count": 8, "hosts": 2, "processor": "Processor X", "cores": 2}


def session(devices, commit, dirty=False):
  return {"versions": {}, "git": {"commit": commit, "dirty": dirty}, "devices": devices}


@pytest.mark.parametrize(
  ("sessions", "expected"),
  [
    ([session(CPU, None)], {"Device": "CPU, 2 cores, Processor X"}),
    (
      [session(CPU, "a" * 40), session(GPU, "a" * 40, dirty=True), session(GPU, "a" * 40, dirty=True)],
      {
        "Commit": f"{'a' * 12}; {'a' * 12}, with changes",
        "Device": "CPU, 2 cores, Processor X; 8 × NVIDIA H200 on 2 hosts",
      },
    ),
  ],
)
def test_each_commit_and_device_of_a_run_is_named_once(sessions, expected, tmp_path):
  record = {"config": {}, "seed": 0, "data": {}, "sessions": sessions, "stages": {}}
  (tmp_path / "run.json").write_text(json.dumps(record))
  assert describe_circumstances(tmp_path, []) == expected


def test_training_time_is_that_of_the_logged_steps(tmp_path):
  line = lambda stage, step, rate=None: {"stage": stage, "step": step} | ({"steps_per_second": rate} if rate else {})
  first = [line("a", 1), line("a", 21, 2.0), line("a", 61, 1.0)]  # 10 and 40 seconds
  resumed = [line("b", 1), line("b", 11, 1.0), line("b", 12), line("b", 32, 10.0)]  # 10 and 2 seconds
  assert training_seconds(first) == 50.0
  assert training_seconds(first + resumed) == 62.0
  expected = {"Training time": "1 min, without compilation and evaluation"}
  assert describe_circumstances(tmp_path, first + resumed) == expected
  assert describe_circumstances(tmp_path, first)["Training time"].startswith("50 s, without")


def test_the_expected_dice_is_ranked_against_the_dice_by_stage_and_over_the_runs_of_a_grid():
  def line(expected, dice, **of):
    return {"stage": "a", "step": 1, "expected_dice": expected, "dice": dice} | of

  rising = [line(expected, expected**2, step=step) for step, expected in enumerate((0.1, 0.5, 0.7, 0.9))]
  swapped = [line(expected, dice, stage="b", step=dice) for expected, dice in ((0.1, 2), (0.2, 1), (0.3, 3))]
  too_few = [line(0.5, 0.1, stage="c"), line(0.6, 0.2, stage="c", step=2), {"stage": "c", "step": 3, "dice": 0.3}]
  assert describe_ranking(rising + swapped + too_few) == "a 1.00 (4 evaluations), b 0.50 (3 evaluations)"
  first = [line(0.9, dice, row="x", seed=seed) for seed, dice in enumerate((0.1, 0.2, 0.3))]
  last = [line(1 - dice, dice, row="x", seed=seed, step=2) for seed, dice in enumerate((0.1, 0.2, 0.3))]
  assert describe_ranking(first + last) == "all rows -1.00 (3 runs)"
  assert describe_ranking([line(0.5, 0.5, step=step) for step in range(3)]) == ""
