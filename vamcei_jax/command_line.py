"""What the command lines share: flags that are wrong and input that is bad end in one line and exit code 2.

Compilations are kept for the next command, in a folder of the user's. Linux is asked for memory in huge pages.
"""

import contextlib
import errno
import hashlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from vamcei_jax.errors import InputError
from vamcei_jax.interruption import end_on_signals

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_COMPILED = flags.DEFINE_string("compiled", "~/.cache/vamcei_jax/compiled", "Folder where compilations are kept.")


def run(main: Callable[[], None]) -> None:
  """Parses the flags and runs main(); does not return."""
  use_huge_pages()

  def guarded(argv: list[str]) -> None:
    del argv
    # The libraries' progress is not the user's, and what they log of errors they raise as well.
    logging.set_verbosity(logging.FATAL)
    end_on_signals()
    silence_aftermath()
    keep_compilations(Path(_COMPILED.value))
    try:
      main()
    except InputError as error:
      fail(str(error))
    except Exception as error:
      if is_disk_full(error):
        _say("the disk is full; make room on it, and give the same command again")
        os._exit(2)  # what else wants to write at the end cannot
      if not isinstance(error, OSError) or error.filename is None:
        raise
      fail(f"{error.filename}: {error.strerror}")

  app.run(guarded, flags_parser=parse)


def keep_compilations(folder: Path) -> None:
  """Keeps what takes a second or more to compile, unless JAX_COMPILATION_CACHE_DIR names another folder.

  To be called before JAX is imported. Programs for the CPU use what the processor offers, and JAX does not look at that
  before it runs a kept one: so every kind of processor has a folder of its own.
  """
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = sorted({line for line in lines if line.startswith(("flags", "Features"))})
  except OSError:  # not Linux
    processor = [platform.machine(), platform.processor()]
  kind = hashlib.sha256("\n".join(processor).encode()).hexdigest()[:12]
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder.expanduser() / kind))


def use_huge_pages() -> None:
  """Begins this program anew with memory in huge pages, where Linux gives them only to those who ask.

  On a CPU, XLA takes a step's memory from glibc and gives it back each time; in ordinary pages, a tenth to a quarter of
  the time goes into that (experiments/results/notes.md). glibc looks at the variable when a process begins: hence the
  new beginning, with the same process number, which takes a tenth of a second. Only what was begun by `python -m` is
  begun anew: nothing in a debugger, in a notebook or from stdin. A user's own `glibc.malloc.hugetlb` is left as it is.
  """
  variable, tunable, mark = "GLIBC_TUNABLES", "glibc.malloc.hugetlb", "vamcei_jax_huge_pages"
  before, spec, given = os.environ.get(variable, ""), sys.modules["__main__"].__spec__, sys.orig_argv
  if spec is None or "-m" not in given or given[given.index("-m") + 1] != spec.name:
    return
  # The mark: privileged interpreters are not given the variable, and would begin anew for ever.
  if tunable in before or mark in sys._xoptions:
    return
  with contextlib.suppress(OSError):
    if "[madvise]" in _HUGE_PAGES.read_text(encoding="utf-8"):
      environment = os.environ | {variable: f"{before}:{tunable}=1".lstrip(":")}
      os.execve(sys.executable, [sys.executable, "-X", mark, *given[1:]], environment)


def silence_aftermath() -> None:
  """Silences what threads say after an error that is told: of the full disk again, or that nobody waits for them."""
  tell, tell_ignored = threading.excepthook, sys.unraisablehook
  aftermath = lambda error: is_disk_full(error) or str(error) == "Event loop is closed"
  threading.excepthook = lambda details: None if aftermath(details.exc_value) else tell(details)
  sys.unraisablehook = lambda details: None if aftermath(details.exc_value) else tell_ignored(details)


def is_disk_full(error: BaseException | None) -> bool:
  """Whether an error is, or came of, a device or a quota without room."""
  full = (errno.ENOSPC, errno.EDQUOT)
  while error is not None:
    if getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full):
      return True
    error = error.__cause__ or error.__context__
  return False


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


def parse_odds(values: Sequence[str]) -> tuple[float, ...]:
  """What --odds is given: a positive factor for Myo, LV and RV.

  Raises:
    InputError: it is something else.
  """
  try:
    odds = tuple(map(float, values))
  except ValueError:
    odds = ()
  if len(odds) != 3 or not all(1e-6 <= factor <= 1e6 for factor in odds):
    raise InputError(f"--odds={','.join(values)}: must be three factors from 1e-6 to 1e6, of Myo, LV and RV")
  return odds


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
