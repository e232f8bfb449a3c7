"""Training: no recompilation, averaged parameters, nothing from target labels."""

import csv
import json
import signal
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import tiny_multistage
from tests.runs import assert_same, final_state
from vamcei_jax.data.loader import make_draw
from vamcei_jax.distributed import compile_steps
from vamcei_jax.methods.state import State
from vamcei_jax.pipeline import run as runs
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.stages import STAGES
from vamcei_jax.training.checkpoints import open_checkpoints, restore_networks
from vamcei_jax.training.log import open_log, read_log
from vamcei_jax.training.loop import train

SLOW_STAGES = [pytest.param(stage, marks=pytest.mark.slow) for stage in ("no_adaptation", "target_vamcei", "translate")]


def test_a_run_writes_its_log_scores_and_pictures(tiny_run):
  lines = read_log(tiny_run / "metrics.jsonl")
  adapted = [line for line in lines if line["stage"] == "vamcei"]
  assert [line["step"] for line in adapted if line["step"] % 2 == 0] == [2, 4, 6, 8]
  terms = {"step", "loss", "segmentation", "reconstruction", "prior_kl", "global_alignment", "prototypes"}
  assert all(terms | {"generator", "discriminator"} <= set(line) for line in adapted)
  assert {"dice", "dice_Myo", "dice_LV", "dice_RV"} <= set(adapted[-1])

  results = json.loads((tiny_run / "results.json").read_text())
  assert list(results["methods"]) == ["no_adaptation", "vamcei"]
  assert (results["split"], results["comparison"]["method"]) == ("test", "vamcei")
  for stage in ("no_adaptation", "vamcei"):
    metrics = json.loads((tiny_run / stage / "metrics.json").read_text())
    assert metrics == {"split": "test", "methods": {stage: results["methods"][stage]}}
    summary, patients = (results["methods"][stage][part] for part in ("summary", "patients"))
    by_patient = [scores["Myo"]["dice"] for scores in patients.values()]
    assert summary["Myo"]["dice"]["mean"] == pytest.approx(np.mean(by_patient))
    means = [summary[structure]["dice"]["mean"] for structure in ("Myo", "LV", "RV")]
    assert summary["mean"]["dice"]["mean"] == pytest.approx(np.mean(means))
    with (tiny_run / stage / "metrics.csv").open() as file:
      rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(by_patient)
    assert [float(row["dice"]) for row in rows if row["structure"] == "Myo"] == pytest.approx(by_patient, rel=1e-5)
    assert list((tiny_run / stage).glob("events.*"))
    pictures = sorted(picture.name for picture in (tiny_run / stage / "pictures").iterdir())
    assert pictures == ["000004.png", "000008.png"]
  assert (tiny_run / "overlays.png").stat().st_size > 10_000


def test_the_newest_checkpoints_are_kept(tiny_run):
  assert set(open_checkpoints(tiny_run / "vamcei" / "checkpoints", 2).all_steps()) == {6, 8}


@pytest.mark.parametrize("stage", ["distill", *SLOW_STAGES])
def test_one_compilation_serves_every_step(stage):
  config, method = resolve(tiny_multistage.get_config()).stages[stage], STAGES[stage].method
  image = jax.random.uniform(jax.random.key(0), (4, 32, 32))
  data = {"source": {"image": image, "label": (image > 0.5).astype("uint8")}, "target": {"image": image}}
  if stage == "distill":
    data["target"]["teacher"] = jax.nn.softmax(jax.random.normal(jax.random.key(1), (4, 32, 32, 4)))
  key = jax.random.key(0)
  state = jax.jit(lambda: method.init_state(config, key))()
  draw = make_draw(config)
  run = compile_steps(partial(method.make_step, config), draw, jax.devices()[:1], streamed=False)
  compiled = []
  listener = lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
  jax.monitoring.register_event_duration_secs_listener(listener)
  state, _ = run(state, data, key, 1)
  assert compiled
  compiled.clear()
  state, _ = run(state, data, key, 3)
  assert not compiled
  assert int(state.step) == 4


def test_a_resumed_log_drops_the_lines_of_steps_that_are_trained_again(tmp_path):
  lines = [("a", 2), ("a", 6), ("b", 2), ("b", 4), ("b", 6)]
  text = "".join(json.dumps({"stage": stage, "step": step}) + "\n" for stage, step in lines)
  (tmp_path / "metrics.jsonl").write_text(text + '{"stage": "b", "st')
  with open_log(tmp_path, "b", 4) as log:
    log(5, {"loss": 1.5}, None, 8)
  left = [(line["stage"], line["step"]) for line in read_log(tmp_path / "metrics.jsonl")]
  assert left == [("a", 2), ("a", 6), ("b", 2), ("b", 4), ("b", 5)]


class Slices:
  """Slices in memory in place of those on disk."""

  nbytes = 1

  def __init__(self, **maps):
    self.maps = maps

  def load(self):
    return self.maps


@pytest.fixture
def counted():
  """A method without a network: each step adds 1 to the parameter, and 10 to its average."""

  def init_state(config, key):
    scalar = lambda value: {"segmenter": {"x": jnp.float32(value)}}
    return State(
      step=jnp.zeros((), jnp.int32),
      key=key,
      params=scalar(0),
      opt_state={},
      ema_params=scalar(1000),
      learning_rates={},
      weights={},
      ramp=jnp.zeros(2),
    )

  def make_step(config, axis_name=None):
    def step(state, batch):
      add = lambda tree, value: jax.tree.map(lambda x: x + value, tree)
      metrics = {"loss": batch["target"]["image"].mean()}
      params, ema_params = add(state.params, 1.0), add(state.ema_params, 10.0)
      return state.replace(step=state.step + 1, params=params, ema_params=ema_params), metrics

    return step

  return SimpleNamespace(init_state=init_state, make_step=make_step)


def test_averaged_parameters_are_validated_and_the_score_chooses_no_checkpoint(counted, tiny_config, tmp_path):
  tiny_config.data.crop = tiny_config.data.size
  tiny_config.train.update(keep=1, steps=8, eval_every=2, checkpoint_every=2)
  config = resolve(tiny_config).stages["vamcei"]
  images = np.random.default_rng(0).uniform(size=(4, *config.data.size)).astype(np.float32)
  load = lambda: {"target": Slices(image=images)}
  validated = []

  def evaluate(networks, step):
    validated.append((step, networks))
    return {"dice": 1.0 if float(networks["segmenter"]["x"]) == 1040 else 0.5}

  networks = train(config, counted, jax.random.key(0), load, evaluate, tmp_path)
  assert validated == [(step, {"segmenter": {"x": 1000 + 10 * step}}) for step in (2, 4, 6, 8)]
  assert networks == {"segmenter": {"x": 1080}}
  folder = tmp_path / "vamcei" / "checkpoints"
  with open_checkpoints(folder, 1) as checkpoints:
    assert set(checkpoints.all_steps()) == {8}  # step 4 has the best score
  abstract = jax.eval_shape(lambda: counted.init_state(config, jax.random.key(0)))
  assert restore_networks(folder, abstract) == networks


def test_a_run_that_gets_a_signal_saves_the_step_also_where_no_checkpoint_is_due(counted, tiny_config, tmp_path):
  tiny_config.data.crop = tiny_config.data.size
  tiny_config.train.update(steps=8, eval_every=3, checkpoint_every=4)
  config = resolve(tiny_config).stages["vamcei"]
  load = lambda: {"target": Slices(image=np.zeros((4, *config.data.size), np.float32))}

  def evaluate(networks, step):
    signal.raise_signal(signal.SIGTERM)
    return {}

  with pytest.raises(SystemExit):
    train(config, counted, jax.random.key(0), load, evaluate, tmp_path)
  with open_checkpoints(tmp_path / "vamcei" / "checkpoints", 2) as checkpoints:
    assert set(checkpoints.all_steps()) == {3}


def test_a_stopped_run_that_reads_from_disk_ends_with_the_parameters_of_an_uninterrupted_one(
  tiny_config, tmp_path, monkeypatch, capsys, without_pictures
):
  tiny_config.stages = ("no_adaptation",)
  tiny_config.data.resident = 0.0
  tiny_config.train.update(steps=7, eval_every=5)
  expected = runs.run(tiny_config, tmp_path / "uninterrupted")
  assert "no_adaptation: slices are read from disk" in capsys.readouterr().out

  with monkeypatch.context() as patch:
    patch.setattr(runs, "make_evaluator", lambda *_: Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      runs.run(tiny_config, tmp_path / "stopped")
  assert set(open_checkpoints(tmp_path / "stopped" / "no_adaptation" / "checkpoints", 2).all_steps()) == {2, 4}
  capsys.readouterr()
  results = runs.run(tiny_config, tmp_path / "stopped")
  assert "no_adaptation: resumes at step 4 of 7" in capsys.readouterr().out
  assert_same(*(final_state(tmp_path / name, "no_adaptation") for name in ("stopped", "uninterrupted")))
  assert results == expected
  losses = lambda name: {line["step"]: line["loss"] for line in read_log(tmp_path / name / "metrics.jsonl")}
  assert losses("stopped") == losses("uninterrupted")
