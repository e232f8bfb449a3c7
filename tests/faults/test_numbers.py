"""Steps that are not finite: how they are counted and averaged, and how a run stops after too many of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands import error_of
from tests.runs import assert_same
from vamcei_jax.config.files import read_stage_config
from vamcei_jax.errors import InputError
from vamcei_jax.methods import supervised
from vamcei_jax.pipeline.run import run
from vamcei_jax.training.checkpoints import open_checkpoints, restore_newest
from vamcei_jax.training.loop import mean_metrics, stop_if_stuck

TERMS = ("cross_entropy", "dice_loss", "gradient_segmenter", "loss", "segmentation")
LOSSES = st.sampled_from([0.5, -2.0, 3e38, np.nan, np.inf, -np.inf])


@st.composite
def steps(draw):
  """Metrics of some steps; a skipped one has some that are not finite."""
  skipped = draw(st.lists(st.booleans(), min_size=1, max_size=40))
  finite, broken = st.floats(-100, 100), LOSSES.filter(lambda value: not np.isfinite(value))
  values = {name: [] for name in ("loss", "cycle", "gradient")}
  for bad in skipped:
    spoilt = draw(st.sampled_from(sorted(values)))
    for name, column in values.items():
      column.append(draw((broken if name == spoilt else LOSSES) if bad else finite))
  return {"skipped": np.float32(skipped), **{name: np.float32(column) for name, column in values.items()}}


@settings(max_examples=300)
@given(values=steps(), before=st.integers(0, 5), most=st.integers(1, 12))
def test_a_run_stops_after_max_bad_steps_in_a_row_and_names_the_terms_that_were_not_finite(values, before, most):
  """Compared with a loop over the steps, some of which came before the last line of the log."""
  before = min(before, most - 1)
  row, stops_at = before, None
  for number, skipped in enumerate(values["skipped"]):
    row = row + 1 if skipped else 0
    if row == most and stops_at is None:
      stops_at = number
  if stops_at is None:
    assert stop_if_stuck(values, before, most, "vamcei") == row
    return
  bad = [name for name in ("loss", "cycle", "gradient") if not np.isfinite(values[name][stops_at])]
  with pytest.raises(InputError) as stopped:
    stop_if_stuck(values, before, most, "vamcei")
  error = f"vamcei: {most} steps in a row were skipped because of non-finite {', '.join(bad)}; "
  assert str(stopped.value).startswith(error)


@settings(max_examples=100)
@given(values=steps(), cut=st.integers(1, 40), most=st.integers(1, 12))
def test_the_count_does_not_depend_on_the_lines_of_the_log(values, cut, most):
  def outcome(*parts):
    bad = 0
    try:
      for part in parts:
        bad = stop_if_stuck(part, bad, most, "vamcei")
    except InputError as error:
      return str(error)
    return bad

  first, second = ({name: column[part] for name, column in values.items()} for part in (slice(cut), slice(cut, None)))
  assert outcome(first, second) == outcome(values)


@settings(max_examples=300)
@given(values=steps())
def test_means_are_of_the_steps_that_were_not_skipped(values):
  taken = [number for number, skipped in enumerate(values["skipped"]) if not skipped]
  means = mean_metrics(values)
  for name in ("loss", "cycle"):
    if taken:
      expected = sum(float(values[name][number]) for number in taken) / len(taken)
      np.testing.assert_allclose(means[name], expected, rtol=1e-4, atol=1e-4)
    else:
      assert np.isnan(means[name])
  assert means.get("skipped", 0) == len(values["skipped"]) - len(taken)
  assert ("skipped" in means) == (len(taken) < len(values["skipped"]))


def states(workdir):
  """The steps of the checkpoints of no_adaptation, and the newest state."""
  config = read_stage_config(workdir / "no_adaptation")
  abstract = jax.eval_shape(lambda: supervised.init_state(config, jax.random.key(0)))
  with open_checkpoints(workdir / "no_adaptation" / "checkpoints", 2) as manager:
    saved = sorted(manager.all_steps())
    newest, damaged = restore_newest(manager, abstract)
  assert not damaged
  assert int(newest.step) == saved[-1]
  plain = jax.tree.leaves((newest.params, newest.opt_state, newest.ema_params))
  assert all(np.isfinite(leaf).all() for leaf in map(np.asarray, plain))
  return saved, newest


@pytest.mark.slow
def test_a_run_with_broken_images_stops_and_keeps_the_state_before_them(tiny_config, tmp_path, monkeypatch):
  """Images are NaN from step 4 on."""
  original = supervised.make_step

  def make_step(config, axis_name=None):
    step = original(config, axis_name)
    spoil = lambda state, image: jnp.where(state.step >= 4, jnp.nan, image)
    return lambda state, batch: step(
      state, {"source": batch["source"] | {"image": spoil(state, batch["source"]["image"])}}
    )

  monkeypatch.setattr(supervised, "make_step", make_step)
  tiny_config.stages = ("no_adaptation",)
  tiny_config.optimizer.schedule = "exponential"  # the first steps are the same, however many follow
  tiny_config.train.update(max_bad_steps=3, steps=4)
  run(tiny_config, tmp_path / "uninterrupted")
  tiny_config.train.steps = 8
  reason = f"no_adaptation: 3 steps in a row were skipped because of non-finite {', '.join(TERMS)};"
  with pytest.raises(InputError, match=reason):
    run(tiny_config, tmp_path / "broken")
  assert not (tmp_path / "broken" / "results.json").exists()
  saved, newest = states(tmp_path / "broken")
  assert saved[-1] == 6
  _, uninterrupted = states(tmp_path / "uninterrupted")
  assert_same(newest.replace(step=uninterrupted.step), uninterrupted)


@pytest.mark.slow
def test_a_command_whose_losses_overflow_ends_in_one_line_and_leaves_no_nan(run_command, prepared, tmp_path):
  flags = ["--config=tests/configs/tiny.py", f"--config.data.prepared_dir={prepared}", f"--workdir={tmp_path}"]
  heavy = ["--config.loss.weights.segmentation=3e38", "--config.train.max_bad_steps=3"]
  error = error_of(run_command("vamcei_jax.main", *flags, *heavy))
  assert "no_adaptation: 3 steps in a row were skipped because of non-finite gradient_segmenter, loss;" in error
  saved, newest = states(tmp_path)
  assert saved == [2]
  assert_same(newest.params, newest.ema_params)  # as they were at the beginning
