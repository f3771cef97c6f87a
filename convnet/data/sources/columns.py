"""Which columns of a list hold the picture's name, its class and its split?

They are known by the header, by what stands in them where that leaves no choice, or by the user's word; never guessed:
a list that could be read in two ways stops with its columns and the options to choose by.

A column's header   holds
NAMES               the picture's name
CLASSES             the class; of several that divide the pictures alike, the one with words
PARTS, FLAGS        the split; FLAGS hold true or false
unknown             the name where the column holds pictures' names, the split where every field is one, the class where
                    no other column is left; several columns of 0 and 1, one 1 in each line: the class is the column
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from convnet.data.sources.listing import SPELLINGS, first_few, has_picture_suffix, shown
from convnet.data.sources.tables import SAMPLE, Row, Table
from convnet.errors import UsageError, unknown

# fmt: off
NAMES = frozenset((
    "name", "file", "filename", "file_name", "filenames", "filepath", "filepaths", "file_path", "fname", "image",
    "images", "image_name", "imagename", "image_path", "imagepath", "image_file", "image_id", "imageid", "img",
    "img_name", "img_path", "img_id", "picture", "photo", "photo_id", "path", "id", "key", "uuid",
))
CLASSES = frozenset((
    "class", "label", "labels", "category", "class_name", "classname", "class_id", "classid", "class_label",
    "label_name", "label_id", "labelid", "category_name", "category_id", "target", "species", "breed", "wnid",
    "synset", "prediction_string",
))
# fmt: on
PARTS = frozenset(("split", "set", "subset", "partition", "part", "usage"))
FLAGS = {"is_valid": "val", "is_val": "val", "is_validation": "val", "is_test": "test"}  # what true means; else train
UNSURE = frozenset(("is_train", "is_training", "is_training_image"))  # false could mean val or test
SEVERAL = frozenset(("tags", "attributes", "keywords", "caption", "captions", "finding_labels"))
INDEX = re.compile(r"|index|unnamed: ?\d+")  # a table's own numbering of its lines
BINARY = {"0": 0, "1": 1, "-1": 0, "0.0": 0, "1.0": 1, "-1.0": 0, "false": 0, "true": 1}

Pictures = Callable[[str], bool]  # whether a text names a picture that is there


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """Which columns the user says hold name, class and split: a header, or a number from 1 where there is none."""

    name: str | None = None
    label: str | None = None
    split: str | None = None

    def __bool__(self) -> bool:
        return self != ANY


ANY = ColumnNames()  # the user named none


@dataclass(frozen=True, slots=True)
class Columns:
    """Where name, class and split stand, from 0. Several `label`s are columns of 0 and 1; none where there is no class.

    header: as written, empty where the list has none. flag: what true means in a split column of true and false.
    """

    header: tuple[str, ...]
    name: int
    label: tuple[int, ...]
    split: int | None
    flag: str | None
    notes: tuple[str, ...]


def columns_of(table: Table, exists: Pictures, chosen: ColumnNames, labelled: bool = True) -> Columns:
    """The columns of a list; without `labelled` no class is looked for.

    Raises: UsageError when a column is missing, unknown or could be another.
    """
    choice = _Choice(table, exists, chosen)
    header, keys = choice.header, choice.keys
    name = choice.named("name")
    if name is None:
        name = choice.name()
    free = [n for n in range(choice.width) if n != name]
    split = choice.named("split")
    if split is None:
        split = choice.split(free)
    flag = FLAGS.get(keys[split]) if header and split is not None else None
    free = [n for n in free if n != split and not (header and INDEX.fullmatch(keys[n]))]
    if not header:  # a comma at each line's end makes no column
        free = [n for n in free if any(row[n] for _, row in choice.body)] or free
    label: tuple[int, ...] = ()
    notes: list[str] = []
    if (named := choice.named("label")) is not None:
        label = (named,)
    elif labelled:
        label, note = choice.label(free)
        notes += [note] if note else []
    unused = [header[n] for n in free if n not in label] if header and labelled else []
    if unused:
        notes.append(f"columns that are not used: {_list(unused)}")
    return Columns(header, name, label, split, flag, tuple(notes))


class _Choice:
    """A list, what the user said of its columns, and which of them is which.

    Raises: UsageError when that isn't sure.
    """

    def __init__(self, table: Table, exists: Pictures, chosen: ColumnNames) -> None:
        self.table, self.exists, self.chosen = table, exists, chosen
        self.width, self.header = table.width, tuple[str, ...]()
        self.header = self._header()
        self.keys = [header_key(field) for field in self.header]
        self.body = table.rows[1:] if self.header else table.rows
        if not self.body:
            raise UsageError(f"{shown(table.path)} holds a header and no pictures")
        if self.header:
            self.width = len(self.header)
            self._check_width()

    def named(self, role: Literal["name", "label", "split"]) -> int | None:
        """Where the column is that the user named for `role`."""
        text = {"name": self.chosen.name, "label": self.chosen.label, "split": self.chosen.split}[role]
        if text is None:
            return None
        places = [n for n, field in enumerate(self.header) if field == text] or [
            n for n, key in enumerate(self.keys) if key == header_key(text)
        ]
        if not self.header and text.isdecimal() and 1 <= int(text) <= self.width:
            return int(text) - 1
        if len(places) == 1:
            return places[0]
        known = self.header or [str(n + 1) for n in range(self.width)]
        problem = f"{len(places)} columns are called '{text}'" if places else unknown("column", text, map(shown, known))
        raise UsageError(f"{shown(self.table.path)}: --{role}-column: {problem}")

    def stop(self, problem: str) -> UsageError:
        """What the columns are and how to choose among them."""
        number, row = self.table.rows[0]
        columns = _list(self.header) if self.header else f"1 to {self.width}, as in line {number}: {shown(repr(row))}"
        return UsageError(
            f"{shown(self.table.path)}: {problem}; its columns: {columns}; say which: "
            "--name-column X --label-column Y [--split-column Z]"
        )

    def _header(self) -> tuple[str, ...]:
        """The first line, if it is a header."""
        number, first = self.table.rows[0][0], self.table.rows[0][1][: self.table.first_width]
        sample = [row for _, row in self.table.rows[1 : SAMPLE + 1]]
        keys = {header_key(field) for field in first}
        chosen = (self.chosen.name, self.chosen.label, self.chosen.split)
        n_known = sum(header_key(field) in NAMES | CLASSES | PARTS | FLAGS.keys() | UNSURE for field in first)
        if any(map(has_picture_suffix, first)):
            return ()
        here = any(map(self.exists, first))
        if keys & {header_key(text) for text in chosen if text is not None} or n_known > 1 or (n_known and not here):
            return tuple(first)
        if not sample or here:
            return ()
        if any(_share(sample, n, has_picture_suffix) > 0.5 for n in range(self.width)):
            return tuple(first)
        if not any(_share(sample, n, self.exists) > 0.5 for n in range(self.width)) or any(
            field == row[n] for row in sample for n, field in enumerate(first)
        ):
            return ()
        raise self.stop(f"line {number} could be a header or name a picture that is missing: {shown(repr(first))}")

    def _check_width(self) -> None:
        """Raises: UsageError when a line has more fields than the header."""
        for number, row in self.body:
            if any(row[self.width :]):
                n_fields = max(n for n, field in enumerate(row, 1) if field)
                raise UsageError(
                    f"{shown(self.table.path)}, line {number} has {n_fields} fields, the header {self.width}: "
                    f"{shown(repr(row))}; quote a field that holds the separator"
                )

    def name(self) -> int:
        """The column of pictures' names: by their extensions, else by the files there are, else by the header."""
        sample = [row for _, row in self.body[:SAMPLE]]
        known = [n for n, key in enumerate(self.keys) if key in NAMES]
        for test in (has_picture_suffix, self.exists):
            holding = [n for n in range(self.width) if _share(sample, n, test) >= 0.5]
            if len(holding) > 1:
                holding = [n for n in holding if n in known] or holding
            if len(holding) > 1 and not self.header:  # ids and labels that are numbers: names don't come again
                holding = [n for n in holding if len({row[n] for row in sample if row[n]}) == len(sample)]
            if len(holding) == 1:
                return holding[0]
            if holding:
                raise self.stop("several columns hold pictures' names")
        if len(known) == 1:
            return known[0]
        raise self.stop("no column holds the names of pictures that are here")

    def split(self, free: Sequence[int]) -> int | None:
        """The column that says which picture trains and which tests."""
        named = [n for n in free if self.header and self.keys[n] in PARTS | FLAGS.keys()]
        spelled = [n for n in free if all(row[n].lower() in SPELLINGS for _, row in self.body)]
        places = [n for n in spelled if n in named] or spelled or named
        if len(places) > 1:
            raise self.stop("several columns could be the split")
        if not places and (unsure := [self.header[n] for n in free if self.header and self.keys[n] in UNSURE]):
            raise self.stop(f"{_list(unsure)} doesn't say whether the others are for val or test")
        return places[0] if places else None

    def label(self, free: list[int]) -> tuple[tuple[int, ...], str | None]:
        """The column of the class, or several of 0 and 1, and a note on the choice."""
        header = self.header
        known = [n for n in free if header and self.keys[n] in CLASSES]
        if len(free) > 1 and all(row[n].lower() in BINARY for n in free for _, row in self.body):
            several = next(((line, row) for line, row in self.body if len(ones(row, free)) != 1), None)
            if several is None and header and not known:
                return tuple(free), f"the classes are the columns of 0 and 1: {_list([header[n] for n in free])}"
            if several is None and known:
                raise self.stop(f"{header[known[0]]} could be the class, or each column of 0 and 1 could be one")
            if not known:
                raise self.stop(self._not_one(several, free) if several else "columns of 0 and 1 without a header")
        if len(known) == 1:
            return (known[0],), None
        if known:
            return self._of_equal_columns(known)
        if len(free) == 1 and not (header and self.keys[free[0]] in SEVERAL):
            return (free[0],), f"the class is the column {header[free[0]]!r}" if header else None
        raise self.stop("no column is known to hold the class" if free else "no column is left for the class")

    def _of_equal_columns(self, known: list[int]) -> tuple[tuple[int, ...], str]:
        """Of columns that divide the pictures in the same way the one with words."""
        names = _list([self.header[n] for n in known])
        pairs = {tuple(row[n] for n in known) for _, row in self.body}
        if any(len({pair[i] for pair in pairs}) != len(pairs) for i in range(len(known))):
            raise self.stop(f"{names} could each be the class, and they divide the pictures differently")
        words = [i for i in range(len(known)) if not all(pair[i].lstrip("-").isdecimal() for pair in pairs)]
        best = known[words[0] if words else 0]
        return (best,), f"{names} divide the pictures alike; the class is {self.header[best]!r}"

    def _not_one(self, line: Row, columns: list[int]) -> str:
        number, row = line
        hot = ones(row, columns)
        names = f" ({_list([self.header[n] for n in hot])})" if hot and self.header else ""
        return f"line {number} has {len(hot)} classes{names} in columns of 0 and 1, but a picture is trained with one"


def ones(row: list[str], columns: Sequence[int]) -> list[int]:
    """Which of the columns of 0 and 1 are 1 in a line."""
    return [n for n in columns if BINARY.get(row[n].lower()) == 1]


def _share(rows: Sequence[list[str]], n: int, test: Pictures) -> float:
    """The part of these lines whose field n passes a test."""
    return sum(bool(row[n]) and test(row[n]) for row in rows) / max(len(rows), 1)


def header_key(field: str) -> str:
    """A header's field for comparing: `Class Name`, `className` and `class_name` are one."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", field.strip().strip("#").strip())
    return re.sub(r"[\s_-]+", "_", spaced).lower()


def _list(names: Sequence[str]) -> str:
    """Names for a sentence; of many the first."""
    return first_few(names, 12, lambda name: shown(name) or "''")
