"""Signal handling: the first SIGTERM or Ctrl-C asks the work to end, the second one leaves at once.

Python runs a signal's handler between two of its own instructions, so a step that computes for minutes in one operation
would be waited for. A thread of its own hears of the signal at once (`signal.set_wakeup_fd`): it leaves at the second
one, and after the first it waits for a few seconds and then cuts a piece of work that may be cut.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from convnet.errors import ConvnetError, Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a polite kill, a terminal that went away
PATIENCE = 1.0  # seconds for which a step is waited for before it is cut; to save VGG-A takes 9 more


class Stop:
    """Whether someone asked the run to end, and with which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._lock = threading.Lock()
        self._save: Callable[[], str] | None = None
        self.over = threading.Event()  # nobody listens any more

    def __bool__(self) -> bool:
        return self.signal is not None

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """A signal handler."""
        if self.signal is not None:
            os._exit(Interrupted.exit_code)  # asked twice: every file is whole at every moment
        self.signal = number

    @contextmanager
    def may_cut(self, save: Callable[[], str]) -> Iterator[None]:
        """Work within the block changes nothing that `save` keeps: the process may end in the middle of it.

        save: keeps what there is and returns what to tell the user; it's called in another thread.
        """
        with self._lock:
            self._save = save
        try:
            yield
        finally:
            with self._lock:  # held for good by whoever cuts
                self._save = None

    def cut(self, leave: Callable[[str], None]) -> None:
        """Waits for a block that may be cut, saves, and leaves by `leave`, which ends the process."""
        while not self.over.wait(0.05):
            with self._lock:
                if self._save is not None:
                    leave(self._save())


@contextmanager
def on_signals(leave: Callable[[str], None] = lambda text: None) -> Iterator[Stop]:
    """Within the block SIGINT, SIGTERM and SIGHUP set the Stop that it is given, instead of ending the process.

    leave: what tells the user that work was cut, just before the process ends.
    """
    stop = Stop()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    heard = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(reading, stop, leave), name="signals", daemon=True)
    listener.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(heard)
        for number, handler in former.items():
            signal.signal(number, handler)
        stop.over.set()
        os.close(writing)  # ends the listener
        listener.join()
        os.close(reading)


def _listen(reading: int, stop: Stop, leave: Callable[[str], None]) -> None:
    """Hears of signals at once, whatever the main thread computes; ends when the other end of the pipe is closed."""
    asked = False
    while heard := os.read(reading, 1):
        if heard[0] not in SIGNALS:
            continue
        if asked:
            os._exit(Interrupted.exit_code)
        asked = True
        threading.Thread(target=_cut_later, args=(stop, leave), name="cut", daemon=True).start()


def _cut_later(stop: Stop, leave: Callable[[str], None]) -> None:
    def end(text: str, code: int = Interrupted.exit_code) -> None:
        with suppress(Exception):
            leave(text)
        os._exit(code)

    if stop.over.wait(PATIENCE):
        return
    try:
        stop.cut(end)
    except ConvnetError as error:
        end(f"stopped; what was done since the last save could not be saved: {error}", error.exit_code)
