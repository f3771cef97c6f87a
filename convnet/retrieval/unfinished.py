"""What of several files that grow together is whole, when the work on them was stopped?

Each grows as NAME.part. JOURNAL's lines say, after each step, how much of the work is done, how long each file is by
then, and the CRC-32 of what it has gained. The same work goes on behind the last step whose bytes are all there.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from convnet.errors import UsageError
from convnet.io import atomic, strict_json
from convnet.io.strict_json import Json

JOURNAL = "unfinished.jsonl"


class Unfinished:
    """Files in a folder that grow step by step; `state` is what the last step said of the work."""

    def __init__(
        self, folder: Path, journal: IO[bytes], files: Mapping[str, IO[bytes]], rooms: Mapping[str, int]
    ) -> None:
        self.folder, self.journal, self.files = folder, journal, files
        self.state: Json = {}
        self.sizes = dict(rooms)  # bytes; at first those that are left for a head

    def add(self, pieces: Mapping[str, bytes], state: Json) -> None:
        """Appends a step's bytes to the files. What the system has outlives this process, and its CRC a power cut."""
        gained = {}
        for name, data in pieces.items():
            self.files[name].write(data)
            self.files[name].flush()
            self.sizes[name] += len(data)
            gained[name] = [self.sizes[name], zlib.crc32(data)]
        self.state = state
        self.journal.write(_line({"state": state, "files": gained}))
        self.journal.flush()

    def take(self, question: str) -> None:
        """Takes the steps that are whole, and cuts off what follows them.

        Raises: UsageError where they are of another question.
        """
        first, *lines = self.journal.read().split(b"\n")
        row = _row(first)
        if row is not None and row != {"question": question}:
            raise UsageError(f"{self.folder} holds other work that is unfinished; choose another folder, or remove it")
        whole = 0
        for name, file in self.files.items():
            file.seek(self.sizes[name])
        for line in lines if row is not None else ():
            if (step := _row(line)) is None or not all(
                self._is_whole(name, *gain) for name, gain in step["files"].items()
            ):
                break
            self.sizes |= {name: size for name, (size, _) in step["files"].items()}
            self.state, whole = step["state"], whole + len(line) + 1
        self._cut(_line({"question": question}), whole)

    def _is_whole(self, name: str, size: int, crc: int) -> bool:
        return zlib.crc32(self.files[name].read(size - self.sizes[name])) == crc

    def _cut(self, first: bytes, whole: int) -> None:
        self.journal.seek(0)
        self.journal.write(first)
        self.journal.truncate(self.journal.seek(len(first) + whole))
        self.journal.flush()
        for name, file in self.files.items():
            file.truncate(file.seek(self.sizes[name]))

    def finish(self, name: str, head: bytes) -> Path:
        """Writes a file's head into its room, and gives it its own name, durably but for the folder."""
        file, path = self.files[name], self.folder / name
        file.seek(0)
        file.write(head)
        file.flush()
        os.fsync(file.fileno())
        os.replace(part_of(path), path)
        return path


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


@contextmanager
def opened(folder: Path, rooms: Mapping[str, int], question: str) -> Iterator[Unfinished]:
    """The files of the names in `rooms`, as far as they are whole; rooms: the bytes that each leaves for its head.

    Raises: UsageError where they are of another `question`, which is a text; DiskError.
    """
    with atomic.disk_errors(folder), ExitStack() as stack:  # closing a file writes too
        journal = stack.enter_context(_open(folder / JOURNAL))
        atomic.sync_folder(folder)  # first of all names: who finds a part finds the journal too
        files = {name: stack.enter_context(_part(folder / name)) for name in rooms}
        unfinished = Unfinished(folder, journal, files, rooms)
        unfinished.take(question)
        yield unfinished


def forget(folder: Path) -> None:
    """Removes the journal and all parts, once the work is done. Raises: DiskError."""
    with atomic.disk_errors(folder):
        for path in (*folder.glob("*.part"), folder / JOURNAL):
            path.unlink(missing_ok=True)


def _part(path: Path) -> IO[bytes]:
    if path.exists() and not part_of(path).exists():  # stopped while it was finished
        os.replace(path, part_of(path))
    return _open(part_of(path))


def _open(path: Path) -> IO[bytes]:
    return open(atomic.in_place(path, os.O_RDWR | os.O_CREAT), "r+b")


def _line(row: Json) -> bytes:
    text = json.dumps(row).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _row(line: bytes) -> Json | None:
    """None for a line that isn't whole."""
    with suppress(ValueError):
        if int(line[:8], 16) == zlib.crc32(line[9:]):
            return strict_json.parse(line[9:])
    return None
