"""A run's curves as TensorBoard reads them: an event file beside the run's own record, from which it is made.

    loss/batch   top1_error/batch              of a batch, every few steps
    loss/train   top1_error/train              means over an epoch, while the net learns
    loss/validation   top1_error/validation   top5_error/validation
    rate                                       the learning rate
    pictures_per_second                        of an epoch's training

A value's place is the number of steps done. A run that goes on writes its whole record into a new file, so that nothing
is double or missing, whatever was lost when it was stopped, and empties the former file; the points before have the
time of that moment.
"""

import importlib.util
import io
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from convnet import hardware
from convnet.errors import UsageError
from convnet.io.atomic import disk_errors, in_place, write_atomic
from convnet.training import metrics_log
from convnet.training.metrics_log import Row

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

NAMES = "events.out.tfevents.*"  # as TensorBoard's own writers call theirs
TAGS = {
    "step": {"loss": "loss/batch", "error": "top1_error/batch", "lr": "rate"},
    "epoch": {
        "train_loss": "loss/train",
        "train_error": "top1_error/train",
        "val_loss": "loss/validation",
        "val_top1_error": "top1_error/validation",
        "val_top5_error": "top5_error/validation",
    },
}


def check() -> None:
    """Raises: UsageError, saying what to install, where TensorBoard's package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        install = f'pip install "{hardware.DISTRIBUTION}[tensorboard]"'
        raise UsageError(f"--tensorboard: the package tensorboard is missing: {install}, or leave the option out")


class Events:
    """The event file of a run."""

    def __init__(self, run: Path, timing: Path, rows: Iterable[Row]) -> None:
        """A new file with what the record has: `rows`, as they stand in metrics.jsonl. Raises: DiskError."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self.timing = timing
        former = sorted(run.glob(NAMES))
        self.path = run / NAMES.replace("*", f"{time.time_ns():020d}.{os.getpid()}")  # later ones are read later
        first = [
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)),  # who watches forgets others
        ]
        speeds = self._speeds()
        write_atomic(self.path, map(_record, [*first, *(_event(row, speeds) for row in rows)]))
        for path in former:
            write_atomic(path, b"")  # not unlinked: TensorBoard's reader of a file that goes never turns to the next

    def add(self, row: Row) -> None:
        """A row of the record; when this returns, the system has it. Raises: DiskError."""
        data = memoryview(_record(_event(row, self._speeds() if row["kind"] == "epoch" else {})))
        with disk_errors(self.path), open(self.path, "ab", buffering=0, opener=in_place) as file:
            while data:
                data = data[file.write(data) :]

    def _speeds(self) -> dict[object, float]:
        """Pictures a second of each epoch, which may have been trained in several parts."""
        seconds: dict[object, float] = {}
        pictures: dict[object, float] = {}
        for row in metrics_log.read(self.timing):
            for total, name in ((seconds, "seconds"), (pictures, "pictures")):
                total[row["epoch"]] = total.get(row["epoch"], 0.0) + float(row[name] or 0)
        return {epoch: pictures[epoch] / seconds[epoch] for epoch in seconds if seconds[epoch]}


def _event(row: Row, speeds: dict[object, float]) -> "Event":
    """What TensorBoard is told of a row."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = {tag: row.get(name) for name, tag in TAGS.get(str(row["kind"]), {}).items()}
    if row["kind"] == "epoch":
        values["pictures_per_second"] = speeds.get(row["epoch"], math.nan)
    shown = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items() if value is not None]
    return Event(wall_time=time.time(), step=int(row["step"] or 0), summary=Summary(value=shown))


def _record(event: "Event") -> bytes:
    """An event as it stands in the file: with its length, and the CRC-32C of each."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    RecordWriter(out := io.BytesIO()).write(event.SerializeToString())
    return out.getvalue()
