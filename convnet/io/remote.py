"""Files behind a URL, whole or by ranges: many at once, each checked before it is used, kept in a cache.

Threads fetch ahead of who reads. What a server doesn't give at once is asked for again: for some minutes when it can't
be reached, a few times when its bytes are wrong. What it refuses (403, 404) is an error that names the file. obstore
speaks HTTP and the storage of Amazon, Google and Azure.
"""

import os
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from queue import SimpleQueue
from time import monotonic, sleep
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from convnet import hardware
from convnet.errors import DataError, UsageError
from convnet.io.cache import Cache, own_folder
from convnet.io.urls import Url, without_secrets
from convnet.progress import SILENT, Progress

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

IN_FLIGHT = 64  # requests at once: 1,280 a second from a server 50 ms away
CONNECT, STALL = 10.0, 20.0  # seconds for a connection, and without a byte, before it is made anew
OPENING, PATIENCE = 15.0, 120.0  # seconds for which a server that can't be reached is asked again: at first, later
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds before asking again, each time twice as long
WRONG = 4  # times in a row that a server may send other bytes than the right ones
PIECE = 1 << 20  # bytes that come at once
VARIABLE, DEFAULT_GB = "CONVNET_CACHE_GB", 16.0  # what the cache may hold, of all URLs and for all processes together
ERROR = re.compile(r"status code: (\d{3}[\w ]*)|kind: (Timeout|Connect|Redirect|Builder)")
PASSING = ("408", "429", "5")  # how the codes begin of what may go well later
AGAIN = "mend that and run the same command again"
T = TypeVar("T")
Job = tuple[Callable[[], object], Future[object]]
Check = Callable[[bytes], bool]


class Remote:
    """The files below a URL; safe to use from several threads.

    Raises: UsageError when obstore isn't installed, or can make nothing of the URL.
    """

    def __init__(self, url: Url, progress: Progress = SILENT) -> None:
        self.url, self.progress, self.patience = url, progress, OPENING
        self._objects, self._folder = _open(url), ""
        self._cache: Cache | None = None
        self._jobs, self._threads, self._told = SimpleQueue[Job | None](), list[threading.Thread](), threading.Lock()
        weakref.finalize(self, _end, self._jobs, self._threads)

    def keep(self, folder: str) -> None:
        """From now on files are kept in the cache, in a folder of this name, and taken from there."""
        self.patience, self._folder, most = PATIENCE, folder, cache_bytes()
        own, why = own_folder()
        if own is not None and most:
            self._cache = Cache(own / "stores", most)
        elif most:
            self._warn(f"{self.url} is read without a cache, each time anew: {why}")

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Within it nothing is asked for again that the server doesn't give."""
        self.patience = 0.0
        try:
            yield
        finally:
            self.patience = PATIENCE

    def whole(self, name: str, most: int, is_whole: Check) -> bytes:
        """The bytes of a file that has at most `most`. Raises: DataError; NotThereError when there is none."""
        return self.call(lambda: self._kept(name, lambda: self._get(name, 0, None, most, is_whole), is_whole)).result()

    def part(self, name: str, first: int, length: int, is_whole: Check, called: str) -> bytes:
        """`length` bytes of a file, from byte `first` on; the cache calls them `called`. Raises: DataError."""
        return self._kept(called, lambda: self._get(name, first, length, length, is_whole), is_whole)

    def call(self, work: Callable[[], T]) -> Future[T]:
        """work() in one of the threads that fetch; one of them does it at once, as it may be waited for by all."""
        future = Future[T]()
        if threading.current_thread() in self._threads:
            _run(work, future)
            return future
        if len(self._threads) < IN_FLIGHT:
            self._threads.append(threading.Thread(target=_serve, args=(self._jobs,), name="fetcher", daemon=True))
            self._threads[-1].start()
        self._jobs.put((work, future))  # type: ignore[arg-type]
        return future

    def _kept(self, name: str, fetch: Callable[[], bytes], is_whole: Check) -> bytes:
        """A file or part out of the cache if it is whole there; otherwise fetched, and then kept."""
        if self._cache is None:
            return fetch()
        place = f"{self._folder}/{name}"
        if (data := self._cache.get(place)) is not None and is_whole(data):
            return data
        data = fetch()
        try:
            self._cache.add(place, data)
        except (OSError, DataError) as error:
            self._warn(f"{self._cache.folder} keeps no more: {error}")
        return data

    def _get(self, name: str, first: int, length: int | None, most: int, is_whole: Check) -> bytes:
        """Bytes for which `is_whole` holds; asked again as long as there is hope. Raises: DataError."""
        until, pause, n_wrong = monotonic() + self.patience, FIRST_PAUSE, 0
        while True:
            try:
                data = self._ask(name, first, length, most)
                if is_whole(data):
                    return data
                n_wrong, reason = n_wrong + 1, "the server sent damaged bytes"
                if n_wrong == WRONG:
                    raise DataError(f"{self.url / name}: {reason}, {WRONG} times in a row; is what lies there whole?")
            except _PassingError as error:
                reason, n_wrong = str(error), 0
                if monotonic() >= until:
                    raise DataError(f"{self.url / name} can't be read: {reason}; {AGAIN}") from error
            self._warn(f"{self.url / name}: {reason}; it is asked again (told once)")
            sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _ask(self, name: str, first: int, length: int | None, most: int) -> bytes:
        """What the server sends, which is looked at as it comes: it may never end.

        Raises: _PassingError; DataError for what asking again won't mend.
        """
        from obstore import get
        from obstore.exceptions import BaseError

        try:
            reply = get(self._objects, name, options={} if length is None else {"range": (first, first + length)})
            pieces, n = [], 0
            for piece in reply.stream(min_chunk_size=PIECE):
                n += len(piece)
                if n > most:
                    raise DataError(f"{self.url / name}: the server sends more than the {most:,} bytes that it may")
                pieces.append(bytes(piece))
        except FileNotFoundError as error:
            raise NotThereError(f"{self.url / name} is not there (404); {AGAIN}") from error
        except BaseError as error:
            reason, is_final = _reason(error)
            if is_final:
                raise DataError(f"{self.url / name} can't be read: {reason}; {AGAIN}") from error
            raise _PassingError(reason) from error
        return b"".join(pieces)

    def _warn(self, text: str) -> None:
        """One warning, whatever follows: what is wrong with a network is wrong for every request."""
        if self._told.acquire(blocking=False):
            self.progress.warn(text)


class NotThereError(DataError):
    """The server has no such file."""


class _PassingError(Exception):
    """What may go well the next time."""


class Ahead(Generic[T]):
    """What work(i) returns, begun by a Remote's threads before it is asked for."""

    def __init__(self, remote: Remote, work: Callable[[int], T]) -> None:
        self.remote, self.work = remote, work
        self._begun = dict[int, Future[T]]()

    def take(self, i: int) -> T:
        """work(i), which is waited for. Raises: what it raises."""
        return (self._begun.pop(i, None) or self._begin(i)).result()

    def parts(self, parts: Iterable[NDArray[np.int64]], n_ahead: int) -> Iterator[NDArray[np.int64]]:
        """The parts, while the work of at least `n_ahead` numbers that follow is begun, as far as there are so many."""
        coming, n = deque[NDArray[np.int64]](), 0
        try:
            for part in parts:
                self._begun |= {i: self._begin(i) for i in part.tolist() if i not in self._begun}
                coming.append(part)
                n += len(part)
                while n - len(coming[0]) >= n_ahead:
                    n -= len(coming[0])
                    yield coming.popleft()
            yield from coming
        except GeneratorExit:  # nobody will take them
            for future in list(self._begun.values()):
                future.cancel()
            self._begun.clear()
            raise

    def _begin(self, i: int) -> Future[T]:
        return self.remote.call(lambda: self.work(i))


def cache_bytes() -> int:
    """What the cache may hold. Raises: UsageError when the variable says no number."""
    text = os.environ.get(VARIABLE, str(DEFAULT_GB))
    if re.fullmatch(r"\d{1,9}(\.\d*)?", text):
        return int(float(text) * 1e9)
    raise UsageError(f"{VARIABLE}={text}: it must be a number of gigabytes, as 16 or 0.5; 0 keeps nothing")


def _open(url: Url) -> "ObjectStore":
    try:
        from obstore.exceptions import BaseError
        from obstore.store import HTTPStore, from_url
    except ImportError as error:
        hint = f'pip install "{hardware.DISTRIBUTION}[remote]"'
        raise UsageError(f"{url}: reading from a URL needs obstore; install it with: {hint}") from error
    try:
        is_plain = url.address.startswith("http:") or os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"
        options: ClientConfig = {
            "allow_http": is_plain,  # otherwise no redirect leads to plain HTTP either
            "default_headers": url.headers(),
            "connect_timeout": timedelta(seconds=CONNECT),
            "read_timeout": timedelta(seconds=STALL),
            "timeout": timedelta(days=1),  # of a whole file, which may be large
        }
        once: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=STALL)}  # we ask again, and say so
        if url.address.startswith("http"):
            return HTTPStore(url.address, client_options=options, retry_config=once)
        return from_url(url.address, client_options=options, retry_config=once)
    except (BaseError, ValueError) as error:
        raise UsageError(f"{url} is no URL of a store: {_first_line(error)}") from error


def _reason(error: Exception) -> tuple[str, bool]:
    """Why a request failed, and whether asking again is of no use."""
    from obstore.exceptions import NotSupportedError

    if isinstance(error, NotSupportedError):
        return "the server sends no parts of files (range requests)", True
    match = ERROR.search(str(error))
    if match is None:
        broken = "error sending request" in str(error)  # on a connection that was there before
        return "the connection broke off" if broken else _first_line(error), False
    code, kind = match[1], match[2]
    if code:
        return f"the server answers {code.strip()}", not code.startswith(PASSING)
    texts = {"Timeout": "no answer in time", "Connect": "no connection", "Redirect": "it redirects in a circle"}
    return texts.get(kind, _first_line(error)), kind in ("Redirect", "Builder")


def _first_line(error: Exception) -> str:
    return without_secrets(str(error).split("\n")[0])[:200]


def _serve(jobs: SimpleQueue[Job | None]) -> None:
    while _serve_one(jobs):  # which forgets the job, and with it whose it was
        pass


def _serve_one(jobs: SimpleQueue[Job | None]) -> bool:
    if (job := jobs.get()) is not None:
        _run(*job)
    return job is not None


def _run(work: Callable[[], T], future: Future[T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work())
        except BaseException as error:  # it's raised where the result is taken
            future.set_exception(error)


def _end(jobs: SimpleQueue[Job | None], threads: list[threading.Thread]) -> None:
    for _ in threads:
        jobs.put(None)
