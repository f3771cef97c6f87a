"""Work in threads whose results come in the order of the items, a few ahead of who asks.

A read may never return, as from a network disk that is gone. It holds up nobody for good: a result is waited for
`SECONDS` at most, whoever asks a run to end is heard meanwhile, and a thread that hangs ends with the process.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import TypeVar

from convnet.errors import DataError, Interrupted
from convnet.io.signals import Stop

SECONDS = 300.0  # for which a result is waited for: a few pictures take one, from a slow disk some
LISTEN = 0.2  # seconds between two looks at whether the run is asked to end
GRACE = 2.0  # seconds in which the threads may end what they are at
T = TypeVar("T")
R = TypeVar("R")
Jobs = SimpleQueue[Callable[[], None] | None]


def in_order(
    work: Callable[[T], R],
    items: Iterable[T],
    told: Callable[[T], str],
    *,
    n_threads: int = 1,
    window: int = 1,
    stop: Stop | None = None,
) -> Iterator[R]:
    """The results of work(item) in the items' order, with at most `window` items ahead; told(item) says what is read.

    Raises: what `work` raises; DataError for a result that doesn't come; Interrupted when `stop` is asked meanwhile.
    """
    jobs, ahead = Jobs(), deque[tuple[T, Future[R]]]()
    threads = [Thread(target=_works, args=(jobs,), name="reader", daemon=True) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    try:
        for item in items:
            ahead.append((item, _submitted(jobs, work, item)))
            if len(ahead) > window:
                yield _result(*ahead.popleft(), told, stop)
        while ahead:
            yield _result(*ahead.popleft(), told, stop)
    finally:
        for _, future in ahead:
            future.cancel()
        for _ in threads:
            jobs.put(None)
        until = monotonic() + GRACE
        for thread in threads:
            thread.join(max(0.0, until - monotonic()))


def _works(jobs: Jobs) -> None:
    while (job := jobs.get()) is not None:
        job()


def _submitted(jobs: Jobs, work: Callable[[T], R], item: T) -> Future[R]:
    future = Future[R]()

    def job() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work(item))
        except BaseException as error:  # it's raised where the result is taken
            future.set_exception(error)

    jobs.put(job)
    return future


def _result(item: T, future: Future[R], told: Callable[[T], str], stop: Stop | None) -> R:
    until = monotonic() + SECONDS
    while not wait([future], min(LISTEN, SECONDS)).done:
        if stop:
            raise Interrupted(f"stopped while {told(item)} was read")
        if monotonic() > until:
            raise DataError(
                f"{told(item)} could not be read within {SECONDS:g} s: does the disk still answer? Mend that and run "
                "the same command again"
            )
    return future.result()
