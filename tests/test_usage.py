"""What the command lines print about themselves: --help, the usage without arguments, and no line of a library."""

import re
import shlex

import pytest

from tests.commands import ROOT
from tests.test_docs import flags_of, is_flag
from vamcei_jax.config.schema import InferenceConfig, records

MODULES = [f"vamcei_jax.{name}" for name in ("main", "prepare", "predict", "evaluate", "export")]
MODULES.append("experiments.ablation_grid")
every_command = pytest.mark.parametrize("module", MODULES)
FORM = re.compile(r"^  --(?:\[no\])?(\w+)", re.MULTILINE)


@pytest.fixture(scope="module")
def help_of(run_command):
  """The text of --help of a module, which must be printed alone and with exit code 0."""

  def ask(module):
    finished = run_command(module, "--help")
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout

  return ask


EXPERIMENTS = [path.stem for path in sorted((ROOT / "experiments").glob("*.py")) if "cli.run(" in path.read_text()]


def examples_of(text):
  return re.findall(r"^  (python -m .+)$", text, re.MULTILINE)


@every_command
def test_help_lists_the_flags_of_the_command_once_and_the_required_ones_first(help_of, module):
  text = help_of(module)
  listed = FORM.findall(text)
  assert sorted(listed) == sorted(flags_of(module))
  first_group = text.split("\n\n")[2]
  assert first_group.startswith("required")
  usage = text.split("\n\n")[1]
  assert set(FORM.findall(first_group)) <= set(re.findall(r"--(\w+)=", usage))
  assert "None" not in re.sub(r"\(data.spacing=None\)", "", text)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_help_of_an_experiment_names_what_is_required_and_the_form_of_each_value(run_process, name):
  finished = run_process(f"experiments.{name}", "--help")
  assert (finished.returncode, finished.stderr) == (0, "")
  parts = finished.stdout.split("\n\n")
  assert re.match(rf"usage: python -m experiments\.{name} --\w+=", parts[1])
  assert parts[2].startswith("required:")
  assert set(re.findall(r"--(\w+)=NUMBER", finished.stdout)) <= {"rounds"}
  for example in examples_of(finished.stdout):
    assert all(is_flag(argument, flags_of(f"experiments.{name}")) for argument in shlex.split(example)[3:])


@every_command
def test_examples_of_the_help_are_commands(help_of, module):
  examples = examples_of(help_of(module))
  assert len(examples) in (2, 3)
  for example in examples:
    python, _, name, *arguments = shlex.split(example)
    assert (python, name) == ("python", module)
    assert all(is_flag(argument, flags_of(module)) for argument in arguments), example


@every_command
def test_lines_of_the_help_fit_into_the_terminal(help_of, module, monkeypatch):
  for columns, widest in (("1", 60), ("500", 100)):
    monkeypatch.setenv("COLUMNS", columns)
    lines = [line for line in help_of(module).splitlines() if "python -m" not in line]
    assert max(map(len, lines)) <= widest


@every_command
def test_a_command_without_arguments_prints_a_usage(run_command, help_of, module):
  finished = run_command(module)
  assert (finished.returncode, finished.stdout) == (2, "")
  lines = finished.stderr.splitlines()
  assert len(lines) <= 5
  text = help_of(module)
  assert lines[2] == text.split("\n\n")[1]
  assert lines[3] == f"example: {examples_of(text)[0]}"
  assert lines[4] == f"all flags: python -m {module} --help"


def test_a_process_without_arguments_prints_the_usage_alone(run_process):
  finished = run_process("vamcei_jax.predict")
  assert (finished.returncode, finished.stdout) == (2, "")
  assert finished.stderr.startswith("Segments NIfTI and DICOM volumes")
  assert len(finished.stderr.splitlines()) == 5


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    (["--weights=w"], "error: --input and --output must be given; --help has examples\n"),
    (["--weights=w", "--input=i"], "error: --output must be given; --help has examples\n"),
    (["--input=i", "--output=o"], "error: give either --weights or --workdir; --help has examples\n"),
    (
      ["--input=i", "--output=o", "--weights=w", "--workdir=r"],
      "error: give either --weights or --workdir; --help has examples\n",
    ),
  ],
)
def test_required_flags_that_are_missing_are_named(run_command, flags, expected):
  finished = run_command("vamcei_jax.predict", *flags)
  assert (finished.returncode, finished.stderr) == (2, expected)


def test_the_sentences_of_prediction_are_those_of_its_configuration(help_of, monkeypatch):
  monkeypatch.setenv("COLUMNS", "100")
  text = " ".join(help_of("vamcei_jax.predict").split())
  for name in ("tta", "postprocess", "smooth", "samples", "resample"):
    assert dict(records(InferenceConfig))[name].sentence in text


def test_all_flags_are_listed_on_request(run_process):
  text = run_process("vamcei_jax.export", "--helpfull").stdout
  assert "--postprocess" in text.replace("[no]", "")
  assert "absl" in text
