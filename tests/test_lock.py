"""The versions that CI installs are those that pyproject.toml allows."""

import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.commands import ROOT


def test_the_lock_has_every_dependency_in_an_allowed_version():
  lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
  locked = dict(line.split("==") for line in lines)
  locked = {canonicalize_name(name): version for name, version in locked.items()}
  assert len(locked) == len(lines)
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extras = project["optional-dependencies"]
  needed = [*project["dependencies"], *extras["dev"], *extras["docs"], *extras["experiments"]]
  assert len(needed) > 20
  for requirement in map(Requirement, needed):
    assert locked[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_ci_installs_the_locked_versions():
  ci = (ROOT / ".ci" / "run").read_text()
  assert 'PIP_CONSTRAINT="$PWD/requirements.lock"' in ci
  assert ci.rstrip().endswith("make test")
