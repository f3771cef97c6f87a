"""How does progress look? A bar on a terminal, plain lines in a pipe, nothing when asked to be quiet; on stderr."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic

from rich.console import Console
from rich.live import Live
from rich.text import Text

from convnet.progress import Rate

EVERY_SECONDS = 10.0  # between plain lines
BAR = 12  # characters
NO_LIMIT = 1_000_000  # characters
PRINTABLE = str.maketrans(dict.fromkeys([*range(32), *range(127, 160)], "?"))


def plain(text: str) -> str:
    """`text` without control characters, so that a file's or class's name can't move the cursor or change colours."""
    return text.translate(PRINTABLE)


def state(rate: Rate, values: dict[str, str], unit: str = "pictures") -> str:
    """What matters most comes first, as a narrow terminal cuts the end.

    `1,024/5,000  0:05 left  812 pictures/s  loss 0.31`
    """
    parts = [f"{rate.done:,}/{rate.total:,}", f"{rate.left} left", f"{rate.per_second:,.0f} {unit}/s"]
    return "  ".join(parts + [f"{name} {value}" for name, value in values.items()])


def columns() -> int:
    """How many characters a line of results may have: the terminal's, as many as it likes in a pipe."""
    return shutil.get_terminal_size((NO_LIMIT, 24)).columns


class Lines:
    """Plain lines: what is worth noting, and every ten seconds how far the work is."""

    def __init__(self) -> None:
        self.what, self.rate, self.unit, self.last = "", Rate(0), "pictures", 0.0

    def start(self, what: str, total: int, done: int = 0, after: int = 0, unit: str = "pictures") -> None:
        self.what, self.rate, self.unit, self.last = what, Rate(total, done, after), unit, monotonic()

    def update(self, done: int, **values: str) -> None:
        self.rate.update(done)
        if monotonic() - self.last >= EVERY_SECONDS:
            self.last = monotonic()
            self.note(f"{self.what}: {state(self.rate, values, self.unit)}")

    def note(self, text: str) -> None:
        with suppress(OSError):  # whoever read stderr has left: no reason to stop the work
            print(plain(text), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}")

    def finish(self) -> None: ...


class Bar:
    """One live line: what, a bar, how far, the time left, and as much more as fits."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live: Live | None = None
        self.what, self.rate, self.unit = "", Rate(0), "pictures"

    def start(self, what: str, total: int, done: int = 0, after: int = 0, unit: str = "pictures") -> None:
        self.finish()
        self.what, self.rate, self.unit = what, Rate(total, done, after), unit
        self.live = Live(Text(), console=self.console, transient=True, refresh_per_second=5)
        self.live.start()

    def update(self, done: int, **values: str) -> None:
        self.rate.update(done)
        if self.live is not None:
            filled = BAR * done // max(self.rate.total, 1)
            bar = "━" * filled + "·" * (BAR - filled)
            line = plain(f"{self.what}  {bar}  {state(self.rate, values, self.unit)}")
            with suppress(OSError):
                self.live.update(Text(line, no_wrap=True, overflow="ellipsis"))

    def note(self, text: str) -> None:
        with suppress(OSError):
            self.console.print(plain(text), markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        with suppress(OSError):
            self.console.print(plain(f"warning: {text}"), style="yellow", markup=False, soft_wrap=True)

    def finish(self) -> None:
        if self.live is not None:
            with suppress(OSError):
                self.live.stop()
            self.live = None


class Quiet(Lines):
    """Warnings only."""

    def update(self, done: int, **values: str) -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        super().note(f"warning: {text}")


@contextmanager
def shown(quiet: bool) -> Iterator[Lines | Bar]:
    """What suits where stderr goes; the live line is gone and the cursor back when the block ends, however it ends."""
    progress = Quiet() if quiet else Bar() if sys.stderr.isatty() else Lines()
    try:
        yield progress
    finally:
        progress.finish()
