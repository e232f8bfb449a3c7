"""What the command lines share: flags that are wrong and input that is bad end in one line and exit code 2."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from vamcei_jax.errors import InputError


def run(main: Callable[[], None]) -> None:
  """Parses the flags and runs main(); does not return."""

  def guarded(argv: list[str]) -> None:
    del argv
    # The libraries' progress is not the user's.
    logging.set_verbosity(logging.ERROR)
    try:
      main()
    except InputError as error:
      fail(str(error))
    except OSError as error:
      if error.filename is None:
        raise
      fail(f"{error.filename}: {error.strerror}")

  app.run(guarded, flags_parser=parse)


def config_path() -> Path:
  """The file that --config names.

  Raises:
    InputError: there is none.
  """
  path = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
  if not path.is_file():
    raise InputError(f"{path}: no such config; see configs/")
  return path


def parse(argv: list[str]) -> list[str]:
  """Flags and configuration overrides; what is wrong with them is said in one line."""
  try:
    rest = flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError, ImportError) as error:
    # An unknown field comes as an AttributeError that wraps a KeyError, whose str() is the repr of its message.
    while error.args and isinstance(error.args[0], Exception):
      error = error.args[0]
    fail(f"unknown config field {error.args[0]}" if isinstance(error, KeyError) else str(error))
  if rest[1:]:
    fail(f"unexpected argument {rest[1]}; flags are written --name=value")
  return rest


def fail(message: str) -> None:
  """Prints one line on stderr and ends the program with exit code 2."""
  _say(message)
  sys.exit(2)


def end(failures: Iterable[str]) -> None:
  """Ends a program that went on without some of its files: a line for each on stderr and exit code 1, if there are."""
  failures = list(dict.fromkeys(failures))
  for failure in failures:
    _say(failure)
  if failures:
    sys.exit(1)


def _say(message: str) -> None:
  print(f"error: {' '.join(message.split())}", file=sys.stderr)
