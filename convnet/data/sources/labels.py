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

from convnet.data.sources.columns import Columns, header_key, ones
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
NAME_FILES = tuple(
    f"{name}.txt"
    for name in ("labels", "classes", "class_names", "synset_words", "synsets", "wnids", "names", "categories")
)


@dataclass(frozen=True, slots=True)
class Annotation:
    """One line of a list; `label` is empty where it has none, `split` None where neither it nor the list says it."""

    path: Path
    number: int
    name: str
    label: str
    split: str | None

    @property
    def line(self) -> str:
        """The line, for an error."""
        return f"{shown(self.path)}, line {self.number}"


def read_annotations(table: Table, columns: Columns, split: str | None) -> list[Annotation]:
    """The lines of a list below its header; `split` is that of lines which don't say it.

    Raises: UsageError that names the line and what is wrong with it.
    """
    annotations = []
    for number, row in table.rows[1 if columns.header else 0 :]:
        name, label = row[columns.name], unicodedata.normalize("NFC", shown(_label(row, columns)))
        line = Annotation(table.path, number, name, label, split)
        if not name or (columns.label and not label):
            raise UsageError(f"{line.line}: a name and a class are needed, but it is {shown(repr(row))}")
        if columns.split is not None:
            line = Annotation(table.path, number, name, label, _split(row[columns.split], columns.flag, line.line))
        annotations.append(line)
    return annotations


def _label(row: list[str], columns: Columns) -> str:
    if len(columns.label) > 1:
        return columns.header[ones(row, columns.label)[0]]
    text = row[columns.label[0]] if columns.label else ""
    if columns.header and BOXES.fullmatch(text) and header_key(columns.header[columns.label[0]]) == "prediction_string":
        words = set(text.split()[::5])
        return words.pop() if len(words) == 1 else text
    return text


def _split(text: str, flag: str | None, line: str) -> str:
    if flag is not None and text.lower() in TRUTH:
        return flag if TRUTH[text.lower()] else "train"
    split = SPELLINGS.get(text.lower())
    if split is None:
        raise UsageError(f"{line}: the split '{shown(text)}' must be train, val or test")
    return split


def classes_of(annotations: Iterable[Annotation]) -> tuple[dict[str, str], list[str]]:
    """{label: class} for the labels of lists, and notes. Raises: UsageError when labels are no classes."""
    annotations = list(annotations)
    first: dict[str, Annotation] = {}
    for annotation in annotations:
        first.setdefault(annotation.label, annotation)
    for label, annotation in first.items():
        if problem := _no_class(label, first):
            raise UsageError(f"{annotation.line}: {problem}")
    if len(first) == len(annotations) > TELLING:
        raise UsageError(
            f"{shown(annotations[0].path)}: each of the {len(first)} pictures would be a class of its own, as "
            f"'{annotations[0].label}' in line {annotations[0].number}; say which column holds the class: "
            "--label-column X"
        )
    if not all(map(NUMBER.fullmatch, first)):
        return {label: label for label in first}, []
    pointed = any("." in label for label in first)
    notes = ["the labels are whole numbers with a point, as 3.0, and were read as 3"] if pointed else []
    return {label: NUMBER.sub(r"\1", label) for label in first}, notes


def _no_class(label: str, labels: Iterable[str]) -> str | None:
    """Why a label of these can't be a class."""
    if label.lower() in NOTHING:
        return f"the label '{label}' says that there is none; leave the line out or write its class"
    if BOXES.fullmatch(label) and len(label.split()) > 5:  # one class alone has become the label
        return f"'{label}' has objects of several classes; a picture is trained with one: write a column with one class"
    if NUMBERS.fullmatch(label):
        return f"the label '{label}' holds several numbers; a picture is trained with one class"
    if CHECKSUM.fullmatch(label):
        return f"the label '{label}' is a checksum and no class"
    if FRACTION.fullmatch(label) and not NUMBER.fullmatch(label):
        return f"the label '{label}' is a number with a fraction and no class"
    for mark, test in (("|", any), (";", any), (",", all), (" ", all)):  # where | or ; stand, one label will do
        parts = [part.strip() for part in label.split(mark)]
        if len(parts) > 1 and test(part in labels for part in parts):
            return (
                f"'{label}' looks like several labels of one picture, as other pictures have "
                f"{' and '.join(part for part in parts if part in labels)} alone; a picture is trained with one: "
                "write one class"
            )
    return None


def names_for(folder: Path, numbers: Sequence[str], lists: Sequence[Path]) -> tuple[dict[str, str], list[str]]:
    """{number: name} from a file of names in a list's folder, where it fits these labels; and notes.

    lists: what is read as lists of pictures. A file fits when its lines begin with all these numbers, or are as many as
    the largest label (from 1, where no label is 0) or one more (from 0).
    """
    paths = [path for name in NAME_FILES if (path := folder / name).is_file() and path not in lists]
    read = {path.name: _named(path, numbers) for path in paths}
    fitting = {file: names for file, names in read.items() if names}
    others = [file for file in read if file not in fitting]
    notes = [f"{file} lies there too, but doesn't have a name for each label; not used" for file in others]
    for (one, names), (other, names_too) in pairwise(fitting.items()):
        if any(not (names[n].startswith(names_too[n]) or names_too[n].startswith(names[n])) for n in numbers):
            return {}, [*notes, f"{one} and {other} name the labels differently; neither was used"]
    if not fitting:
        return {}, notes
    file, names = next(iter(fitting.items()))
    return names, [*notes, f"the labels' names are {file}'s: {numbers[0]} is {names[numbers[0]]}, ..."]


def _named(path: Path, numbers: Sequence[str]) -> dict[str, str]:
    """{number: name} by a file of names, empty where it doesn't fit or is no text."""
    try:
        lines = [line for line in map(str.strip, io.StringIO(text_of(path), newline=None)) if line]
    except (DataError, OSError):
        return {}
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
