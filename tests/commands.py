"""Command lines, run in this process or in another one."""

import atexit
import contextlib
import dataclasses
import gc
import importlib
import io
import signal
import sys
import threading
from pathlib import Path
from unittest import mock

from absl import app, flags, logging

from vamcei_jax.training.shutdown import SIGNALS

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Finished:
  """What a command line ended with; the fields are those of subprocess.CompletedProcess."""

  returncode: int
  stdout: str
  stderr: str


def command(*arguments):
  """The command line `python -m ARGUMENTS` of this checkout."""
  return [sys.executable, "-m", *map(str, arguments)]


def run_in_process(module, *arguments):
  """Runs `python -m MODULE ARGUMENTS` in this process: without its start, its imports and its first compilations.

  An exception that the command does not expect is raised here.
  """
  code, stdout, stderr = 0, io.StringIO(), io.StringIO()
  outputs = contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr)
  with _isolated(module), mock.patch.object(sys, "argv", [module, *map(str, arguments)]), outputs[0], outputs[1]:
    try:
      importlib.import_module(module).command()
    except SystemExit as ended:
      code = ended.code or 0
  return Finished(code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def _isolated(module):
  """Restores what a command line changes in its process: flags, signal handlers, hooks, garbage collector and folder.

  Flags of the libraries that it imports stay, as these are imported once.
  """
  app.define_help_flags()
  parsed, verbosity = flags.FLAGS.is_parsed(), logging.get_verbosity()
  handlers = {number: signal.getsignal(number) for number in SIGNALS}
  hooks = threading.excepthook, sys.unraisablehook
  thresholds = gc.get_threshold()
  try:
    with contextlib.chdir(ROOT):
      yield
  finally:
    for name in list(flags.FLAGS):
      if flags.FLAGS.find_module_defining_flag(name) == module or name.startswith("config."):
        delattr(flags.FLAGS, name)
    if not parsed:
      flags.FLAGS.unparse_flags()
    logging.set_verbosity(verbosity)
    for number, handler in handlers.items():
      signal.signal(number, handler)
    threading.excepthook, sys.unraisablehook = hooks
    gc.set_threshold(*thresholds)
    atexit.unregister(gc.freeze)


def error_of(finished):
  """The one line of an expected failure."""
  assert finished.returncode == 2, finished.stdout + finished.stderr
  errors = finished.stderr.strip().splitlines()
  assert len(errors) == 1, finished.stderr
  assert errors[0].startswith("error: ")
  return errors[0]
