"""run.json records how a run was made; a run that is reproduced from it is compared bit for bit."""

import json
import re
import shutil
import subprocess
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from tests.commands import error_of
from tests.runs import final_state
from tests.test_command_lines import TINY
from vamcei_jax.config.files import read_config
from vamcei_jax.errors import InputError
from vamcei_jax.methods.state import digest
from vamcei_jax.pipeline import run as runs
from vamcei_jax.pipeline.record import git_state, read_record
from vamcei_jax.pipeline.reproduce import reproduce
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.training.checkpoints import open_checkpoints, save

STAGES = ("no_adaptation", "vamcei")


@pytest.fixture
def copy(tiny_run, tmp_path):
  """A copy of the tiny run, to be changed."""
  return shutil.copytree(tiny_run, tmp_path / "copy")


def edit(workdir, change):
  """Rewrites run.json as change(record) leaves it."""
  record = json.loads((workdir / "run.json").read_text())
  change(record)
  (workdir / "run.json").write_text(json.dumps(record))


def move_parameters(workdir, stage, by):
  """Rewrites the last checkpoint of a stage with other moving averages; returns their digest."""
  state = final_state(workdir, stage)
  state = state.replace(ema_params=jax.tree.map(lambda x: x + by, state.ema_params))
  with open_checkpoints(workdir / stage / "checkpoints", 2) as checkpoints:
    checkpoints.delete(8)
    save(checkpoints, state, 8)
  return digest(state.ema_params)


def test_a_run_records_its_configuration_data_versions_and_devices(tiny_run):
  record = json.loads((tiny_run / "run.json").read_text())
  assert record["config"] == json.loads((tiny_run / "config.json").read_text())
  assert record["seed"] == 0
  assert list(record["data"].values()) == read_config(tiny_run / "vamcei")["data"]["datasets"]
  assert record["stages"] == {stage: digest(final_state(tiny_run, stage).ema_params) for stage in STAGES}

  (session,) = record["sessions"]
  versions = session["versions"]
  assert (versions["jax"], versions["numpy"]) == (jax.__version__, np.__version__)
  assert {"python", "vamcei-jax", "jaxlib", "flax", "orbax-checkpoint", "tensorstore"} <= set(versions)
  device = jax.devices()[0]
  expected = {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count(), "hosts": 1}
  assert {name: session["devices"][name] for name in expected} == expected
  assert session["devices"]["cores"] >= 1


def test_the_commit_is_that_of_tracked_files(tmp_path):
  git = lambda *arguments: subprocess.run(
    ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True, capture_output=True
  )
  package, other = tmp_path / "package", tmp_path / ".venv" / "package"
  for folder in (package, other):
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
  assert git_state(package) == {"commit": None, "dirty": None}
  git("init")
  git("add", "package")
  git("commit", "--message=one")
  clean = git_state(package)
  assert len(clean["commit"]) == 40
  assert clean["dirty"] is False
  (tmp_path / "notes").write_text("not tracked")
  assert git_state(package) == clean
  (package / "__init__.py").write_text("changed")
  assert git_state(package) == {**clean, "dirty": True}
  # Installed in the checkout of something else.
  assert git_state(other) == {"commit": None, "dirty": None}


def test_a_reproduced_run_agrees_bit_for_bit_without_checkpoints(tiny_run, tmp_path, capsys, without_pictures):
  origin = tmp_path / "run"
  origin.mkdir()
  shutil.copy(tiny_run / "run.json", origin)
  assert reproduce(origin, tmp_path / "run-again")
  lines = capsys.readouterr().out.splitlines()
  compared = [line.startswith("versions, commit, devices and data are the same") for line in lines].index(True)
  assert compared < [line.startswith("no_adaptation: starts") for line in lines].index(True)
  assert lines[-2:] == [f"{stage}: parameters agree bit for bit" for stage in STAGES]
  assert read_record(tmp_path / "run-again") == read_record(tiny_run)
  assert [path.name for path in origin.iterdir()] == ["run.json"]


def test_other_parameters_are_found_and_differences_named(run_command, tiny_run, copy, tmp_path):
  moved = move_parameters(copy, "vamcei", 0.5)
  shutil.rmtree(copy / "no_adaptation")

  def change(record):
    record["stages"]["vamcei"] = moved
    record["data"]["target"] = "phantom/lge-other/1.0.0"
    session = record["sessions"][0]
    session["versions"].update(jax="0.9.0", gone="1.0")
    session["git"].update(commit="0" * 40, dirty=True)
    session["devices"]["cores"] = 96

  edit(copy, change)
  # The default workdir. Its stages are finished, so they are compared and not trained.
  shutil.copytree(tiny_run, tmp_path / "copy-again")
  again = run_command("vamcei_jax.main", f"--reproduce={copy}")
  assert again.returncode == 1, again.stderr
  lines = again.stdout.splitlines()
  assert f"versions.jax: 0.9.0 then, {jax.__version__} now" in lines
  assert "versions.gone: 1.0 then, not there now" in lines
  for start in ("data.target: phantom/lge-other/1.0.0 then", "devices.cores: 96 then", "git.commit: 000", "git: files"):
    assert any(line.startswith(start) for line in lines), start
  assert lines[-2:] == ["no_adaptation: parameters agree bit for bit", "vamcei: parameters differ by up to 0.5"]


def test_a_changed_checkpoint_and_a_changed_digest_are_found(tiny_run, copy, tmp_path, capsys):
  move_parameters(copy, "vamcei", 0.25)
  shutil.rmtree(copy / "no_adaptation" / "checkpoints")
  edit(copy, lambda record: record["stages"].update(no_adaptation="0" * 64))
  shutil.copytree(tiny_run, tmp_path / "again")
  assert not reproduce(copy, tmp_path / "again")
  first, second = capsys.readouterr().out.splitlines()[-2:]
  assert re.fullmatch("no_adaptation: parameters differ; without .*checkpoints it is not known by how much", first)
  assert "has other parameters than run.json records; the new ones differ by up to 0.25" in second


def test_a_resumed_run_keeps_the_record_of_its_first_session(copy, tiny_config, monkeypatch):
  edit(copy, lambda record: record["sessions"][0]["versions"].update(jax="0.9.0"))
  monkeypatch.setattr(runs, "train", Mock(side_effect=KeyboardInterrupt))  # the record is written before training

  def resume(*retrain):
    with pytest.raises(KeyboardInterrupt):
      runs.run(tiny_config, copy, retrain)
    record = read_record(copy)
    return [session["versions"]["jax"] for session in record["sessions"]], set(record["stages"])

  for _ in range(2):
    assert resume() == (["0.9.0", jax.__version__], set(STAGES))
  assert resume("vamcei") == (["0.9.0", jax.__version__], {"no_adaptation"})
  assert resume(*STAGES) == ([jax.__version__], set())


def test_a_run_of_an_earlier_version_is_reproduced_with_later_fields_at_their_defaults(copy, tmp_path, monkeypatch):
  edit(copy, lambda record: [record["config"]["augment"].pop(name) for name in ("gin", "ipa", "scar", "contraction")])
  edit(copy, lambda record: record["config"]["data"].pop("empty_slices"))
  edit(copy, lambda record: record["config"]["stage"].update(vamcei={"data": {"empty_slices": "none"}}))
  start = Mock(side_effect=SystemExit)
  monkeypatch.setattr("vamcei_jax.pipeline.reproduce.run", start)
  with pytest.raises(SystemExit):
    reproduce(copy, tmp_path / "again")
  stages = resolve(start.call_args.args[0]).stages
  assert not any(getattr(stages["vamcei"].augment, name) for name in ("gin", "ipa", "scar", "contraction"))
  assert stages["no_adaptation"].data.empty_slices == "all"
  assert stages["vamcei"].data.empty_slices == "none"


def test_a_damaged_record_stops_a_run_before_it_removes_anything(copy, tiny_config):
  (copy / "run.json").write_text('{"config"')
  with pytest.raises(InputError, match="run.json: not valid JSON .*; restore it, or remove it"):
    runs.run(tiny_config, copy, ["vamcei"])
  assert (copy / "vamcei" / "checkpoints" / "8").exists()
  assert (copy / "results.json").exists()


DAMAGES = {
  "not valid JSON": lambda path: path.write_text(path.read_text()[:-9]),
  "not the record of a run": lambda path: path.write_text('{"stages": {}}'),
  "a damaged config": lambda path: edit(path.parent, lambda record: record["config"].pop("stages")),
  "of a grid of runs": lambda path: edit(path.parent, lambda record: record["config"].update(grid={})),
  "vamcei was not finished": lambda path: edit(path.parent, lambda record: record["stages"].pop("vamcei")),
  "not found; --reproduce must name": lambda path: path.unlink(),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_run_that_cannot_be_reproduced_is_named_before_training(tiny_run, tmp_path, reason):
  origin = tmp_path / "run"
  origin.mkdir()
  shutil.copy(tiny_run / "run.json", origin)
  DAMAGES[reason](origin / "run.json")
  with pytest.raises(InputError) as error:
    reproduce(origin, tmp_path / "again")
  assert str(error.value).startswith(f"{origin / 'run.json'}: {reason}")
  assert not (tmp_path / "again").exists()


def test_commands_that_do_not_fit_are_named(run_command, tiny_run, tmp_path):
  main = lambda *flags: error_of(run_command("vamcei_jax.main", *flags))
  assert "either --config or --reproduce" in main(TINY, f"--reproduce={tiny_run}")
  assert "run.json: not found" in main(f"--reproduce={tmp_path}")
  assert "use another --workdir" in main(f"--reproduce={tiny_run}", f"--workdir={tiny_run}")
