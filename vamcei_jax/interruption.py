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
PATIENCE = 8.0  # seconds in which Python must be reached: a compilation, and a long step, hear of no signal


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

  A second one ends it at once. Where Python is not reached for PATIENCE seconds, the first one does.
  """
  noted = []
  if threading.current_thread() is not threading.main_thread():  # where signals cannot be heard
    yield noted
    return

  def note(number: int, frame) -> None:
    del frame
    noted.append(number)
    if len(noted) > 1:
      end(number, "stopped at once; the same command goes on from the last checkpoint")

  handlers = {number: signal.signal(number, note) for number in SIGNALS}
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  before = signal.set_wakeup_fd(writer)

  def watch() -> None:
    while (received := os.read(reader, 1)) and received[0] not in SIGNALS:
      pass
    if not received:
      return
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
      if noted:
        return
      time.sleep(0.1)
    unheard = f"stopped after {PATIENCE:.0f} s without an answer"
    _say(received[0], f"{unheard}; the same command goes on from the last checkpoint")
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
  print(f"{signal.Signals(number).name}: {state}", file=sys.stderr, flush=True)
