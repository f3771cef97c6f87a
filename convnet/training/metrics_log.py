"""What happened in a run, row by row? metrics.jsonl: one JSON object a line, only ever appended to.

A row is {name: number, text, true, false or None}. NaN and the infinities are written as the texts "nan", "inf" and
"-inf", because JSON has no such numbers. Each line ends in the CRC-32 of what it would be without it, so that damage is
found; readers here drop it.
"""

import csv
import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from convnet.errors import DataError
from convnet.io import atomic, strict_json
from convnet.io.atomic import disk_errors, in_place, write_atomic

Value = int | float | str | bool | None
Row = Mapping[str, Value]
CHECKED = re.compile(rb'(.*), "(.{5})": "(.{8})"\}', re.S)  # a line, but for its end: row, name and digits of the CRC
LARGEST, LONGEST = 1 << 28, 1 << 20  # bytes of a file and of a row; a run of 100 epochs has 50 kB
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of a formula


def line(row: Row) -> bytes:
    """A row as it stands in the file, with its CRC-32 and its newline."""
    numbers = {name: str(value) for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    text = json.dumps({**row, **numbers}, allow_nan=False).encode()
    return text[:-1] + f', "crc32": "{zlib.crc32(text):08x}"}}\n'.encode()


def append(path: Path, row: Row) -> bytes:
    """Adds one row at the end of the file, and returns its line; when this returns, the system has it (a killed
    process loses nothing).

    Raises: DiskError; DataError when the file is a link.
    """
    whole = line(row)
    with disk_errors(path), open(path, "ab", buffering=0, opener=in_place) as file:
        data = memoryview(whole)
        while data:
            data = data[file.write(data) :]
    return whole


def read(path: Path) -> list[dict[str, Value]]:
    """All rows; none when there is no file. A last line that a crash cut short doesn't count.

    Raises: DataError naming the line that isn't a row.
    """
    return rows(path, whole_lines(path))


def rows(path: Path, lines: Iterable[bytes]) -> list[dict[str, Value]]:
    """Of lines of the file, with their newlines or without. Raises: DataError naming the line that isn't a row."""
    return list(Rows(path, lines))


@dataclass(frozen=True)
class Rows:
    """Rows that are parsed when they are looked at, each time anew: many at once take a thousand bytes each."""

    path: Path
    lines: Iterable[bytes]

    def __iter__(self) -> Iterator[dict[str, Value]]:
        for number, each in enumerate(self.lines, 1):
            yield row(self.path, number, each.rstrip(b"\n"))


def keep_whole(path: Path, most: int | None = None) -> int:
    """Rewrites the file with its first `most` rows that are whole; returns how many of them are lost to damage.

    Raises: DiskError.
    """
    lines, whole = whole_lines(path)[:most], []
    for number, text in enumerate(lines, 1):
        with suppress(DataError):
            row(path, number, text)
            whole.append(text + b"\n")
    if path.exists():
        write_atomic(path, whole)
    return len(lines) - len(whole)


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """The rows, which are gone through twice, as a table: a column for each name in any row, in the order of their
    first appearance.

    A text that a spreadsheet would take for a formula gets an apostrophe in front. Raises: DiskError.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))

    def pieces() -> Iterator[bytes]:
        yield _csv_line(names)
        for row in rows:
            yield _csv_line(row.get(name) for name in names)

    write_atomic(path, pieces())


def _csv_line(cells: Iterable[Value]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow([inert(cell) for cell in cells])
    return text.getvalue().encode(errors="replace")


def inert(value: Value) -> Value:
    """A cell that no spreadsheet runs.

    >>> inert("=1+1"), inert("cat"), inert(-1.5)
    ("'=1+1", 'cat', -1.5)
    """
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA):
        return f"'{value}"
    return value


def whole_lines(path: Path) -> list[bytes]:
    """The lines that end in a newline, without it; and a last one whose newline is another byte."""
    try:
        *lines, rest = atomic.read(path, LARGEST).split(b"\n")
        return [*lines, rest] if CHECKED.fullmatch(rest[:-1]) else lines
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def row(path: Path, number: int, line: bytes) -> dict[str, Value]:
    """The row in a line without its newline. Raises: DataError naming the line."""
    if len(line) > LONGEST:
        raise DataError(f"{path}, line {number}: {len(line):,} bytes are more than the {LONGEST:,} that a row may have")
    checked = CHECKED.fullmatch(line)
    text = checked[1] + b"}" if checked else line  # the rows of earlier versions have no CRC
    if checked and (checked[2], checked[3]) != (b"crc32", b"%08x" % zlib.crc32(text)):
        raise DataError(f"{path}, line {number}: damaged: its CRC-32 does not match")
    try:
        values = strict_json.parse(text)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not a row of JSON: {error}") from error
    for name, value in values.items():
        if not isinstance(value, Value):
            raise DataError(f"{path}, line {number}: {name} is a {type(value).__name__}, no number and no text")
    return values
