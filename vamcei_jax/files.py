"""Folders of users, atomic writes, and a lock on a folder."""

import errno
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vamcei_jax.errors import InputError


def as_text(name: str) -> str:
  """The name of a file as text that can be drawn: bytes that are not UTF-8 are replaced."""
  return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def expanded(path: str | Path, way_out: str = "name it without ~") -> Path:
  """A path with the home folder in place of a leading ~.

  Raises:
    InputError: there is no home folder; the error ends with `way_out`.
  """
  try:
    return Path(path).expanduser()
  except RuntimeError:
    raise InputError(f"{path}: there is no home folder; set HOME, or {way_out}") from None


def writable(folder: Path, way_out: str) -> Path:
  """A folder, which is made if it does not exist.

  Raises:
    InputError: it cannot be made or written; the error ends with `way_out`.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    reason = "" if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
  except OSError as error:
    reason = str(error.strerror)
  if reason:
    raise InputError(f"{folder}: cannot be written ({reason}); {way_out}")
  return folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """Yields a temporary path beside `path`, with its suffixes; renames it to `path` unless the block raises an error."""
  # Processes of two hosts may have one number.
  temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.{path.name}")
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
  """Writes a text file atomically. Bytes of file names that are no text are written as they are."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


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
    except OSError as error:
      print(f"{folder}: not locked ({error.strerror}); start no other run in it", file=sys.stderr)
    yield


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
  """Waits until no other process is in such a block for a folder, if its file system can lock folders."""
  with ExitStack() as stack:
    with suppress(OSError):
      descriptor = os.open(folder, os.O_RDONLY)
      stack.callback(os.close, descriptor)
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
