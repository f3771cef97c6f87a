"""What happened in a run, row by row? metrics.jsonl: one JSON object a line, only ever appended to.

A row is {name: number, text, true, false or None}. NaN and the infinities are written as the texts "nan", "inf" and
"-inf", because JSON has no such numbers.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from convnet.errors import DataError
from convnet.files import disk_errors, in_place, write_atomic

Value = int | float | str | bool | None
Row = Mapping[str, Value]
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of a formula


def append(path: Path, row: Row) -> None:
    """Adds one row at the end of the file; when this returns, the system has it (a killed process loses nothing).

    Raises: DiskError; DataError when the file is a link.
    """
    line = json.dumps({name: _writable(value) for name, value in row.items()}, allow_nan=False) + "\n"
    with disk_errors(path), open(path, "ab", buffering=0, opener=in_place) as file:
        data = memoryview(line.encode())
        while data:
            data = data[file.write(data) :]


def read(path: Path) -> list[dict[str, Value]]:
    """All rows; none when there is no file. A last line that a crash cut short doesn't count.

    Raises: DataError naming the line that isn't a row.
    """
    return [_row(path, number, line) for number, line in enumerate(_whole_lines(path), 1)]


def truncate(path: Path, keep: int) -> int:
    """Drops what follows the first `keep` rows, a torn line too; returns how many rows are left, `keep` or fewer.

    Fewer are left when the record lost rows that the checkpoint counted: the caller tells the user. Raises: DiskError.
    """
    lines = _whole_lines(path)[:keep]
    if path.exists():
        write_atomic(path, b"".join(line + b"\n" for line in lines))
    return len(lines)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The rows as a table: a column for each name in any row, in the order of their first appearance.

    A text that a spreadsheet would take for a formula gets an apostrophe in front. Raises: DiskError.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([inert(name) for name in names])
    for row in rows:
        writer.writerow([inert(row.get(name)) for name in names])
    write_atomic(path, text.getvalue().encode(errors="replace"))


def inert(value: Value) -> Value:
    """A cell that no spreadsheet runs.

    >>> inert("=1+1"), inert("cat"), inert(-1.5)
    ("'=1+1", 'cat', -1.5)
    """
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA):
        return f"'{value}"
    return value


def _writable(value: Value) -> Value:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _whole_lines(path: Path) -> list[bytes]:
    """The lines that end in a newline, without it."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _row(path: Path, number: int, line: bytes) -> dict[str, Value]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: not a row of JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: not a row of JSON: no object")
    return row
