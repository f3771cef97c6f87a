"""Which class does each line of a list give, and in which order do the classes stand?

A label is a word or a whole number. What is no class stops with its line: an empty field, `nan`, a number with a
fraction, a checksum, several labels at once. Numbers get names from a file of names beside the list, where it has
exactly as many as are needed.
"""

import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from convnet.data.sources.columns import Columns, header_key, hot_column
from convnet.data.sources.listing import SPELLINGS, shown
from convnet.data.sources.tables import Table, text_of
from convnet.errors import DataError, UsageError

NOTHING = frozenset(("nan", "<na>", "na", "n/a", "#n/a", "null", "nat", "?"))
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
NUMBER = re.compile(r"(-?\d+)(\.0*)?")
FRACTION = re.compile(r"[-+]?(\d+\.\d*|\.\d+)(e[-+]?\d+)?|[-+]?\d+e[-+]?\d+", re.IGNORECASE)
NUMBERS = re.compile(r"-?\d+([ ,;|]+-?\d+)+")
CHECKSUM = re.compile(r"[0-9a-f]{32,}", re.IGNORECASE)
BOXES = re.compile(r"(\S+( -?\d+){4})( \S+( -?\d+){4})*")  # ILSVRC's "n01751748 111 108 411 308", one for each object
TELLING = 20  # pictures; as many that all have classes of their own are no classes
NAME_FILES = (
    "labels.txt",
    "classes.txt",
    "class_names.txt",
    "synset_words.txt",
    "synsets.txt",
    "wnids.txt",
    "names.txt",
    "categories.txt",
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a list; `label` is empty where it has none, `split` None where the list has no such column."""

    number: int
    name: str
    label: str
    split: str | None


def read_lines(table: Table, columns: Columns) -> list[Line]:
    """The lines of a list below its header.

    Raises: UsageError that names the line and what is wrong with it.
    """
    lines = []
    for number, row in table.rows[1 if columns.header else 0 :]:
        where = f"{shown(table.path)}, line {number}"
        name = row[columns.name] if columns.name < len(row) else ""
        label = _label(row, columns)
        if not name or (columns.label and not label):
            raise UsageError(f"{where}: a name and a class are needed, found {shown(repr(row))}")
        lines.append(Line(number, name, unicodedata.normalize("NFC", shown(label)), _part(row, columns, where)))
    return lines


def _label(row: list[str], columns: Columns) -> str:
    if len(columns.label) > 1:
        return columns.header[hot_column(row, columns)]
    text = row[columns.label[0]] if columns.label and columns.label[0] < len(row) else ""
    if columns.header and BOXES.fullmatch(text) and header_key(columns.header[columns.label[0]]) == "prediction_string":
        words = set(text.split()[::5])
        return words.pop() if len(words) == 1 else text
    return text


def _part(row: list[str], columns: Columns, where: str) -> str | None:
    if columns.split is None:
        return None
    text = row[columns.split] if columns.split < len(row) else ""
    if columns.flag is not None and text.lower() in TRUTH:
        return columns.flag if TRUTH[text.lower()] else "train"
    part = SPELLINGS.get(text.lower())
    if part is None:
        raise UsageError(f"{where}: the split '{shown(text)}' must be train, val or test")
    return part


def classes_of(lines: Iterable[tuple[Path, Line]]) -> tuple[dict[str, str], list[str]]:
    """{label: class} for the labels of lists, and what is to be said of it.

    Raises: UsageError when labels are no classes.
    """
    first: dict[str, tuple[Path, Line]] = {}
    n = 0
    for n, (path, line) in enumerate(lines, 1):  # noqa: B007 - how many there were
        first.setdefault(line.label, (path, line))
    for label, (path, line) in first.items():
        if problem := _no_class(label):
            raise UsageError(f"{shown(path)}, line {line.number}: the label '{label}' {problem}")
        if parts := _several(label, first):
            raise UsageError(
                f"{shown(path)}, line {line.number}: '{label}' looks like several labels of one picture, as other "
                f"pictures have {' and '.join(parts)} alone; a picture is trained with one: write one class"
            )
    if len(first) == n > TELLING:
        label, (path, line) = next(iter(first.items()))
        raise UsageError(
            f"{shown(path)}: each of the {n} pictures would be a class of its own, as '{label}' in line {line.number}; "
            "say which column holds the class: --label-column X"
        )
    return _numbers(first)


def _no_class(label: str) -> str | None:
    """Why a label can't be a class."""
    if label.lower() in NOTHING:
        return "says that there is none; leave the line out or write its class"
    if BOXES.fullmatch(label) and len(label.split()) > 5:  # one class alone has become the label
        return "has objects of several classes; a picture is trained with one: write a column with one class"
    if NUMBERS.fullmatch(label):
        return "holds several numbers; a picture is trained with one class"
    if CHECKSUM.fullmatch(label):
        return "is a checksum and no class"
    if FRACTION.fullmatch(label) and not NUMBER.fullmatch(label):
        return "is a number with a fraction and no class"
    return None


def _several(label: str, labels: Iterable[str]) -> list[str]:
    """The labels that one label is made of, if it is; where | or ; stand, one that is a label itself will do."""
    for mark, test in (("|", any), (";", any), (",", all), (" ", all)):
        parts = [part.strip() for part in label.split(mark)]
        if len(parts) > 1 and test(part in labels for part in parts):
            return [part for part in parts if part in labels]
    return []


def _numbers(first: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """{label: class} with whole numbers written as such: 3.0 as 3."""
    if not all(map(NUMBER.fullmatch, first)):
        return {label: label for label in first}, []
    classes = {label: NUMBER.sub(r"\1", label) for label in first}
    pointed = any("." in label for label in first)
    return classes, ["the labels are whole numbers with a point, as 3.0, and were read as 3"] if pointed else []


def names_for(folder: Path, numbers: Sequence[str], lists: Sequence[Path]) -> tuple[dict[str, str], list[str]]:
    """{number: name} from a file of names in a list's folder, where it fits these labels; and what is to be said.

    lists: what is read as lists of pictures. A file fits when its lines begin with all these numbers, or are as many as
    the largest label (from 1, where no label is 0) or one more (from 0).
    """
    read = {path.name: names for path in _name_files(folder, lists) if (names := _named(path, numbers)) is not None}
    fitting = {file: names for file, names in read.items() if names}
    notes = [
        f"{file} lies there too, but doesn't have a name for each label; not used"
        for file in read.keys() - fitting.keys()
    ]
    for (one, names), (other, others) in pairwise(fitting.items()):
        if any(not (names[n].startswith(others[n]) or others[n].startswith(names[n])) for n in numbers):
            return {}, [*notes, f"{one} and {other} name the labels differently; neither was used"]
    if not fitting:
        return {}, notes
    file, names = next(iter(fitting.items()))
    return names, [*notes, f"the labels' names are {file}'s: {numbers[0]} is {names[numbers[0]]}, ..."]


def _name_files(folder: Path, lists: Sequence[Path]) -> list[Path]:
    return [path for name in NAME_FILES if (path := folder / name).is_file() and path not in lists]


def _named(path: Path, numbers: Sequence[str]) -> dict[str, str] | None:
    """{number: name} by a file of names, empty where it doesn't fit; None when it is no text."""
    try:
        lines = [line for line in map(str.strip, io.StringIO(text_of(path), newline=None)) if line]
    except (DataError, OSError):
        return None
    split = [re.split(r"[\s,;:]+", line, maxsplit=1) for line in lines]
    if lines and all(len(words) == 2 and words[0].isdecimal() for words in split):
        by_number = {int(words[0]): words[1] for words in split}
        fits = len(by_number) == len(lines) and all(int(n) in by_number for n in numbers)
    else:
        start = 0 if "0" in numbers else 1
        by_number = dict(enumerate(lines, start))
        fits = len(lines) == int(numbers[-1]) + 1 - start
    named = {n: shown(by_number[int(n)]) for n in numbers} if fits else {}
    return named if len(set(named.values())) == len(named) else {}
