"""Results in order, whatever the threads do; a read that never returns holds up nobody."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from convnet.errors import DataError, Interrupted
from convnet.io import prefetch
from convnet.io.prefetch import in_order
from convnet.io.signals import Stop

HANGS = """
import signal, sys, threading
from convnet.cli.verb import guarded
from convnet.errors import ConvnetError
from convnet.io.prefetch import in_order

def work(n):
    print("reading", flush=True)
    threading.Event().wait()

signal.signal(signal.SIGINT, signal.default_int_handler)  # it's ignored where a shell began all this with &
try:
    guarded(lambda: list(in_order(work, range(3), "picture {}".format)))()
except ConvnetError as error:
    sys.exit(error.exit_code)
"""


@pytest.fixture
def never() -> threading.Event:
    return threading.Event()


@pytest.mark.parametrize(("n_threads", "window"), [(1, 1), (2, 1), (3, 7)])
def test_results_come_in_the_items_order(n_threads: int, window: int) -> None:
    taken, ready, before = [], threading.Event(), set(threading.enumerate())  # of another test one may still end

    def work(n: int) -> int:
        if n == 0 and n_threads > 1:
            assert ready.wait(30)  # until a later one is done
        ready.set()
        return n * n

    def items() -> "list[int]":
        return list(range(20))

    for square in in_order(work, items(), str, n_threads=n_threads, window=window):
        taken.append(square)
    assert taken == [n * n for n in range(20)]
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "reader"]


def test_no_more_than_the_window_is_asked_for_ahead() -> None:
    asked = []
    results = in_order(str, (asked.append(n) or n for n in range(10)), str, window=3)
    assert (next(results), len(asked)) == ("0", 4)
    assert (next(results), len(asked)) == ("1", 5)
    results.close()


def test_what_the_work_raises_is_raised_in_its_place() -> None:
    results = in_order(lambda n: 1 // n, [1, 0], str)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_read_that_never_returns_ends_by_name(monkeypatch: pytest.MonkeyPatch, never: threading.Event) -> None:
    monkeypatch.setattr(prefetch, "SECONDS", 0.2)
    monkeypatch.setattr(prefetch, "GRACE", 0.1)
    results = in_order(lambda n: never.wait() if n else n, [0, 1, 2], "picture {}".format)
    assert next(results) == 0
    with pytest.raises(DataError, match=r"picture 1 could not be read within 0.2 s: does the disk still answer\?"):
        next(results)
    never.set()


def test_whoever_asks_to_end_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch, never: threading.Event) -> None:
    monkeypatch.setattr(prefetch, "GRACE", 0.1)
    stop = Stop()
    stop.signal = signal.SIGTERM
    with pytest.raises(Interrupted, match="stopped while picture 0 was read"):
        next(in_order(lambda n: never.wait(), [0], "picture {}".format, stop=stop))
    never.set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_ends_though_its_threads_hang(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HANGS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reading\n"
        process.send_signal(number)
        assert process.wait(30) == 130
