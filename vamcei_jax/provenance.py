"""run.json: what a run was made with, and what came of it, so that it can be made again without its checkpoints.

    config, seed   of the run, whole
    data           role -> name of the prepared dataset, which carries a digest of its settings and files; those of the
                   first stage, where a run looks for the heart
    sessions       of each program that has worked on the run, the one that began it first: versions, Git commit and
                   devices; one that differs in none of them from the session before it is not told
    stages         stage -> digest of the moving averages of its parameters after the last step

The moving averages, not the whole state: they are what evaluates and predicts, every step's parameters go into them,
and optimizers may be laid out anew in another version without a parameter being another one.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path

import jax
from ml_collections import ConfigDict

from vamcei_jax import __version__
from vamcei_jax.checkpoints import digest
from vamcei_jax.config import flat_fields, plain
from vamcei_jax.errors import InputError
from vamcei_jax.files import write_text
from vamcei_jax.methods.state import Params

RUN_FILE = "run.json"
_PARTS = {"config": dict, "seed": int, "data": dict, "sessions": list, "stages": dict}
_SESSION = {"versions": dict, "git": dict, "devices": dict}
_PACKAGE = "vamcei-jax"


def begin_record(
  workdir: Path, config: ConfigDict, datasets: Mapping, before: dict | None, stale: Collection[str] = ()
) -> dict:
  """Writes run.json as a run begins or is gone on with, and returns what it holds.

  Args:
    workdir: of the run.
    config: of the run.
    datasets: role -> prepared dataset.
    before: what run.json holds of earlier sessions; None for a new run.
    stale: stages that are going to be trained anew.
  """
  sessions, stages = (before["sessions"], before["stages"]) if before else ([], {})
  now = session()
  record = {
    "config": plain(config),
    "seed": config.seed,
    "data": {role: builder.info.full_name for role, builder in datasets.items()},
    "sessions": sessions if sessions[-1:] == [now] else [*sessions, now],
    "stages": {stage: own for stage, own in stages.items() if stage not in stale},
  }
  _write(workdir, record)
  return record


def record_stage(workdir: Path, stage: str, networks: Mapping[str, Params]) -> None:
  """Notes in run.json the digest of the networks that a stage ended with."""
  record = read_record(workdir)
  record["stages"][stage] = digest(networks)
  _write(workdir, record)


def read_record(workdir: Path) -> dict | None:
  """What run.json of a workdir holds; None where there is none.

  Raises:
    InputError: it is damaged.
  """
  path = workdir / RUN_FILE
  try:
    record = json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError as error:
    raise InputError(f"{path}: not valid JSON ({error}); restore it, or remove it to go on with the run") from None
  has = lambda value, parts: isinstance(value, dict) and all(isinstance(value.get(k), own) for k, own in parts.items())
  if not has(record, _PARTS) or not record["sessions"] or not all(has(own, _SESSION) for own in record["sessions"]):
    raise InputError(f"{path}: not the record of a run; restore it, or remove it to go on with the run")
  return record


def differences(then: Mapping, now: Mapping) -> list[str]:
  """A line for each field, dotted where it is in a section, that is not the same in two sessions or records."""
  then, now = flat_fields(then), flat_fields(now)
  fields = [field for field in sorted(then | now) if then.get(field) != now.get(field)]
  return [f"{field}: {then.get(field, 'not there')} then, {now.get(field, 'not there')} now" for field in fields]


def session() -> dict:
  """Versions, Git commit and devices of this program, as JSON holds them."""
  return {"versions": versions(), "git": git_state(Path(__file__).parent), "devices": devices()}


def versions() -> dict[str, str]:
  """Versions of Python, of this package, and of all installed distributions that it leads to, by name."""
  normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
  # Of two with a name, the first one is imported.
  installed = {normal(own.name): own for own in reversed(list(metadata.distributions())) if own.name}
  found, left = {}, [_PACKAGE] if _PACKAGE in installed else list(installed)
  while left:
    name = left.pop()
    if name in installed and name not in found:
      found[name] = installed[name].version
      left += [normal(re.match(r"[\w.-]+", needed)[0]) for needed in installed[name].requires or ()]
  return {"python": platform.python_version(), **dict(sorted(found.items())), _PACKAGE: __version__}


def git_state(folder: Path) -> dict:
  """The commit that a folder's files are of, and whether tracked files of the checkout have been changed since.

  None for both where Git does not track the folder, as in an installed package.
  """

  def git(*arguments: str) -> str | None:
    try:
      finished = subprocess.run(["git", "--no-optional-locks", *arguments], cwd=folder, capture_output=True, text=True)
    except OSError:  # no Git
      return None
    return finished.stdout.strip() if finished.returncode == 0 else None

  if not git("ls-files", "."):
    return {"commit": None, "dirty": None}
  return {"commit": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain", "--untracked-files=no") != ""}


def devices() -> dict:
  """Platform, kind and number of all devices, hosts, and this host's processor and the cores that it may use."""
  first = jax.devices()[0]
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
  except OSError:  # not Linux
    names = []
  return {
    "platform": first.platform,
    "kind": first.device_kind,
    "count": jax.device_count(),
    "hosts": jax.process_count(),
    "processor": names[0] if names else platform.processor() or platform.machine(),
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
  }


def _write(workdir: Path, record: dict) -> None:
  write_text(workdir / RUN_FILE, json.dumps(record, indent=2) + "\n")
