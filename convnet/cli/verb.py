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
from convnet.errors import DataError, DiskError, Interrupted
from convnet.progress import Progress

if TYPE_CHECKING:
    from convnet.device import Device
    from convnet.evaluation.trained_net import TrainedNet
    from convnet.io.signals import Stop

P = ParamSpec("P")


def choose_device(name: str, precision: str = "fp32") -> "Device":
    """The device that --device names, with its threads. Raises: UsageError when it isn't there."""
    from convnet import device, threads

    threads.configure()
    chosen = device.choose(precision, name)
    if chosen.device.type == "cpu":
        device.keep_memory()  # VGG's first maps, cleared anew for every batch, took a third of their convolution's time
    return chosen


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
def stopping(again: str, folder: Path, progress: Progress) -> Iterator["Stop"]:
    """Asks the run in `folder` to end on a signal; whatever ends it says by which command, `again`, it goes on."""
    from convnet.io.signals import on_signals
    from convnet.training.series import has_begun

    def leave(text: str) -> None:
        progress.finish()
        print(f"convnet: {plain(text)}; go on with: {again}", file=sys.stderr, flush=True)

    try:
        with on_signals(leave) as stop:
            yield stop
    except Interrupted as error:
        raise Interrupted(f"{error}; go on with: {again}") from error
    except (DataError, DiskError) as error:
        if not has_begun(folder):
            raise  # nothing is there to go on with
        raise type(error)(str(error).replace("run the same command again", f"go on with: {again}")) from error


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
