"""One thread that owns the net: short questions in the order in which they come, long ones with their progress.

Both queues are bounded; who finds one full is told to ask again. While a long question tells its progress, the short
ones that wait are answered.
"""

import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from convnet.errors import ConvnetError, Interrupted
from convnet.io.strict_json import Json
from convnet.progress import Silent

T = TypeVar("T")
SHORT, LONG = 128, 4  # questions that wait, at most
KEPT = 32  # long ones that have ended and are remembered


class Busy(ConvnetError):  # noqa: N818 - the state of the queue
    """Too many questions wait."""


class Job(Silent, Generic[T]):
    """A long question: what is asked, how far it is, and what came out. It is the Progress of its own work."""

    def __init__(self, function: Callable[["Job[T]"], T], answer_others: Callable[[], None]) -> None:
        self.id = secrets.token_hex(8)
        self.function, self.answer_others = function, answer_others
        self.state, self.done, self.total, self.error = "waiting", 0, 0, ""
        self.result: T | None = None
        self.is_unwanted = False

    def start(self, what: str, total: int, done: int = 0, after: int = 0, unit: str = "pictures") -> None:
        self.done, self.total = done, total

    def update(self, done: int, **values: str) -> None:
        self.done = done
        if self.is_unwanted:
            raise Interrupted("nobody waits for it any more")
        self.answer_others()

    def run(self) -> None:
        """Asks; whatever comes of it is here afterwards."""
        self.state = "running"
        try:
            if self.is_unwanted:
                raise Interrupted("nobody waits for it any more")
            self.result = self.function(self)
            self.state = "done"
        except Exception as error:
            self.state, self.error = "failed", f"{error}" if isinstance(error, ConvnetError) else type(error).__name__

    def to_dict(self) -> Json:
        """As JSON can hold it."""
        told = {"id": self.id, "state": self.state, "done": self.done, "total": self.total}
        return told | {"error": self.error or None, "result": self.result}


class Worker:
    """The thread, from now on until the process ends."""

    def __init__(self, short: int = SHORT, long: int = LONG) -> None:
        self.n_short, self.n_long = short, long
        self._changed = threading.Condition()
        self._short = deque[tuple[Callable[[], object], Future[object]]]()
        self._long = deque[Job[object]]()
        self._jobs = OrderedDict[str, Job[object]]()
        threading.Thread(target=self._work, name="net", daemon=True).start()

    def ask(self, function: Callable[[], T]) -> "Future[T]":
        """What the function will return, or raise, in the thread. Raises: Busy."""
        future: Future[T] = Future()
        with self._changed:
            if len(self._short) >= self.n_short:
                raise Busy(f"{self.n_short} questions wait already; ask again in a moment")
            self._short.append((function, future))  # type: ignore[arg-type]
            self._changed.notify()
        return future

    def begin(self, function: Callable[[Job[object]], object]) -> Job[object]:
        """A long question, which is asked in its turn. Raises: Busy."""
        job = Job(function, self._answer_short)
        with self._changed:
            if len(self._long) >= self.n_long:
                raise Busy(f"{self.n_long} long questions wait already; ask again when one has ended")
            self._long.append(job)
            self._jobs[job.id] = job
            for name in [name for name, each in self._jobs.items() if each.state in ("done", "failed")][:-KEPT]:
                del self._jobs[name]
            self._changed.notify()
        return job

    def job(self, name: str) -> Job[object] | None:
        with self._changed:
            return self._jobs.get(name)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._short or self._long)
                job = None if self._short else self._long.popleft()
            if job is None:
                self._answer_short()
            else:
                job.run()

    def _answer_short(self) -> None:
        """The short questions that wait."""
        while True:
            with self._changed:
                if not self._short:
                    return
                function, future = self._short.popleft()
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)
