"""What is whole of the probabilities that a stopped evaluation has already? The records in FILE.part.

FILE.part holds a line that says what is asked, and a record a picture: all its probabilities and their CRC-32. Who asks
the same again goes on behind the last whole record.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from convnet.evaluation.pictures import PICTURES
from convnet.io import atomic
from convnet.io.strict_json import Json
from convnet.progress import Progress

Floats = NDArray[np.float32]


class Records:
    """A picture's probabilities of all looks, float32 (width,), and their CRC-32; `n` of them, in a file that outlives
    a stop. start: the first record's place, bytes. digests: the sha256 of PICTURES pictures' at a time."""

    def __init__(self, file: IO[bytes], start: int, width: int) -> None:
        self.file, self.start, self.width, self.n = file, start, width, 0
        self.size = 4 * width + 4
        self.digests: list[bytes] = []

    def add(self, rows: Floats) -> None:
        """Appends those of the next pictures, (PICTURES, width) but for the last ones."""
        self._count(rows)
        for row in rows:
            data = row.tobytes()
            self.file.write(data + zlib.crc32(data).to_bytes(4, "little"))
        self.file.flush()
        os.fsync(self.file.fileno())

    def take(self) -> None:
        """Takes the whole records that are there, as many as were read at a time: batches then hold the same pictures
        as if never stopped, and give the same to the last bit. What follows them goes."""
        self.file.seek(self.start)
        while (rows := self._whole()) is not None:
            self._count(rows)
        self.file.seek(self.start + self.n * self.size)
        self.file.truncate()

    def columns(self, first: int, n: int) -> Iterator[bytes]:
        """`n` numbers of each record, from its `first` on."""
        for i in range(self.n):
            yield os.pread(self.file.fileno(), 4 * n, self.start + i * self.size + 4 * first)

    def _whole(self) -> Floats | None:
        """The next PICTURES records' probabilities; None where one is missing or damaged."""
        data = self.file.read(PICTURES * self.size)
        records = [data[i : i + self.size] for i in range(0, len(data), self.size)]
        if len(data) < PICTURES * self.size or any(zlib.crc32(r[:-4]).to_bytes(4, "little") != r[-4:] for r in records):
            return None
        return np.frombuffer(b"".join(record[:-4] for record in records), np.float32).reshape(PICTURES, self.width)

    def _count(self, rows: Floats) -> None:
        self.n += len(rows)
        self.digests.append(digest(rows))


def digest(rows: Floats) -> bytes:
    """The sha256 of some pictures' probabilities, picture by picture."""
    return hashlib.sha256(np.ascontiguousarray(rows).data).digest()


def part_of(path: Path) -> Path:
    """The file of the records."""
    return path.with_name(f"{path.name}.part")


def forget(path: Path) -> None:
    """Removes the records, once what they were for is there. Raises: DiskError."""
    with atomic.disk_errors(part_of(path)):
        part_of(path).unlink(missing_ok=True)


@contextmanager
def opened(path: Path, meta: Json, width: int, progress: Progress) -> Iterator[Records]:
    """The records so far in FILE.part, which goes when the block ends well; `meta` says what is asked."""
    question = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest().encode() + b"\n"
    part = part_of(path)
    with atomic.disk_errors(part):
        with open(atomic.in_place(part, os.O_RDWR | os.O_CREAT), "r+b") as file:
            records = Records(file, len(question), width)
            if (there := file.read(len(question))) != question:
                if there:
                    progress.warn(f"{part} is about other nets, views or pictures, or damaged; it is written anew")
                file.seek(0)
                file.write(question)
                file.truncate()
            records.take()
            yield records
    forget(path)
