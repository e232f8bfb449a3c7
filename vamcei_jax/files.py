"""Files that are whole or not there."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vamcei_jax.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """A temporary path beside `path`, with its suffixes; renamed to `path` when the block ends well, else removed."""
  temporary = path.with_name(f".{os.getpid()}.{path.name}")
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
  """Writes a text file, whole or not at all."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
  """One program at a time in a folder. The system lets go of the lock when a program ends, however it does.

  Raises:
    InputError: another program is at work there.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / ".lock", "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise InputError(f"{folder}: another run is at work in it; wait for it, or use another --workdir") from None
    yield
