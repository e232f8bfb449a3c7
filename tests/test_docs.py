"""Pages are short, and what they name exists: files, anchors, functions, commands, flags, fields, errors."""

import ast
import contextlib
import functools
import importlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

import vamcei_jax
from tests.commands import ROOT
from vamcei_jax.config.schema import InferenceConfig, find_record, records
from vamcei_jax.phantom.scanner import write_nnunet
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.stages import STAGES

FOLDERS = [ROOT / name for name in ("docs", "experiments", "weights")]
TOP = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES = [*TOP, *sorted(page for folder in FOLDERS for page in folder.rglob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
# Pages that name flags of version 0.1.
HISTORY = ("CHANGELOG.md", "notes.md", "results.md", "results-mscmrseg.md", "what-was-tried.md")
COMMANDS = ("main", "prepare", "predict", "evaluate", "export")
# Files that a reader of the pages writes; the blocks of extending*.md are others.
WRITTEN = {"configs/mine.py"}


def words(text):
  return len(text.split())


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_a_page_of_docs_has_at_most_900_words(page):
  text = page.read_text()
  if page.name == "trust.md":  # its tables are the evidence
    text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
  assert words(text) <= 900


def test_the_readme_is_one_page():
  text = (ROOT / "README.md").read_text()
  assert words(text) <= 900
  assert len(text.splitlines()) <= 150


def test_the_quickstart_shows_what_the_weights_predict(tmp_path):
  write_nnunet(tmp_path, sources=1, targets=1, masks=1)
  prediction = vamcei_jax.load_segmenter(ROOT / "weights" / "lge")(tmp_path / "lge/imagesTr/lge_001_0000.nii.gz")
  (row,) = re.findall(r"^lge_001_0000\.nii\.gz,(.*)$", (ROOT / "docs/quickstart.md").read_text(), re.MULTILINE)
  *numbers, findings = row.split(",")
  volumes, quality = prediction.volumes_ml, prediction.quality
  expected = [volumes["LV"], volumes["RV"], prediction.myocardial_mass_g, quality.score]
  np.testing.assert_allclose([float(number) for number in numbers], expected, rtol=0.02)
  assert findings == "; ".join(finding.name for finding in quality.findings)


def test_the_api_reference_has_an_example_of_every_public_name():
  names = re.findall(r"^\.\. auto\w+:: (\S+)\n((?:   .*\n)*)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
  assert {name.removeprefix("vamcei_jax.") for name, _ in names} >= {*vamcei_jax.__all__} - {"__version__"}
  for name, options in names:
    module, _, item = name.rpartition(".")
    public = getattr(importlib.import_module(module), item)
    members = re.findall(r"\w+", options.partition(":members:")[2])
    for documented in (public, *(getattr(public, member) for member in members)):
      assert "Example:" in documented.__doc__, (name, documented)


def test_the_start_page_lists_every_page_of_docs():
  text = (ROOT / "docs" / "index.md").read_text()
  blocks = re.findall(r"^```{toctree}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
  listed = {re.sub(r".*<(.*)>", r"\1", line) for block in blocks for line in block.splitlines()}
  assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= listed


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
  pytest.importorskip("furo", reason="needs the extra docs")
  build = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "-c", "docs", ".", tmp_path]
  built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
  assert built.returncode == 0, built.stderr
  assert (tmp_path / "docs" / "index.html").exists()


def anchors(page):
  """The anchors that GitHub gives the headings of a page."""
  headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page):
  text = page.read_text()
  links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
  for link in links:
    if "://" not in link:
      file, _, anchor = link.partition("#")
      target = (page.parent / file).resolve() if file else page
      assert target.exists(), link
      assert not anchor or anchor in anchors(target), link


BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PACKAGE_FOLDERS = sorted(path.name for path in (ROOT / "vamcei_jax").iterdir() if (path / "__init__.py").exists())
REPOSITORY_FOLDERS = ("vamcei_jax", "configs", "experiments", "tests", "docs", "weights")
# A path from the root, or a Python file from the package's folder.
PATH = re.compile(
  rf"(?<![\w/.~-])(?:(?:{'|'.join(REPOSITORY_FOLDERS)})/(?:[\w./-]*[\w/])?|(?:{'|'.join(PACKAGE_FOLDERS)})/[\w/]+\.py\b)"
)


def written(page):
  """The files that a reader of the page writes; of extending*.md, a reader of all of them."""
  pages = page.parent.glob("extending*.md") if page.name.startswith("extending") else [page]
  found = [re.findall(r"^```python\n# (\S+\.py)$", each.read_text(), re.MULTILINE) for each in pages]
  return WRITTEN.union(*found)


@every_page
def test_named_files_exist(page):
  text = re.sub(r"\w+://\S+", "", page.read_text())
  for path in set(PATH.findall(text)) - written(page):
    assert (ROOT / path).exists() or (ROOT / "vamcei_jax" / path).exists(), path


@every_page
def test_named_modules_and_functions_exist(page):
  names = set(re.findall(r"(?<![\w/.])vamcei_jax(?:\.\w+)+", page.read_text()))
  for name in names - {module_of(path) for path in written(page)}:
    parts = name.split(".")
    length = max(n for n in range(1, len(parts) + 1) if is_module("/".join(parts[:n])))
    if length < len(parts):
      functools.reduce(getattr, parts[length:], importlib.import_module(".".join(parts[:length])))


def module_of(path):
  """The dotted name of a Python file of the repository."""
  return path.removesuffix(".py").replace("/", ".")


def is_module(path):
  """Whether a path without its ending is a module or a package of the repository."""
  return (ROOT / f"{path}.py").exists() or (ROOT / path / "__init__.py").exists()


def commands(page):
  """(module, arguments) of the commands `python -m` of this repository; those of version 0.1 without arguments."""
  blocks = [text for language, text in BLOCK.findall(page.read_text()) if language in ("", "bash")]
  inline = re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text()))
  for block in [*blocks, *inline]:
    for line in block.replace("\\\n", " ").splitlines():
      if found := re.search(r"python -m ((?:vamcei_jax|experiments)\.\w+)(.*)", line):
        old = block.lstrip().startswith("# version 0.1")
        yield found[1], [] if old else shlex.split(found[2], comments=True)


@functools.cache
def flags_of(module):
  """The flags that a command defines, from its source and from that of cli.py."""
  path = ROOT / f"{module.replace('.', '/')}.py"
  names = set()
  for source in (path, ROOT / "vamcei_jax" / "cli.py"):
    tree = ast.parse(source.read_text())
    for node in ast.walk(tree):
      called = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
      if called.startswith("DEFINE") and isinstance(node.args[0], ast.Constant):
        names.add(node.args[0].value)
      elif called == "define_inference_flags":
        names |= set(importlib.import_module(module).OPTIONS)
  return names


def is_flag(argument, names):
  """Whether `--name`, `--noname`, `--name=value` or `--config.FIELD=value` is a flag of a command with these flags."""
  name = argument.removeprefix("--").partition("=")[0]
  if name.startswith("config."):
    return "config" in names and is_field(name.removeprefix("config."))
  return name in names or name.removeprefix("no") in names


def is_field(name):
  """Whether a dotted name is a field of a run's configuration."""
  if found := re.fullmatch(r"stage\.(\w+)\.(.+)", name):
    return found[1] in STAGES and is_field(found[2])
  if name.startswith("grid."):
    return True
  if found := re.fullmatch(r"loss\.weights\.(\w+)", name):
    # That of extending.md is computed after its changes.
    return found[1] == "entropy" or any(found[1] in stage.method.TERMS for stage in STAGES.values())
  return name == "stages" or find_record(name) is not None


@every_page
def test_commands_have_only_flags_that_exist(page):
  for module, arguments in commands(page):
    names = flags_of(module)
    assert {"compiled"} <= names
    for argument in arguments:
      assert argument.startswith("--"), (module, argument)
      assert is_flag(argument, names), (module, argument)


def test_there_are_commands_to_check():
  modules = {module for page in PAGES for module, _ in commands(page)}
  assert modules >= {f"vamcei_jax.{command}" for command in COMMANDS}
  assert {"tta", "smooth", "input", "compiled"} <= flags_of("vamcei_jax.predict")
  assert not is_flag("--apex", flags_of("vamcei_jax.predict"))
  assert is_flag("--config.stage.distill.train.steps=3", flags_of("vamcei_jax.main"))
  assert not is_flag("--config.stage.distill.train.step=3", flags_of("vamcei_jax.main"))
  assert not is_flag("--config.data.view=axial", flags_of("vamcei_jax.main"))


@every_page
def test_named_flags_exist(page):
  """Flags in the text, outside of commands: `--smooth=5`."""
  if page.name in HISTORY:
    return
  names = set().union(*(flags_of(f"vamcei_jax.{command}") for command in COMMANDS))
  for quoted in re.findall(r"`(--[^`\n]+)`", BLOCK.sub("", page.read_text())):
    for argument in shlex.split(quoted):
      assert is_flag(argument, names), argument


def resolved_commands():
  """Commands of training whose configuration is a file of the repository, each once."""
  for page in PAGES:
    for module, arguments in commands(page):
      config = next((each.partition("=")[2] for each in arguments if each.startswith("--config=")), "")
      if module in ("vamcei_jax.main", "experiments.ablation_grid") and (ROOT / config).is_file():
        yield config, tuple(each for each in arguments if each.startswith("--config."))


@pytest.mark.parametrize(("path", "overrides"), sorted(set(resolved_commands())))
def test_documented_configurations_are_accepted(path, overrides):
  config = importlib.import_module(module_of(path)).get_config()
  for override in overrides:
    name, _, value = override.removeprefix("--config.").partition("=")
    with contextlib.suppress(SyntaxError, ValueError):  # a text needs no quotes
      value = ast.literal_eval(value)
    *sections, field = name.split(".")
    section = functools.reduce(getattr, sections, config)
    with section.unlocked():
      setattr(section, field, value)
  assert list(resolve(config).stages) == list(config.stages)


def test_the_method_names_what_exists():
  """`[losses/prior.py](../vamcei_jax/losses/prior.py)` and the functions before or after it, in a row of a table."""
  text = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in ("method", "stages", "beyond-the-paper"))
  checked = set()
  for line in text.splitlines():
    link = re.search(r"\]\(\.\./(vamcei_jax/[\w/]+)\.py\)(.*)", line)
    if not link:
      continue
    module = importlib.import_module(module_of(link[1]))
    # In the tables of method.md, functions and classes stand before their file; elsewhere they follow it.
    cells = line.split(" | ")
    names = re.findall(r"`(\w+)`", cells[-2] if len(cells) == 4 or "models/" in line else link[2])
    for name in names:
      assert hasattr(module, name), (module, name)
      checked.add((module.__name__, name))
  assert len(checked) >= 30


def test_stages_learn_from_the_images_that_the_method_names():
  text = (ROOT / "docs" / "stages.md").read_text()
  names = {"S": "source", "T": "target", "S→T": "source_as_target", "T→S": "target_as_source", "": "target"}
  rows = re.findall(r"^\| `(\w+)` \| .+ \| (\S+) \| ?([^\s,]*)(?:, .+)? \|$", text, re.MULTILINE)
  documented = {stage: (names[source], names[target]) for stage, source, target in rows}
  assert documented == {name: (stage.source, stage.target) for name, stage in STAGES.items()}


# Lines of other programs.
FOREIGN = {
  "No module named",
  "No matching distribution found",
  "An NVIDIA GPU may be present",
  "RESOURCE_EXHAUSTED",
  "Unknown command line flag",
}


def test_errors_are_quoted_as_they_are_printed():
  source = " ".join(file.read_text() for file in (ROOT / "vamcei_jax").rglob("*.py"))
  pages = (ROOT / "docs").glob("errors*.md")
  rows = [row for page in pages for row in re.findall(r"^\| (`.+?) \| ", page.read_text(), re.MULTILINE)]
  quotes = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row)]
  assert len(quotes) > 15
  for quote in quotes:
    if not any(quote.startswith(program) for program in FOREIGN):
      words = [part.strip() for part in re.split(r"'[^']*'|\bN\b", quote)]
      assert all(part in source for part in words), quote


def test_the_python_page_lists_the_options_of_prediction():
  text = (ROOT / "docs" / "python.md").read_text()
  rows = dict(re.findall(r"^\| `(\w+)` \| .* \| `(.+)` \|$", text, re.MULTILINE))
  measured = ("pixel_mm", "extent_mm")
  expected = {name: record.default for name, record in records(InferenceConfig) if name not in measured}
  assert {name: ast.literal_eval(value) for name, value in rows.items()} == expected
