"""Atomic writes, and a lock on a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vamcei_jax.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """Yields a temporary path beside `path`, with its suffixes; renames it to `path` unless the block raises an error."""
  temporary = path.with_name(f".{os.getpid()}.{path.name}")
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
  """Writes a text file atomically."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Locks a folder for this process. The system releases the lock when the process ends, even if it is killed.

  Raises:
    InputError: another process has locked the folder.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / ".lock", "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise InputError(f"{folder}: another run is at work in it; wait for it, or use another --workdir") from None
    yield
