"""How does progress look? A bar on a terminal, plain lines in a pipe, nothing when asked to be quiet; on stderr."""

import sys
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from convnet.progress import Rate

EVERY_SECONDS = 10.0  # between plain lines
PRINTABLE = str.maketrans(dict.fromkeys([*range(32), *range(127, 160)], "?"))


def plain(text: str) -> str:
    """`text` without control characters, so that a file's or class's name can't move the cursor or change colours."""
    return text.translate(PRINTABLE)


def state(rate: Rate, values: dict[str, str]) -> str:
    """`1,024/5,000  loss 0.31  812 pictures/s  0:05 left`."""
    parts = [f"{rate.done:,}/{rate.total:,}"]
    parts += [f"{name} {value}" for name, value in values.items()]
    parts += [f"{rate.per_second:,.0f} pictures/s", f"{rate.left} left"]
    return "  ".join(parts)


class Lines:
    """Plain lines: what is worth noting, and every ten seconds how far the work is."""

    def __init__(self) -> None:
        self.what, self.rate, self.last = "", Rate(0), 0.0

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.rate, self.last = what, Rate(total, done), monotonic()

    def update(self, done: int, **values: str) -> None:
        self.rate.update(done)
        if monotonic() - self.last >= EVERY_SECONDS:
            self.last = monotonic()
            self.note(f"{self.what}: {state(self.rate, values)}")

    def note(self, text: str) -> None:
        print(plain(text), file=sys.stderr, flush=True)  # noqa: T201 - this is the place that prints

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}")

    def finish(self) -> None: ...


class Bar:
    """One live line with a bar."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live: Progress | None = None
        self.task: TaskID | None = None
        self.rate = Rate(0)

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.finish()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), _state_column())
        self.live = Progress(*columns, console=self.console, transient=True)
        self.rate = Rate(total, done)
        self.task = self.live.add_task(plain(what), total=total, completed=done, state="")
        self.live.start()

    def update(self, done: int, **values: str) -> None:
        self.rate.update(done)
        if self.live is not None and self.task is not None:
            self.live.update(self.task, completed=done, state=plain(state(self.rate, values)))

    def note(self, text: str) -> None:
        self.console.print(plain(text), markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(plain(f"warning: {text}"), style="yellow", markup=False, soft_wrap=True)

    def finish(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


class Quiet(Lines):
    """Warnings only."""

    def start(self, what: str, total: int, done: int = 0) -> None: ...
    def update(self, done: int, **values: str) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...

    def warn(self, text: str) -> None:
        print(plain(f"warning: {text}"), file=sys.stderr, flush=True)  # noqa: T201


def _state_column() -> TextColumn:
    return TextColumn("{task.fields[state]}", markup=False)


def choose(quiet: bool) -> Lines | Bar:
    """What suits where stderr goes."""
    if quiet:
        return Quiet()
    return Bar() if sys.stderr.isatty() else Lines()
