"""Prefetching: work in threads whose results come in the order of the items, a few ahead of who asks.

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


def in_order(
    work: Callable[[T], R],
    items: Iterable[T],
    describe: Callable[[T], str],
    *,
    n_threads: int = 1,
    window: int = 1,
    stop: Stop | None = None,
) -> Iterator[R]:
    """The results of work(item) in the items' order, with at most `window` items ahead.

    describe: says for an error what is read for an item.

    Raises: what `work` raises; DataError for a result that doesn't come; Interrupted when `stop` is asked meanwhile.
    """
    jobs, ahead = SimpleQueue[tuple[T, Future[R]] | None](), deque[tuple[T, Future[R]]]()
    threads = [Thread(target=_run, args=(work, jobs), name="reader", daemon=True) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    try:
        for item in items:
            ahead.append((item, Future[R]()))
            jobs.put(ahead[-1])
            if len(ahead) > window:
                yield _result(*ahead.popleft(), describe, stop)
        while ahead:
            yield _result(*ahead.popleft(), describe, stop)
    finally:
        for _, future in ahead:
            future.cancel()
        for _ in threads:
            jobs.put(None)
        until = monotonic() + GRACE
        for thread in threads:
            thread.join(max(0.0, until - monotonic()))


def _run(work: Callable[[T], R], jobs: SimpleQueue[tuple[T, Future[R]] | None]) -> None:
    while (job := jobs.get()) is not None:
        item, future = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(item))
            except BaseException as error:  # it's raised where the result is taken
                future.set_exception(error)


def _result(item: T, future: Future[R], describe: Callable[[T], str], stop: Stop | None) -> R:
    until = monotonic() + SECONDS
    while not wait([future], min(LISTEN, SECONDS)).done:
        if stop:
            raise Interrupted(f"stopped while {describe(item)} was read")
        if monotonic() > until:
            what = f"{describe(item)} could not be read within {SECONDS:g} s"
            raise DataError(f"{what}: does the disk still answer? Mend that and run the same command again")
    return future.result()
