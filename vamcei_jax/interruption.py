"""SIGTERM and SIGINT: training saves its state at the next step and ends; everything else ends at once.

A program may be killed at any time: what it has written is whole. Being asked is the polite form, which loses no step.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 8.0  # seconds in which the main thread must have heard of a signal: compilations hear nothing


def end_on_signals() -> None:
  """From now on SIGTERM and SIGINT end the program, wherever it is."""
  for number in SIGNALS:
    signal.signal(number, lambda number, frame: end(number, "stopped"))


def end(number: int, state: str) -> NoReturn:
  """Ends the program as a signal does in shells, with exit code 130 or 143."""
  _say(number, state)
  sys.exit(128 + number)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
  """Signals do not end the program in this block, but are noted: yields the list of their numbers.

  Where Python is not reached for PATIENCE seconds after a signal, as in a compilation, the program ends all the same.
  """
  noted = []
  if threading.current_thread() is not threading.main_thread():  # where signals cannot be heard
    yield noted
    return
  handlers = {number: signal.signal(number, lambda number, frame: noted.append(number)) for number in SIGNALS}
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  before = signal.set_wakeup_fd(writer)

  def watch() -> None:
    if not (received := os.read(reader, 1)) or received[0] not in SIGNALS:
      return
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
      if noted:
        return
      time.sleep(0.1)
    _say(received[0], "stopped in a compilation")
    os._exit(128 + received[0])

  watcher = threading.Thread(target=watch, daemon=True)
  watcher.start()
  try:
    yield noted
  finally:
    signal.set_wakeup_fd(before)
    os.close(writer)  # which the watcher hears
    watcher.join()
    os.close(reader)
    for number, handler in handlers.items():
      signal.signal(number, handler)


def _say(number: int, state: str) -> None:
  print(f"{signal.Signals(number).name}: {state}. The same command goes on from there.", file=sys.stderr, flush=True)
