"""How long work tells how far it is: the verbs report numbers here, and the command decides how they look."""

from time import monotonic
from typing import Protocol


class Progress(Protocol):
    """What a verb is given to report to. `total` counts pictures, or `unit`s; extra values are shown as they are."""

    def start(self, what: str, total: int, done: int = 0, after: int = 0, unit: str = "pictures") -> None:
        """Work begins; `done` pictures were finished before (a resumed run), `after` more follow in later pieces."""

    def update(self, done: int, **values: str) -> None:
        """`done` pictures of the total are finished."""

    def note(self, text: str) -> None:
        """One line that stays on the screen."""

    def warn(self, text: str) -> None:
        """One line that stays, and that the user should act on."""

    def finish(self) -> None:
        """The work that was started has ended."""


class Silent:
    """Reports nothing."""

    def __repr__(self) -> str:
        return "SILENT"  # as signatures show it

    def start(self, what: str, total: int, done: int = 0, after: int = 0, unit: str = "pictures") -> None: ...
    def update(self, done: int, **values: str) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def finish(self) -> None: ...


SILENT = Silent()


class Rate:
    """Pictures per second and the time left, from what this process did itself (so right after a resume too)."""

    def __init__(self, total: int, done: int = 0, after: int = 0) -> None:
        self.total, self.first, self.done, self.after, self.began = total, done, done, after, monotonic()

    def update(self, done: int) -> None:
        self.done = done

    @property
    def per_second(self) -> float:
        return (self.done - self.first) / max(monotonic() - self.began, 1e-9)

    @property
    def left(self) -> str:
        """The time left as `3:07` or `1:02:45`, or `?` before anything is done."""
        if self.done <= self.first:
            return "?"
        return clock((self.total - self.done + self.after) / self.per_second)


def clock(seconds: float) -> str:
    """`3:07`, `1:02:45`.

    >>> clock(187.2), clock(3765)
    ('3:07', '1:02:45')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
