"""The scripts of examples/slurm, run with a stub in place of srun: which command they would run on a cluster."""

import re
import subprocess

import pytest

from tests.commands import ROOT

FOLDER = ROOT / "examples" / "slurm"
CONFIG, DATA = "--config=configs/vamcei_paper.py", "--config.data.root=/data/with space"
# Script -> how srun starts the tasks, and arguments of vamcei_jax.main.
COMMANDS = {
  "one_gpu": ("--cpus-per-task=4", [CONFIG, DATA, "--workdir=runs/vamcei"]),
  "several_gpus": ("--cpus-per-task=16", [CONFIG, DATA, "--workdir=runs/vamcei-gpus"]),
  "several_nodes": (
    "--cpus-per-task=4",
    [CONFIG, DATA, "--config.train.batch_size=8", "--workdir=runs/vamcei-nodes", "--multihost"],
  ),
  "seeds": ("--cpus-per-task=4", [CONFIG, DATA, "--config.seed=2", "--workdir=runs/seed2"]),
  "long_run": ("--cpus-per-task=4", [CONFIG, DATA, "--workdir=runs/vamcei-long"]),
}
every_script = pytest.mark.parametrize("name", COMMANDS)


def directives(name):
  """Option -> value of the #SBATCH lines, which must come before the first command."""
  lines = (FOLDER / f"{name}.sh").read_text().splitlines()
  head = lines[: next(number for number, line in enumerate(lines) if line and not line.startswith("#"))]
  found = [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line) for line in lines if line.startswith("#SBATCH")]
  assert len(found) == sum(line.startswith("#SBATCH") for line in head)
  return {match[1]: match[2] for match in found}


@pytest.fixture
def submit(tmp_path):
  """Runs a script as a job would: submit(name, *arguments, **environment) -> (process, commands that it started)."""
  log = tmp_path / "commands"
  log.touch()
  for stub, code in (("srun", "${SRUN_CODE:-0}"), ("scontrol", "0")):
    path = tmp_path / "bin" / stub
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/bash\nprintf "%s\\n" {stub} "$@" "" >> "$COMMANDS"\nexit {code}\n')
    path.chmod(0o755)

  def run(name, *arguments, **environment):
    options = directives(name)
    job = {"SLURM_JOB_ID": "123", "SLURM_JOB_NAME": options["job-name"], "SLURM_ARRAY_TASK_ID": "2"}
    job |= {"SLURM_CPUS_PER_TASK": options["cpus-per-task"]}
    paths = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "COMMANDS": str(log)}
    script = ["bash", str(FOLDER / f"{name}.sh"), *arguments]
    finished = subprocess.run(script, cwd=ROOT, env=job | paths | environment, capture_output=True, text=True)
    return finished, [command.split("\n") for command in log.read_text().removesuffix("\n\n").split("\n\n") if command]

  return run


@every_script
def test_a_script_runs_this_command_and_main_accepts_it(submit, run_command, name):
  extra = ["--config.train.steps=7", "--print_config"]
  finished, started = submit(name, *extra, DATA="/data/with space")
  assert finished.returncode == 0, finished.stderr
  srun, arguments = COMMANDS[name]
  assert started == [["srun", srun, ".venv/bin/python", "-m", "vamcei_jax.main", *arguments, *extra]]
  printed = run_command("vamcei_jax.main", *arguments, *extra)
  assert printed.returncode == 0, printed.stderr
  assert "steps: 7" in printed.stdout
  assert ("seed: 2" in printed.stdout) == (name == "seeds")


@every_script
def test_a_job_is_resumed_in_the_same_output_file(name):
  options = directives(name)
  assert options["output"] == ("%x-%A_%a.out" if name == "seeds" else "%x-%j.out")
  assert options["open-mode"] == "append"
  assert "requeue" in options
  assert ("array" in options) == (name == "seeds")


def test_the_batch_of_several_nodes_is_a_multiple_of_all_gpus():
  options = directives("several_nodes")
  assert options["gres"] == f"gpu:{options['ntasks-per-node']}"  # process number I of a node uses its GPU number I
  gpus = int(options["nodes"]) * int(options["ntasks-per-node"])
  (size,) = (int(each.partition("batch_size=")[2]) for each in COMMANDS["several_nodes"][1] if "batch_size" in each)
  assert size % gpus == 0


def test_a_job_without_data_says_what_is_missing(submit):
  finished, started = submit("one_gpu")
  assert finished.returncode != 0
  assert "DATA: give the folder of the volumes" in finished.stderr
  assert started == []


@pytest.mark.parametrize(("code", "queued"), [(143, [["scontrol", "requeue", "123"]]), (2, []), (0, [])])
def test_a_long_run_is_queued_again_after_sigterm_only(submit, code, queued):
  assert directives("long_run")["signal"].startswith("TERM@")
  finished, started = submit("long_run", DATA="/data", SRUN_CODE=str(code))
  assert finished.returncode == code
  assert started[1:] == queued


def test_the_page_lists_every_script():
  page = (ROOT / "docs" / "slurm.md").read_text()
  listed = re.findall(r"examples/slurm/(\w+)\.sh\)", page)
  assert sorted(listed) == sorted(path.stem for path in FOLDER.iterdir()) == sorted(COMMANDS)
