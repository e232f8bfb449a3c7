"""Files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
