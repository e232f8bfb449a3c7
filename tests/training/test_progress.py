"""The printed line of a logged step, and the time that is left."""

import itertools
from types import SimpleNamespace

import pytest

from vamcei_jax.training import log as log_module
from vamcei_jax.training.log import METRICS_FILE, open_log, read_log
from vamcei_jax.training.progress import WIDTH, Workload, format_duration, progress_line, seconds_left

EXTREMES = (0.0, -1.0, 1e-300, -1.2345e300, float("nan"), float("inf"))


def test_the_line_of_a_step():
  line = progress_line("vamcei", 120, 350, loss=0.4123, dice=0.65249, rate=2.3149, left=754)
  assert line == "vamcei   120/350  loss 0.412  validation Dice 0.652  2.31 steps/s  run ends in 13 min"
  assert progress_line("translate", 1, 800, loss=12.0) == "translate     1/800  loss 12.0  validation Dice –"


@pytest.mark.parametrize("stage", ["a", "no_adaptation", "a_stage_with_a_name_" * 10])
def test_a_line_has_a_hundred_characters_at_most(stage):
  values = itertools.product((0, 11730, 10**15), EXTREMES, (*EXTREMES, None), (1e-9, 3.0, 1e12), (None, 0.0, 1e10))
  for step, loss, dice, rate, left in values:
    line = progress_line(stage, step, 10**15, loss=loss, dice=dice, rate=rate, left=left)
    assert len(line) <= WIDTH
    assert f"{step}/{10**15}" in line


def test_a_line_of_a_usual_run_keeps_the_name_of_its_stage():
  for stage in ("no_adaptation", "target_vamcei", "source_vamcei"):
    line = progress_line(stage, 11000, 11730, loss=0.0912, dice=0.652, rate=0.143, left=7500)
    assert line.startswith(f"{stage} 11000/11730")


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (0.2, "0 s"),
    (59.4, "59 s"),
    (59.6, "1 min"),
    (3569, "59 min"),
    (3571, "1 h 00 min"),
    (2 * 3600 + 300, "2 h 05 min"),
    (86399, "1 d 00 h"),
    (3 * 86400 + 4 * 3600, "3 d 04 h"),
  ],
)
def test_durations(seconds, text):
  assert format_duration(seconds) == text


def test_a_stage_is_estimated_by_its_own_speed_or_else_by_that_of_the_others():
  stages = [Workload("first", 10, cost=1.0), Workload("second", 100, cost=3.0), Workload("last", 7, cost=1.0)]
  assert seconds_left(stages, {}) is None
  assert seconds_left(stages, {"first": 2.0}) == pytest.approx(10 * 2 + 100 * 6 + 7 * 2)
  assert seconds_left(stages, {"first": 2.0, "second": 1.0}) == pytest.approx(10 * 2 + 100 + 7 * (2 + 1 / 3) / 2)
  later = [Workload("first", 10), Workload("second", 5, compilation=30.0)]
  assert seconds_left(later, {"first": 2.0}) == pytest.approx(10 * 2 + 30 + 5 * 2)
  finished = [Workload("first", 0), Workload("second", 100)]
  assert seconds_left(finished, {"first": 2.0}) == pytest.approx(200)


@pytest.fixture
def stages():
  return [Workload("first", 0), Workload("second", 8), Workload("third", 4, cost=2.0)]


def test_lines_show_the_end_of_the_run_and_the_latest_dice_and_files_get_the_rest(
  tmp_path, capsys, stages, monkeypatch
):
  clock = iter((10.0, 11.5, 12.5))  # with the evaluation at step 4, a step takes half a second
  monkeypatch.setattr(log_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
  with open_log(tmp_path, "second", 0, lambda: stages) as log:
    log(1, {"loss": 1.5, "prior_kl": 9.0}, None, 8)
    log(4, {"loss": 0.5, "dice": 0.25, "dice_Myo": 0.1}, 4.0, 8)
    log(6, {"loss": 0.5}, 4.0, 8)
  first, measured, last = capsys.readouterr().out.splitlines()
  assert first == "second     1/8  loss 1.50  validation Dice –"
  # 4 steps of half a second, and 4 of a second.
  assert measured == "second     4/8  loss 0.500  validation Dice 0.250  4.00 steps/s  run ends in 6 s"
  assert last == "second     6/8  loss 0.500  validation Dice 0.250  4.00 steps/s  run ends in 5 s"
  lines = read_log(tmp_path / METRICS_FILE)
  assert lines[1] == {
    "stage": "second", "step": 4, "loss": 0.5, "dice": 0.25, "dice_Myo": 0.1, "steps_per_second": 4.0
  }  # fmt: skip


def test_a_resumed_stage_knows_its_dice_and_speed(tmp_path, capsys, stages):
  with open_log(tmp_path, "second", 0, lambda: stages) as log:
    log(4, {"loss": 0.5, "dice": 0.25}, 2.0, 8)
  with open_log(tmp_path, "second", 4, lambda: stages) as log:
    log(5, {"loss": 0.5}, None, 8)
  resumed = capsys.readouterr().out.splitlines()[-1]
  assert resumed == "second     5/8  loss 0.500  validation Dice 0.250  run ends in 6 s"
