"""run.json: what a run was made with, and digests of its parameters, so that it can be reproduced without checkpoints.

    config, seed   of the run
    data           role -> name of the prepared dataset, which contains a digest of its settings and files; of the
                   first stage, where a run finds the hearts first
    sessions       versions, Git commit and devices of each session that worked on the run, without repetitions
    stages         stage -> digest of the averaged parameters after the last step

The digest is of the averaged parameters, not of the whole state: evaluation and prediction use them, every step changes
them, and another version may lay out its optimizer state differently with equal parameters.
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

from vamcei_jax import __version__
from vamcei_jax.config.schema import flat_fields
from vamcei_jax.errors import InputError
from vamcei_jax.files import write_text
from vamcei_jax.methods.state import Params, digest

RUN_FILE = "run.json"
_PARTS = {"config": dict, "seed": int, "data": dict, "sessions": list, "stages": dict}
_SESSION = {"versions": dict, "git": dict, "devices": dict}
_PACKAGE = "vamcei-jax"


def start_record(
  workdir: Path, content: Mapping, datasets: Mapping, earlier: Mapping | None, discarded: Collection[str] = ()
) -> dict:
  """Writes run.json at the start of a session, and returns its content.

  Args:
    workdir: of the run.
    content: configuration of the run.
    datasets: role -> prepared dataset.
    earlier: run.json of earlier sessions; None for a new run.
    discarded: stages whose folders are removed.
  """
  sessions, stages = (earlier["sessions"], earlier["stages"]) if earlier else ([], {})
  now = session()
  record = {
    "config": content,
    "seed": content.get("seed", 0),
    "data": {role: builder.info.full_name for role, builder in datasets.items()},
    "sessions": sessions if sessions[-1:] == [now] else [*sessions, now],
    "stages": {stage: sha256 for stage, sha256 in stages.items() if stage not in discarded},
  }
  _write(workdir, record)
  return record


def record_stage(workdir: Path, stage: str, networks: Mapping[str, Params]) -> None:
  """Adds the digest of a finished stage's networks to run.json."""
  record = read_record(workdir)
  if record is None:
    raise InputError(f"{workdir / RUN_FILE}: not found; it was removed during the run")
  record["stages"][stage] = digest(networks)
  _write(workdir, record)


def read_record(workdir: Path) -> dict | None:
  """The content of run.json of a workdir; None where there is none.

  Raises:
    InputError: it is damaged.
  """
  path = workdir / RUN_FILE
  try:
    record = json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError as error:
    raise InputError(f"{path}: not valid JSON ({error}); restore it, or remove it to resume the run") from None
  fits = lambda value, parts: all(isinstance(value.get(name), kind) for name, kind in parts.items())
  has = lambda value, parts: isinstance(value, dict) and fits(value, parts)
  if not has(record, _PARTS) or not record["sessions"] or not all(has(each, _SESSION) for each in record["sessions"]):
    raise InputError(f"{path}: not the record of a run; restore it, or remove it to resume the run")
  return record


def differences(then: Mapping, now: Mapping) -> list[str]:
  """A line for each field (dotted name) that differs between two sessions or records."""
  then, now = flat_fields(then), flat_fields(now)
  fields = [field for field in sorted(then | now) if then.get(field) != now.get(field)]
  return [f"{field}: {then.get(field, 'not there')} then, {now.get(field, 'not there')} now" for field in fields]


def session() -> dict:
  """Versions, Git commit and devices of this program."""
  return {"versions": versions(), "git": git_state(Path(__file__).parent), "devices": devices()}


def describe_session(session: Mapping) -> dict[str, str]:
  """Commit, if there is one, and device of a session, as text."""
  git, devices = session["git"], session["devices"]
  commit = {"Commit": git["commit"][:12] + (", with changes" if git.get("dirty") else "")} if git.get("commit") else {}
  device = f"{devices.get('count')} × {devices.get('kind')}"
  if devices.get("platform") == "cpu":
    device = f"CPU, {devices.get('cores')} cores, {devices.get('processor')}"
  hosts = f" on {devices['hosts']} hosts" if devices.get("hosts", 1) > 1 else ""
  return {**commit, "Device": device + hosts}


def versions() -> dict[str, str]:
  """Versions of Python, of this package and of all installed distributions that it depends on, by name."""
  normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
  # Of two distributions with one name, Python imports the first.
  installed = {normal(found.name): found for found in reversed(list(metadata.distributions())) if found.name}
  found, left = {}, [_PACKAGE] if _PACKAGE in installed else list(installed)
  while left:
    name = left.pop()
    if name in installed and name not in found:
      found[name] = installed[name].version
      left += [normal(re.findall(r"[\w.-]+", needed)[0]) for needed in installed[name].requires or ()]
  return {"python": platform.python_version(), **dict(sorted(found.items())), _PACKAGE: __version__}


def git_state(folder: Path) -> dict:
  """The commit of a folder's checkout, and whether tracked files were changed since; None where Git tracks nothing."""

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
  """Platform, kind and number of devices, number of hosts, and this host's processor and usable cores."""
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


def _write(workdir: Path, record: Mapping) -> None:
  write_text(workdir / RUN_FILE, json.dumps(record, indent=2) + "\n")
