"""SIGTERM and SIGINT: training saves its state after the current step and ends; other programs end at once.

A program may be killed at any time without damage to files. A signal lets it save the steps since the last checkpoint.
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
PATIENCE = 8.0  # seconds until the process ends: Python handles no signal during a compilation or a long step


def end_on_signals() -> None:
  """Makes SIGTERM and SIGINT end the program from now on."""
  for number in SIGNALS:
    signal.signal(number, lambda number, frame: end(number, "stopped"))


def end(number: int, state: str) -> NoReturn:
  """Ends the program with the exit code of a signal in shells, 130 or 143."""
  _say(number, state)
  sys.exit(128 + number)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
  """Yields a list to which the numbers of signals are appended, in place of ending the program.

  A second signal ends the program at once. A single signal does, if Python does not handle the signal
  within PATIENCE seconds.
  """
  noted: list[int] = []
  if threading.current_thread() is not threading.main_thread():  # other threads cannot handle signals
    yield noted
    return

  def note(number: int, frame) -> None:
    del frame
    noted.append(number)
    if len(noted) > 1:
      end(number, "stopped at once; the same command resumes from the last checkpoint")

  handlers = {number: signal.signal(number, note) for number in SIGNALS}
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  earlier_fd = signal.set_wakeup_fd(writer)

  def end_unless_handled() -> None:
    while (received := os.read(reader, 1)) and received[0] not in SIGNALS:
      pass
    if not received:
      return
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
      if noted:
        return
      time.sleep(0.1)
    reason = f"stopped after {PATIENCE:.0f} s without a response"
    _say(received[0], f"{reason}; the same command resumes from the last checkpoint")
    os._exit(128 + received[0])

  watcher = threading.Thread(target=end_unless_handled, daemon=True)
  watcher.start()
  try:
    yield noted
  finally:
    signal.set_wakeup_fd(earlier_fd)
    os.close(writer)  # ends the watcher
    watcher.join()
    os.close(reader)
    for number, handler in handlers.items():
      signal.signal(number, handler)


def _say(number: int, state: str) -> None:
  print(f"{signal.Signals(number).name}: {state}", file=sys.stderr, flush=True)
