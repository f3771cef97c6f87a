"""Which pictures does a list name? A text or CSV file of (name, class) or (name, class, split) beside the pictures.

Separated by tabs, commas, semicolons or spaces, whichever the first line has, in that order. Between spaces the first
field is the name, the last is the split if it is one in every line, and the class is what lies between.
"""

import csv
import io
import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convnet.errors import DataError, UsageError
from convnet.sources.folders import walk
from convnet.sources.listing import (
    SPELLINGS,
    Entry,
    Found,
    Source,
    finish,
    has_picture_suffix,
    read_entry,
    shown,
)

SUFFIXES = (".txt", ".csv", ".tsv")
NAMES = frozenset(
    (
        "name",
        "file",
        "filename",
        "file_name",
        "image",
        "image_name",
        "img",
        "picture",
        "path",
        "filepath",
        "image_id",
        "id",
        "key",
    )
)
CLASSES = frozenset(
    (
        "class",
        "label",
        "category",
        "class_name",
        "classname",
        "target",
        "species",
        "wnid",
        "y",
    )
)
PARTS = frozenset(
    (
        "split",
        "set",
        "subset",
        "partition",
        "part",
    )
)
SAMPLE = 1000  # lines that are looked at to tell a list from other text
LARGEST = 1 << 28  # bytes of a list


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a list; `split` is None where the list has no such column."""

    number: int
    name: str
    label: str
    split: str | None


def find_list(where: Path, names: list[str]) -> Path | None:
    """The list of pictures in a folder: the one text file that names pictures, some of them there, in half its lines.

    Raises: UsageError when there are several.
    """
    lists = []
    for name in sorted(names):
        path = where / name
        if name.startswith(".") or not name.lower().endswith(SUFFIXES) or not path.is_file():
            continue
        try:
            rows = [row for _, row in _rows(_text(path), path)][:SAMPLE]
        except (DataError, OSError):
            continue
        there = [_names_picture(where, row) for row in rows]
        named = [any(has_picture_suffix(field.strip()) for field in row) for row in rows]
        if any(there) and 2 * sum(map(max, there, named)) >= len(rows):
            lists.append(path)
    if len(lists) > 1:
        raise UsageError(
            f"{shown(where)} holds several lists: {', '.join(shown(path.name) for path in lists)}; "
            f"point at one of them, as in: convnet prepare {shown(lists[0])} STORE"
        )
    return lists[0] if lists else None


def _names_picture(where: Path, row: list[str]) -> bool:
    """Whether one of two or more fields is the name of a picture in the folder."""
    if sum(bool(field.strip()) for field in row) < 2:
        return False
    for name in map(str.strip, row):
        if _safe(name) and (has_picture_suffix(name) or "." not in name) and (where / name).is_file():
            return True
    return False


def open_list(path: Path) -> Source:
    """The source of a list of pictures; names are relative to the list's folder.

    Raises: UsageError when a name has two classes or a column is missing; DataError when the list is no text.
    """
    where = path.parent
    found, _ = walk(where)
    files = {shown(os.path.relpath(file.place, where)) if file.place else "/".join(file.parts): file for file in found}
    lines = _distinct(path, read_list(path, lambda text: (where / text).is_file()))
    classes = tuple(sorted({line.label for line in lines.values()}))
    labels = {name: label for label, name in enumerate(classes)}
    entries, left_out = [], []
    for name, line in lines.items():
        file = files.pop(name, None) if _safe(name) else None
        problem = _problem(name, file)
        if problem is not None or file is None:
            left_out.append(Found((name,), None, "", ("failed", problem or "in the list, but missing")))
        else:
            part = line.split or "train"
            entries.append(Entry("/".join(file.parts), part, labels[line.label], file.place, file.stamp))
    for file in files.values():
        left_out.append(file if file.problem else Found(file.parts, None, "", ("skipped", "not in the list")))
    return finish(where, f"list {shown(path.name)}", classes, entries, left_out, (), read_entry)


def _problem(name: str, file: Found | None) -> str | None:
    """Why a listed picture can't be used."""
    if not _safe(name):
        return "its name leaves the folder; not read"
    if file is None:
        return "in the list, but missing"
    if file.problem is None or (file.problem[0] == "skipped" and file.place is not None):
        return None  # listed: what its extension is doesn't matter
    return file.problem[1]


def _safe(name: str) -> bool:
    return not name.startswith(("/", "\\")) and ".." not in name.split("/") and "\0" not in name


def _distinct(path: Path, lines: list[Line]) -> dict[str, Line]:
    """One line for each name. Raises: UsageError when two lines of a name disagree."""
    distinct: dict[str, Line] = {}
    for line in lines:
        name = shown(posixpath.normpath(line.name))
        former = distinct.setdefault(name, line)
        if (former.label, former.split) != (line.label, line.split):
            raise UsageError(
                f"{shown(path)}: '{name}' is '{former.label}' in line {former.number}, but '{line.label}' in line "
                f"{line.number}; keep one of them"
                if former.label != line.label
                else f"{shown(path)}: '{name}' is in {former.split} (line {former.number}) and in {line.split} (line "
                f"{line.number}); keep one of them"
            )
    return distinct


def read_list(path: Path, exists: Callable[[str], bool] | None = None) -> list[Line]:
    """The lines of a list, without its header. `exists` tells a header's first field from a name without an extension.

    Raises: UsageError that names the line and what it lacks; DataError when the file is no text.
    """
    text = _text(path)
    rows = _rows(text, path)
    if not rows:
        raise UsageError(f"{shown(path)} is empty; each line must hold a name and a class")
    columns = _columns(rows, exists or has_picture_suffix)
    if columns is not None:
        rows = rows[1:]
    name_at, class_at, split_at = columns or (0, 1, 2 if any(len(row) > 2 for _, row in rows) else None)
    lines = []
    for number, row in rows:
        fields = dict(enumerate(field.strip() for field in row))
        name, label = fields.get(name_at, ""), fields.get(class_at, "")
        if not name or not label:
            raise UsageError(f"{shown(path)}, line {number}: a name and a class are needed, found {shown(repr(row))}")
        part = None
        if split_at is not None:
            part = SPELLINGS.get(fields.get(split_at, "").lower())
            if part is None:
                what = fields.get(split_at, "")
                raise UsageError(f"{shown(path)}, line {number}: the split '{shown(what)}' must be train, val or test")
        lines.append(Line(number, name, shown(label), part))
    return lines


def _text(path: Path) -> str:
    """A list's text; bytes that are no UTF-8 stay as they are, as in names of files."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise DataError(f"{shown(path)} is larger than the {LARGEST:,} bytes that a list may have")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    if b"\0" in data:
        raise DataError(f"{shown(path)} is no text; a list holds a name and a class in each line")
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def _rows(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """(line number, fields) of each line that is not blank."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = next((mark for mark in "\t,;" if mark in first), None)
    if separator is None:
        return _spaced([(n, line.split()) for n, line in enumerate(text.splitlines(), 1) if line.strip()])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except csv.Error as error:
        raise DataError(f"{shown(path)}, line {reader.line_num}: {error}") from error


def _spaced(rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Fields between spaces, put together as name, class and, if every line but a header ends in one, split."""
    parts = all(len(row) > 2 and row[-1].lower() in SPELLINGS for _, row in rows[1:] or rows)
    if parts:
        return [(number, [row[0], " ".join(row[1:-1]), row[-1]]) for number, row in rows]
    return [(number, [row[0], " ".join(row[1:])]) for number, row in rows]


def _columns(rows: list[tuple[int, list[str]]], exists: Callable[[str], bool]) -> tuple[int, int, int | None] | None:
    """Where name, class and split are, if the first row is a header."""
    first = [field.strip().lower() for field in rows[0][1]]
    if (
        len(rows) < 2
        or not first
        or has_picture_suffix(first[0])
        or (_safe(first[0]) and exists(rows[0][1][0].strip()))
    ):
        return None
    at = {
        what: n
        for what, known in (("n", NAMES), ("c", CLASSES), ("s", PARTS))
        for n, f in enumerate(first)
        if f in known
    }
    if "n" in at and "c" in at:
        return at["n"], at["c"], at.get("s")
    if at or has_picture_suffix(rows[1][1][0].strip()):
        return (
            0,
            1,
            at.get("s", 2 if len(first) > 2 and all(r[-1].strip().lower() in SPELLINGS for _, r in rows[1:]) else None),
        )
    return None
