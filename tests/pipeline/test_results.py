"""What the report of a run says about the run: commit, device and training time."""

import json

import pytest

from vamcei_jax.pipeline.results import describe_circumstances, training_seconds

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
