"""What are the lines and fields of a text file that may be a list of pictures?

Fields stand between tabs, commas, semicolons or spaces: whichever lets most lines hold a picture's name as a field.
Between spaces the name ends where a picture's extension does, so that it may hold spaces; the rest are columns when
every line has as many, else one class of several words, with a split behind it where every line ends in one.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from convnet.data.sources.listing import SPELLINGS, has_picture_suffix, shown
from convnet.errors import DataError, UsageError
from convnet.io.atomic import read, regular

LARGEST = 1 << 28  # bytes of a list
HEAD = 1 << 20  # bytes of a text that are looked at to tell whether it is a list
SAMPLE = 1000  # lines that are looked at for that
MARKS = ("\t", ",", ";")
TOKEN = re.compile(r'"([^"]*)"|(\S+)')

Row = tuple[int, list[str]]  # the line's number from 1, and its fields without the spaces around them


@dataclass(frozen=True, slots=True)
class Table:
    """The lines of a text that are neither blank nor a comment at its top.

    Shorter lines than the widest are filled up with empty fields; `first_width` is what the first had.
    """

    path: Path
    rows: list[Row]
    first_width: int = 0

    @property
    def width(self) -> int:
        """The number of fields in each line."""
        return len(self.rows[0][1]) if self.rows else 0


def read_table(path: Path) -> Table:
    """Every line of a text.

    Raises: UsageError when it has none; DataError when it is no text, too large, or its quotes don't close.
    """
    table = _table(path, text_of(path))
    if not table.rows:
        raise UsageError(f"{shown(path)} is empty; each line must hold a name and a class")
    return table


def text_of(path: Path) -> str:
    """A whole text. Raises: DataError when it is none or too large."""
    return _decoded(path, read(path, LARGEST))


def peek_table(path: Path) -> Table | None:
    """The first lines of a text, at most `SAMPLE` of its first `HEAD` bytes; None for what can't be a list."""
    try:
        with open(path, "rb", opener=regular) as file:
            data = file.read(HEAD)
        text = _decoded(path, data[: len(data) - len(data) % 2] if data[:2] in (b"\xff\xfe", b"\xfe\xff") else data)
        lines = text.splitlines(keepends=True)[: SAMPLE + 1]
        whole = len(data) < HEAD and len(lines) <= SAMPLE
        return _table(path, "".join(lines if whole else lines[:-1]))
    except (DataError, OSError):
        return None


def _decoded(path: Path, data: bytes) -> str:
    """The text; bytes that are no UTF-8 stay as they are, as in names of files."""
    try:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            text = data.decode("utf-16")
        else:
            text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(path)} begins as UTF-16, but is none: {error.reason}") from error
    if "\0" in text:
        raise DataError(f"{shown(path)} is no text; a list holds a name and a class in each line")
    return text


def _table(path: Path, text: str) -> Table:
    lines = list(io.StringIO(text, newline=None))
    top = len(list(itertools.takewhile(_says_nothing, lines)))
    if top == len(lines):
        return Table(path, [])
    excel = re.fullmatch(r"sep=(.)\s*", lines[top], re.IGNORECASE)
    marks = [excel[1]] if excel else [mark for mark in MARKS if mark in lines[top]]
    top += bool(excel)
    best = max([*marks, None], key=lambda mark: _score(lines[top : top + SAMPLE], mark, path))  # of equals the first
    rows = list(_read(lines[top:], best, path))
    width = max((len(row) for _, row in rows), default=0)
    first_width = len(rows[0][1]) if rows else 0
    return Table(path, [(top + number, row + [""] * (width - len(row))) for number, row in rows], first_width)


def _read(lines: list[str], mark: str | None, path: Path) -> Iterable[Row]:
    return _spaced(lines) if mark is None else _separated(lines, mark, path)


def _says_nothing(line: str) -> bool:
    """Whether a line at a text's top is blank or a comment."""
    text = line.strip()
    return not text or (text.startswith("#") and not any(map(has_picture_suffix, re.split(r"[\s,;]+", text))))


def _score(lines: list[str], mark: str | None, path: Path) -> int:
    """In how many lines a field is a picture's name and another one isn't empty, if fields are read in this way."""
    try:
        rows = [[field for field in row if field] for _, row in _read(lines, mark, path)]
    except DataError:
        return 0
    return sum(len(row) > 1 and any(map(has_picture_suffix, row)) for row in rows)


def _separated(lines: list[str], mark: str, path: Path) -> Iterator[Row]:
    """(line number, fields) of lines between whose fields a mark stands; fields may be quoted."""
    reader = csv.reader(lines, delimiter=mark, skipinitialspace=mark != "\t", strict=True)
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if any(fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"{shown(path)}, line {reader.line_num}: {error}; quotes must close in their field") from error


def _spaced(lines: list[str]) -> list[Row]:
    """(line number, fields) of lines between whose fields spaces stand."""
    rows = [(number, _name_and_rest(line.strip())) for number, line in enumerate(lines, 1) if line.strip()]
    rest = [len(row) - 1 for _, row in rows]
    if all(len(row) > 2 and row[-1].lower() in SPELLINGS for _, row in rows[1:] or rows):
        return [(number, [row[0], " ".join(row[1:-1]), row[-1]] if len(row) > 2 else row) for number, row in rows]
    if rest and min(rest) == max(rest):
        return rows
    return [(number, [row[0], " ".join(row[1:])]) for number, row in rows]


def _name_and_rest(line: str) -> list[str]:
    """The name with its spaces, and the words behind it; a line that ends in a name has its class before it."""
    words = line.split()
    if has_picture_suffix(words[0]) and '"' not in line and not any(map(has_picture_suffix, words[1:])):
        return words
    tokens = list(TOKEN.finditer(line))
    words = [token[1] if token[1] is not None else token[2] for token in tokens]
    ends = [n for n, word in enumerate(words) if has_picture_suffix(word)]
    if not ends or '"' in line:
        return words
    if ends[-1] == len(words) - 1 and len(words) > 1:
        return [line[: tokens[-1].start()].strip(), words[-1]]
    return [line[: tokens[ends[-1]].end()], *words[ends[-1] + 1 :]]
