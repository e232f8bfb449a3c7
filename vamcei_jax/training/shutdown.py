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
REPEAT = 1.0  # seconds within which the same signal counts once: schedulers may send it twice in a row


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

  A second signal ends the program at once, unless it repeats the first one within REPEAT seconds. A single signal does,
  if Python does not handle it within PATIENCE seconds.
  """
  noted: list[int] = []
  received: list[float] = []
  if threading.current_thread() is not threading.main_thread():  # other threads cannot handle signals
    yield noted
    return

  def note(number: int, frame) -> None:
    del frame
    noted.append(number)
    received.append(time.monotonic())
    if len(noted) > 1 and (number != noted[0] or received[-1] - received[0] > REPEAT):
      end(number, "stopped at once; the same command resumes from the last checkpoint")

  handlers = {number: signal.signal(number, note) for number in SIGNALS}
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  earlier_fd = signal.set_wakeup_fd(writer)

  def end_unless_handled() -> None:
    while (byte := os.read(reader, 1)) and byte[0] not in SIGNALS:
      pass
    if not byte:
      return
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
      if noted:
        return
      time.sleep(0.1)
    reason = f"stopped after {PATIENCE:.0f} s without a response"
    _say(byte[0], f"{reason}; the same command resumes from the last checkpoint")
    os._exit(128 + byte[0])

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
