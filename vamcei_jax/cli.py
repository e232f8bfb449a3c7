"""What the command lines share: flags, one-line errors with exit code 2, and the folder of compiled programs."""

import ast
import atexit
import codecs
import contextlib
import errno
import functools
import gc
import hashlib
import io
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from traceback import walk_tb
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from vamcei_jax.config.schema import InferenceConfig, find_record, records
from vamcei_jax.environment import set_variables
from vamcei_jax.errors import InputError
from vamcei_jax.files import expanded, writable
from vamcei_jax.training.shutdown import end_on_signals
from vamcei_jax.usage import MORE, clear_groups, format_help, format_usage, group, groups, missing_flags

flags.disclaim_key_flags()  # a flag belongs to the command line that defines it

_PLAIN = {"±": "+-", "–": "-", "−": "-", "×": "x"}  # in terminals without these characters
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def run(define_flags: Callable[[], None], main: Callable[[], None], doc: str | None) -> NoReturn:
  """Runs a command line, and ends the program.

  Args:
    define_flags: defines the flags of the command, see usage.group.
    main: the command; its InputErrors are printed in one line.
    doc: docstring of the command's file; --help prints its parts, see usage.format_help.
  """
  collect_garbage_seldom()
  set_variables()
  # Hide the warnings of XLA. Errors that matter are raised as well.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  make_printable()
  clear_groups()
  with group("flags"):
    define_flags()
  with group(MORE):
    flags.DEFINE_string(
      "compiled", "~/.cache/vamcei_jax/compiled", "DIR: Folder of compiled programs; later commands reuse them."
    )
  if doc:
    answer_help(doc, sys.argv[1:])

  def guarded(argv: list[str]) -> None:
    del argv
    # Hide the libraries' progress. The errors that they log are raised as well.
    logging.set_verbosity(logging.FATAL)
    end_on_signals()
    silence_later_errors()
    try:
      if not flags.FLAGS.compiled:
        raise InputError("--compiled=: empty; name a folder")
      set_compilation_cache(Path(flags.FLAGS.compiled))
      main()
      sys.stdout.flush()
    except InputError as error:
      fail(str(error))
    except BrokenPipeError:
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again when it ends
      fail("the program that reads the output has ended; send the output to a file")
    except Exception as error:
      if is_disk_full(error):
        _print_error("the disk is full; free some space, and give the same command again")
        os._exit(2)  # further writes at exit would fail, too
      if not isinstance(error, OSError) or error.filename is None:
        raise
      fail(f"{error.filename}: {error.strerror}")

  app.run(guarded, flags_parser=parse)
  raise SystemExit  # app.run does not return


def collect_garbage_seldom() -> None:
  """Lets Python's garbage collector run less often, and not at exit; so commands start and end faster.

  JAX's imports and its tracing make many objects that stay. By default, the collector looks through them again and
  again.
  """
  gc.set_threshold(50_000)  # new objects; 700 or 2,000 by default
  atexit.register(gc.freeze)


def answer_help(doc: str, arguments: list[str]) -> None:
  """Prints the help and ends the program where it is asked for, or where required flags and all others are missing."""
  if {"--help", "-help", "-h"} & set(arguments):
    print(format_help(doc, groups()))
    sys.exit(0)
  if not arguments and missing_flags(groups()):
    print(format_usage(doc, groups()), file=sys.stderr)
    sys.exit(2)


def define_inference_flags(*names: str) -> None:
  """Defines a flag for each of these fields of InferenceConfig; a flag that is not given is None."""
  known = dict(records(InferenceConfig))
  for name in names:
    record = known[name]
    if isinstance(record.default, bool):
      flags.DEFINE_bool(name, None, record.sentence)
    elif isinstance(record.default, int):
      flags.DEFINE_integer(name, None, record.sentence, 0)
    else:
      flags.DEFINE_float(name, None, record.sentence)
      check = lambda value, rule=record.rule: value is None or rule.accepts(value)
      flags.register_validator(name, check, f"must be {record.rule.expected}")


def inference_options(*names: str) -> dict[str, Any]:
  """The fields of InferenceConfig that flags of define_inference_flags set."""
  return {name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].value is not None}


def required_path(flag: str) -> Path:
  """The path in a required flag.

  Raises:
    InputError: the flag is empty.
  """
  path = path_of(flag)
  assert path is not None, flag  # absl requires the flag
  return path


def path_of(flag: str) -> Path | None:
  """The path in a flag, with the home folder in place of a leading ~; None if the flag is not given.

  Raises:
    InputError: the flag is given and empty, or there is no home folder.
  """
  value = flags.FLAGS[flag].value
  if value == "":
    raise InputError(f"--{flag}=: empty; name a folder or a file")
  return None if value is None else expanded(value)  # shells expand no ~ after "="


def parse_values(text: str) -> Any:
  """The Python values in the text of a flag; the text itself if it holds none."""
  try:
    return ast.literal_eval(text)
  except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
    return text


def set_compilation_cache(folder: Path) -> None:
  """Keeps compiled programs in a folder, unless JAX_COMPILATION_CACHE_DIR names another one.

  To be called before JAX is imported. A folder that cannot be written is named, and programs are then compiled each
  time. CPU programs use the instructions of the processor, and JAX does not check that before it runs a cached one, so
  each kind of processor has its own subfolder. By default, JAX keeps what takes it a second to compile. Here, it also
  keeps the network of `predict`, which takes less.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = sorted({line for line in lines if line.startswith(("flags", "Features"))})
  except OSError:  # not Linux
    processor = [platform.machine(), platform.processor()]
  kind = hashlib.sha256("\n".join(processor).encode()).hexdigest()[:12]
  way_out = "name another folder: --compiled=DIR"
  try:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(writable(expanded(folder, way_out) / kind, way_out))
  except InputError as error:
    print(f"compiled programs are not kept: {error}", file=sys.stderr)


def make_printable() -> None:
  """Lets the output print all characters: those that its encoding lacks are replaced."""
  codecs.register_error("replace_unprintable", _replace_unprintable)
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="replace_unprintable")


def _replace_unprintable(error: UnicodeError) -> tuple[str, int]:
  assert isinstance(error, UnicodeEncodeError)
  return _PLAIN.get(error.object[error.start], "?"), error.start + 1


def hint_huge_pages() -> None:
  """Prints one line if glibc could use huge pages and does not: training on the CPU is then slower.

  XLA allocates a step's memory by glibc, and frees it after the step. With ordinary pages, a tenth to a quarter of the
  time goes into that (experiments/results/notes.md).
  """
  try:
    on_request = "[madvise]" in _HUGE_PAGES.read_text(encoding="utf-8")
  except OSError:
    return
  if on_request and "glibc.malloc.hugetlb" not in os.environ.get("GLIBC_TUNABLES", ""):
    print("training on this CPU is faster with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment", flush=True)


def silence_later_errors() -> None:
  """Hides errors of threads and coroutines that follow the error of a command: a full disk, or reads by Orbax.

  Orbax stops at the first array that it cannot read, and raises that error. Its reads of other arrays then fail, too.
  """
  thread_hook, unraisable_hook = threading.excepthook, sys.unraisablehook
  follows = lambda error: is_disk_full(error) or str(error) == "Event loop is closed"
  in_orbax = lambda trace: any("orbax" in Path(frame.f_code.co_filename).parts for frame, _ in walk_tb(trace))
  hidden = lambda details: follows(details.exc_value) or in_orbax(details.exc_traceback)
  threading.excepthook = lambda details: None if follows(details.exc_value) else thread_hook(details)
  sys.unraisablehook = lambda details: None if hidden(details) else unraisable_hook(details)


def is_disk_full(error: BaseException | None) -> bool:
  """Whether a full device or quota caused the error."""
  full = (errno.ENOSPC, errno.EDQUOT)
  while error is not None:
    if getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full):
      return True
    error = error.__cause__ or error.__context__
  return False


def config_path() -> Path:
  """The file that --config names.

  Raises:
    InputError: it does not exist.
  """
  path = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
  if not path.is_file():
    raise InputError(f"{path}: no such config; see configs/")
  return path


def parse(argv: list[str]) -> list[str]:
  """Parses flags and configuration overrides; an error is printed in one line."""
  sys.argv, optional = split_optional(argv)  # config_flags reads sys.argv
  try:
    rest = flags.FLAGS(sys.argv)
    for name, value in optional.items():
      set_field(flags.FLAGS.config, name, value)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError, ImportError) as error:
    # An unknown field is an AttributeError that wraps a KeyError, whose str() is the repr of its message.
    cause: BaseException = error
    while cause.args and isinstance(cause.args[0], Exception):
      cause = cause.args[0]
    fail(f"unknown config field {cause.args[0]}" if isinstance(cause, KeyError) else str(cause))
  if rest[1:]:
    fail(f"unexpected argument {rest[1]}; flags are written --name=value")
  if missing := missing_flags(groups()):
    fail(missing)
  return rest


def split_optional(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
  """The overrides of fields that may be None are split off: config_flags keeps the type of the config's value.

  Returns:
    The other arguments, and name of a field -> value.
  """
  rest, optional = [], {}
  with_config = any(argument.startswith("--config=") for argument in argv)
  for argument in argv:
    name, equals, text = argument.removeprefix("--config.").partition("=")
    record = find_record(re.sub(r"^stage\.\w+\.", "", name)) if argument.startswith("--config.") and equals else None
    if with_config and record is not None and record.rule.accepts(None):
      readings = [*_readings(text), text]
      optional[name] = next(filter(record.rule.accepts, readings), readings[0])
    else:
      rest.append(argument)
  return rest, optional


def _readings(text: str) -> Iterator[Any]:
  """What an override may mean, the first choice first."""
  if text == "None":
    yield None
  with contextlib.suppress(ValueError):
    yield float(text)
  with contextlib.suppress(MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
    yield ast.literal_eval(text)


def set_field(config: ConfigDict, name: str, value: Any) -> None:
  """Sets a field of a config by its dotted name. Raises an AttributeError or KeyError if there is no such section."""
  *sections, field = name.split(".")
  section = functools.reduce(getattr, sections, config)
  with section.unlocked(), section.ignore_type():
    section[field] = value


def fail(message: str) -> NoReturn:
  """Prints one line on stderr, and ends the program with exit code 2."""
  _print_error(message)
  sys.exit(2)


def end(failures: Iterable[str]) -> None:
  """Ends a program that skipped some of its files: a line for each on stderr, and exit code 1 if there are any."""
  failures = list(dict.fromkeys(failures))
  for failure in failures:
    _print_error(failure)
  if failures:
    sys.exit(1)


def _print_error(message: str) -> None:
  print(f"error: {' '.join(message.split())}", file=sys.stderr)
