"""How does a run end when it is told to? The first SIGTERM or Ctrl-C asks, the second one leaves at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from convnet.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a polite kill, a terminal that went away


class Stop:
    """Whether someone asked the run to end, and with which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """A signal handler."""
        if self.signal is not None:
            os._exit(Interrupted.exit_code)  # asked twice: every file is whole at every moment
        self.signal = number


@contextmanager
def on_signals() -> Iterator[Stop]:
    """Within the block SIGINT, SIGTERM and SIGHUP set the Stop that it is given, instead of ending the process."""
    stop = Stop()
    former = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
