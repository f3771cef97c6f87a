"""Which columns of a list hold the picture's name, its class and its split?

They are known by the header, by what stands in them where that leaves no choice, or by the user's word; never guessed:
a list that could be read in two ways stops with its columns and the options that settle it.

A column's header   is taken for
NAMES               the picture's name
CLASSES             the class; of several that divide the pictures alike, the one with words
PARTS, FLAGS        the split; FLAGS hold true or false
unknown             the name where the column holds pictures' names, the split where every field is one, the class where
                    no other column is left; several columns of 0 and 1, one 1 in each line: the class is the column
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from convnet.data.sources.listing import SPELLINGS, has_picture_suffix, shown
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
        return any(text is not None for text in (self.name, self.label, self.split))


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
    asking = _Asking(table, chosen)
    header = _header(asking, exists)
    asking.header = header
    body = table.rows[1:] if header else table.rows
    if not body:
        raise UsageError(f"{shown(table.path)} holds a header and no pictures")
    if header:
        asking.width = len(header)
        _must_fit(table, header)
    name = asking.at("name")
    if name is None:
        name = _name_column(asking, body, exists)
    free = [n for n in range(asking.width) if n != name]
    split = asking.at("split")
    if split is None:
        split = _split_column(asking, free, body)
    flag = FLAGS.get(header_key(header[split])) if header and split is not None else None
    free = [n for n in free if n != split and not (header and INDEX.fullmatch(header_key(header[n])))]
    if not header:  # a comma at each line's end makes no column
        free = [n for n in free if any(_field(row, n) for _, row in body)] or free
    label: tuple[int, ...] = ()
    notes: list[str] = []
    if (at := asking.at("label")) is not None:
        label = (at,)
    elif labelled:
        label, notes = _label_columns(asking, free, body)
    unused = [header[n] for n in free if n not in label] if header and labelled else []
    if unused:
        notes.append(f"columns that are not used: {_several(unused)}")
    return Columns(header, name, label, split, flag, tuple(notes))


class _Asking:
    """A list and what the user said of its columns: how every question about them ends that has no sure answer."""

    def __init__(self, table: Table, chosen: ColumnNames) -> None:
        self.table, self.chosen, self.width = table, chosen, table.width
        self.header: tuple[str, ...] = ()

    def at(self, role: str) -> int | None:
        """Where the column is that the user named for `role`."""
        text: str | None = getattr(self.chosen, role)
        if text is None:
            return None
        places = [n for n, field in enumerate(self.header) if field == text] or [
            n for n, field in enumerate(self.header) if header_key(field) == header_key(text)
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
        columns = (
            _several(self.header) if self.header else f"1 to {self.width}, as in line {number}: {shown(repr(row))}"
        )
        return UsageError(
            f"{shown(self.table.path)}: {problem}; its columns: {columns}; say which: "
            "--name-column X --label-column Y [--split-column Z]"
        )


def _header(asking: _Asking, exists: Pictures) -> tuple[str, ...]:
    """The first line, if it is a header."""
    rows = asking.table.rows
    first = rows[0][1]
    keys = [header_key(field) for field in first]
    texts = asking.chosen.name, asking.chosen.label, asking.chosen.split
    chosen = {header_key(text) for text in texts if text is not None}
    known = [key for key in keys if key in NAMES | CLASSES | PARTS | FLAGS.keys() | UNSURE]
    if any(map(has_picture_suffix, first)):
        return ()
    if chosen & set(keys) or len(known) > 1 or (known and not any(map(exists, first))):
        return tuple(first)
    if len(rows) == 1 or any(map(exists, first)):
        return ()
    sample = [row for _, row in rows[1 : SAMPLE + 1]]
    if any(_share(sample, n, has_picture_suffix) > 0.5 for n in range(asking.width)):
        return tuple(first)
    again = {(n, field) for row in sample for n, field in enumerate(row)}
    if not any(_share(sample, n, exists) > 0.5 for n in range(asking.width)) or any(
        (n, field) in again for n, field in enumerate(first)
    ):
        return ()
    raise asking.stop(f"line {rows[0][0]} could be a header or name a picture that is missing: {shown(repr(first))}")


def _must_fit(table: Table, header: Sequence[str]) -> None:
    """Raises: UsageError when a line has more fields than the header."""
    for number, row in table.rows:
        if any(row[len(header) :]):
            raise UsageError(
                f"{shown(table.path)}, line {number} has {len(row)} fields, the header {len(header)}: "
                f"{shown(repr(row))}; quote a field that holds the separator"
            )


def _name_column(asking: _Asking, body: Sequence[Row], exists: Pictures) -> int:
    """The column that holds pictures' names: by their extensions, else by the files there are, else by the header."""
    sample = [row for _, row in body[:SAMPLE]]
    known = [n for n, field in enumerate(asking.header) if header_key(field) in NAMES]
    for test in (has_picture_suffix, exists):
        holding = [n for n in range(asking.width) if 2 * _share(sample, n, test) >= 1]
        if len(holding) > 1:
            holding = [n for n in holding if n in known] or holding
        if len(holding) > 1 and not asking.header:  # ids and labels that are numbers alike: names don't come again
            holding = [n for n in holding if len({row[n] for row in sample if len(row) > n}) == len(sample)]
        if len(holding) == 1:
            return holding[0]
        if holding:
            raise asking.stop("several columns hold pictures' names")
    if len(known) == 1:
        return known[0]
    raise asking.stop("no column holds the names of pictures that are here")


def _split_column(asking: _Asking, free: Iterable[int], body: Sequence[Row]) -> int | None:
    """The column that says which picture trains and which tests."""
    header = [header_key(field) for field in asking.header]
    named = [n for n in free if header and (header[n] in PARTS or header[n] in FLAGS)]
    held = [n for n in free if all(len(row) > n and row[n].lower() in SPELLINGS for _, row in body)]
    places = [n for n in held if n in named] or held or named
    if len(places) > 1:
        raise asking.stop("several columns could be the split")
    if not places and (unsure := [asking.header[n] for n in free if header and header[n] in UNSURE]):
        raise asking.stop(f"{_several(unsure)} doesn't say whether the others are for val or test")
    return places[0] if places else None


def _label_columns(asking: _Asking, free: list[int], body: Sequence[Row]) -> tuple[tuple[int, ...], list[str]]:
    """The column of the class, or several of 0 and 1, with what is to be said of the choice."""
    header = asking.header
    known = [n for n in free if header and header_key(header[n]) in CLASSES]
    binary = [n for n in free if all(_field(row, n).lower() in BINARY for _, row in body)]
    if len(free) > 1 and binary == free:
        several = next(((line, row) for line, row in body if len(_ones(row, free)) != 1), None)
        if several is None and header and not known:
            return tuple(free), [f"the classes are the columns of 0 and 1: {_several([header[n] for n in free])}"]
        if several is None and known:
            raise asking.stop(f"{header[known[0]]} could be the class, or each column of 0 and 1 could be one")
        if not known:
            raise asking.stop(_not_one(several, free, header) if several else "columns of 0 and 1 without a header")
    if len(known) == 1:
        return (known[0],), []
    if known:
        return _alike(asking, known, body)
    if len(free) == 1 and not (header and header_key(header[free[0]]) in SEVERAL):
        note = [f"the class is the column {header[free[0]]!r}"] if header else []
        return (free[0],), note
    raise asking.stop("no column is known to hold the class" if free else "no column is left for the class")


def _alike(asking: _Asking, known: list[int], body: Sequence[Row]) -> tuple[tuple[int, ...], list[str]]:
    """Of columns that divide the pictures in the same way the one with words."""
    names = [asking.header[n] for n in known]
    pairs = {tuple(_field(row, n) for n in known) for _, row in body}
    if any(len({pair[i] for pair in pairs}) != len(pairs) for i in range(len(known))):
        raise asking.stop(f"{_several(names)} could each be the class, and they divide the pictures differently")
    words = [i for i in range(len(known)) if not all(pair[i].lstrip("-").isdecimal() for pair in pairs)]
    best = known[words[0] if words else 0]
    return (best,), [f"{_several(names)} divide the pictures alike; the class is {asking.header[best]!r}"]


def _not_one(line: Row, columns: list[int], header: Sequence[str]) -> str:
    number, row = line
    ones = _ones(row, columns)
    names = f" ({_several([header[n] for n in ones])})" if ones and header else ""
    return f"line {number} has {len(ones)} classes{names} in columns of 0 and 1, but a picture is trained with one"


def _ones(row: list[str], columns: Iterable[int]) -> list[int]:
    """Which of the columns of 0 and 1 are 1."""
    return [n for n in columns if BINARY.get(_field(row, n).lower()) == 1]


def hot_column(row: list[str], columns: Columns) -> int:
    """Which of several label columns is 1 in a line."""
    return _ones(row, columns.label)[0]


def _field(row: list[str], n: int) -> str:
    return row[n] if n < len(row) else ""


def _share(rows: Sequence[list[str]], n: int, test: Pictures) -> float:
    """The part of these lines whose field n passes a test."""
    return sum(n < len(row) and test(row[n]) for row in rows) / max(len(rows), 1)


def header_key(field: str) -> str:
    """A header's field for comparing: `Class Name`, `className` and `class_name` are one."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", field.strip().strip("#").strip())
    return re.sub(r"[\s_-]+", "_", spaced).lower()


def _several(names: Sequence[str], most: int = 12) -> str:
    """Names for a person; of many the first."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) or "''" for name in names[:most]) + rest
