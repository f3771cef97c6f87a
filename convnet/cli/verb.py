"""What verbs share: what happens to every one (Ctrl-C, a reader that leaves, a stdout that can't be written), where
they compute, and how they print."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

from convnet.cli.progress_bar import plain
from convnet.errors import DiskError, Interrupted

if TYPE_CHECKING:
    from convnet.device import Device
    from convnet.evaluation.trained_net import TrainedNet

P = ParamSpec("P")


def choose_device(name: str, precision: str = "fp32") -> "Device":
    """The device that --device names, with its threads. Raises: UsageError when it isn't there."""
    from convnet import device, threads

    threads.configure()
    return device.choose(precision, name)


def load_net(checkpoint: Path, device: str) -> "TrainedNet":
    """The net of a checkpoint, or of a run's folder, on the device that --device names."""
    from convnet.evaluation.trained_net import TrainedNet

    return TrainedNet.load(checkpoint, choose_device(device))


def print_json(value: object) -> None:
    print(json.dumps(value, indent=1))


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(plain(line))


def left_out(counts: Mapping[str, int]) -> str:
    """What stands behind an n: how many pictures the store lacks."""
    return f" ({counts['skipped']:,} skipped, {counts['failed']:,} failed in preparing the store)"


def guarded(function: Callable[P, None]) -> Callable[P, None]:
    """The verb, with what the system does to it turned into errors of ours, or into silence for a reader that left."""

    @wraps(function)
    def verb(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            with _polite():
                function(*arguments, **options)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise Interrupted("stopped; run the same command again") from None
        except BrokenPipeError:  # the reader of our output has left, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            if error.filename is None:  # not a file of ours: the output
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise DiskError(f"stdout: {error.strerror}") from error
            raise DiskError(f"{os.fsdecode(error.filename)}: {error.strerror}") from error

    return verb


@contextmanager
def _polite() -> Iterator[None]:
    """SIGTERM and SIGHUP are what Ctrl-C is."""
    numbers = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    former = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
