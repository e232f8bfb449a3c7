"""Digests of files. They are kept beside the prepared data, so that an unchanged file is read once."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from vamcei_jax.files import write_text

DIGESTS_FILE = "digests.json"


def file_digests(files: Iterable[Path], folder: Path) -> dict[Path, str | None]:
  """SHA-256 of the bytes of files; None of a file that is missing or cannot be read.

  A file is read again if its size, its inode, or its time of modification or of status change differs from the last
  call. The last of these times cannot be set, so a changed file is found whose size and modification time are restored.

  Args:
    files: to be read.
    folder: of prepared data; gets digests.json, if it can be written.
  """
  known = _read(folder / DIGESTS_FILE)
  digests: dict[Path, str | None] = {}
  current = {}
  for file in files:
    digests[file] = None
    with contextlib.suppress(OSError):
      if file.is_file():
        name, identity = str(file.absolute()), _identity(file)
        found = known.get(name)
        sha256 = found[-1] if isinstance(found, list) and found[:-1] == identity else _digest(file)
        digests[file], current[name] = sha256, [*identity, sha256]
  if any(known.get(name) != entry for name, entry in current.items()):
    with contextlib.suppress(OSError):
      write_text(folder / DIGESTS_FILE, json.dumps(known | current, indent=0) + "\n")
  return digests


def _identity(file: Path) -> list[int]:
  stat = file.stat()
  return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _digest(file: Path) -> str:
  with file.open("rb") as content:
    return hashlib.file_digest(content, "sha256").hexdigest()


def _read(file: Path) -> dict:
  """The content of digests.json; empty where it is missing or damaged."""
  try:
    content = json.loads(file.read_text(encoding="utf-8"))
  except (OSError, RecursionError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}
