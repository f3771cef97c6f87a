"""Which pictures do lists name? Text files of (name, class) or (name, class, split) beside the pictures.

Several lists are one source when their names say which split each is: train.txt and val.txt, train.csv and test.csv.
Lists of names alone, called so, say the split of pictures that another list gives a class.

file          answers
tables.py     lines and fields of a text
columns.py    which column holds name, class and split
names.py      which file a name means
labels.py     which class a line gives
listed.py     what the lists say together -> a source
"""

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from convnet.data.sources.columns import ANY, ColumnNames, columns_of, header_key
from convnet.data.sources.folders import walk
from convnet.data.sources.labels import CHECKSUM, NAME_FILES, NOTHING, read_lines
from convnet.data.sources.listed import Listed, name_of, source_of
from convnet.data.sources.listing import SPELLINGS, Found, Source, has_picture_suffix, shown
from convnet.data.sources.names import Names
from convnet.data.sources.tables import Table, peek_table, read_table
from convnet.errors import UsageError

SUFFIXES = (".txt", ".csv", ".tsv")
UNREAD = {
    ".json": "JSON",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".parquet": "Parquet",
    ".feather": "Feather",
    ".arrow": "Arrow",
    ".xlsx": "an Excel sheet",
    ".xls": "an Excel sheet",
    ".ods": "a spreadsheet",
    ".mat": "a MATLAB file",
    ".xml": "XML",
    ".lst": "MXNet's list",
}
SPLIT_WORDS = {**SPELLINGS, "trainval": "train"}
FEWEST = 3  # pictures of a val or test list that all have one class, before that is taken for a filler


def lists_in(folder: Path, names: Iterable[str], found: Iterable[Found] | None = None) -> list[Path]:
    """The texts in a folder, or in folders called train, val or test in it, that seem to be lists of (name, class).

    names: what the folder holds. found: what `walk` found below it, where that is known. Only the first lines are read.
    """
    return [path for path, n_columns in _texts(folder, names, found) if n_columns > 1]


def refuse_unread(path: Path) -> None:
    """Raises: UsageError when a path is a list in a format that isn't read."""
    if what := UNREAD.get(_suffix(path.name)):
        raise UsageError(
            f"{shown(path)} is {what}, which is not read as a list; write it as CSV with the header name,class or "
            "name,class,split"
        )


def open_list(path: Path, chosen: ColumnNames = ANY) -> Source:
    """The source of the list that the user points at; names are relative to its folder.

    Raises: UsageError when a name has two classes or a column is missing; DataError when the list is no text.
    """
    found, _ = walk(path.parent)
    names = Names(found, path.parent)
    others = [other for other in lists_in(path.parent, os.listdir(path.parent), found) if other.name != path.name]
    notes = [f"{name_of(other)} seems to be a list too; it was not used" for other in others]
    return source_of(path.parent, names, [_read(path, names, chosen, None)], notes)


def open_lists(folder: Path, paths: Sequence[Path], chosen: ColumnNames = ANY) -> Source:
    """The source of the lists that `lists_in` sees in a folder: one, or one for each split.

    Raises: UsageError when several could be meant, and as `open_list`.
    """
    found, _ = walk(folder)
    names = Names(found, folder)
    fillers = [path for path in paths if "submission" in _words(path)]
    parts = {path: _part_of(path, folder) for path in paths if path not in fillers}
    if not parts or (len(parts) > 1 and (None in parts.values() or len(set(parts.values())) < len(parts))):
        texts = ", ".join(map(name_of, parts or fillers))
        raise UsageError(
            f"{shown(folder)} holds {'several lists' if parts else 'no list of classes but'}: {texts}; "
            f"point at one of them, as in: convnet prepare {shown(paths[0])} STORE"
        )
    first = min(parts, key=lambda path: parts[path] != "train")
    listed = [_read(first, names, chosen, parts[first])]
    listed += [_read(path, names, chosen, part, listed[0]) for path, part in parts.items() if path != first]
    for path, n_columns in _texts(folder, os.listdir(folder), found):
        if n_columns == 1 and (part := _part_of(path, folder)) and part not in parts.values():
            columns = columns_of(_table(path), names.__contains__, ANY, labelled=False)
            listed.append(Listed(path, part, columns, read_lines(_table(path), columns), "has no classes"))
    notes = [f"{name_of(path)} is a form to fill in; it was not used" for path in fillers]
    return source_of(folder, names, [_without_fillers(one, listed) for one in listed], notes)


def _table(path: Path) -> Table:
    table = read_table(path)
    if not table.rows:
        raise UsageError(f"{shown(path)} is empty; each line must hold a name and a class")
    return table


def _read(path: Path, names: Names, chosen: ColumnNames, part: str | None, first: Listed | None = None) -> Listed:
    """One list; one for tests may lack the class column of the `first`, the list for training, or leave it empty."""
    table = _table(path)
    header = [header_key(field) for field in table.rows[0][1]]
    if first is not None and first.columns.header:
        known = [header_key(field) for field in first.columns.header]
        labelled = any(known[n] in header for n in first.columns.label) or known[first.columns.name] not in header
        if not labelled:
            columns = columns_of(table, names.__contains__, replace(chosen, label=None), labelled=False)
            return Listed(path, part, columns, read_lines(table, columns), "has no classes")
    columns = columns_of(table, names.__contains__, chosen)
    if not columns.header and not chosen and _words(path) & {"partition", "split", "splits"}:
        raise UsageError(
            f"{shown(path)} has no header, and its name says that it holds splits, not classes; write a header such as "
            "name,class above it, or point at the list of classes"
        )
    fields = {row[n].lower() for _, row in table.rows[bool(columns.header) :] for n in columns.label if n < len(row)}
    if first is not None and fields <= NOTHING | {""}:
        columns = replace(columns, label=())
        return Listed(path, part, columns, read_lines(table, columns), "has no classes")
    return Listed(path, part, columns, read_lines(table, columns))


def _without_fillers(one: Listed, listed: Sequence[Listed]) -> Listed:
    """The list, without classes where it is for val or test and gives all pictures one, as where they are secret."""
    labels = {line.label for line in one.lines}
    others = {line.label for other in listed if other is not one and other.lacks is None for line in other.lines}
    if one.lacks or one.part in (None, "train") or len(one.lines) < FEWEST or len(labels) > 1 or len(others) < 2:
        return one
    return replace(one, lacks=f"gives all {len(one.lines)} pictures the class '{one.lines[0].label}'")


def _texts(folder: Path, names: Iterable[str], found: Iterable[Found] | None) -> list[tuple[Path, int]]:
    """The texts that name pictures of a folder, and how many columns each has, at most 2."""
    places = [folder / name for name in sorted(names)]
    for path in [path for path in places if path.name.lower() in SPELLINGS and path.is_dir()]:
        places += [path / name for name in sorted(os.listdir(path))]
    texts, index = [], None
    for path in places:
        if path.name.startswith(".") or not path.name.lower().endswith(SUFFIXES):
            continue
        if (table := peek_table(path)) is not None and table.rows:
            index = index or Names(walk(folder)[0] if found is None else found, folder)
            if n_columns := _columns_of_pictures(table, index):
                texts.append((path, n_columns))
    return texts


def _columns_of_pictures(table: Table, index: Names) -> int:
    """0 where a text doesn't name pictures in half its lines, some of them there; 1 for names alone; 2 for more.

    Checksums of pictures say nothing of their classes: 0.
    """
    rows = [[field for field in row if field] for _, row in table.rows]
    there = [[field for field in row if field in index] for row in rows]
    if table.path.name.lower() in NAME_FILES:  # "1 cat" speaks of class 1, not of 1.jpg
        there = [list(filter(has_picture_suffix, row)) for row in there]
    named = [names or list(filter(has_picture_suffix, row)) for row, names in zip(rows, there, strict=True)]
    if not any(there) or 2 * sum(map(bool, named)) < len(rows):
        return 0
    wide = [row for row in rows if len(row) > 1]
    if wide and all(any(map(CHECKSUM.fullmatch, row)) for row in wide):
        return 0
    return 2 if 2 * len(wide) >= len(rows) else 1


def _part_of(path: Path, folder: Path) -> str | None:
    """The split that a list's name gives, or the folder called train, val or test that it lies in."""
    parts = {SPLIT_WORDS[word] for word in _words(path) if word in SPLIT_WORDS}
    if not parts and path.parent != folder:
        return SPELLINGS.get(path.parent.name.lower())
    return parts.pop() if len(parts) == 1 else None


def _words(path: Path) -> set[str]:
    """The words of a list's name: `trainLabels.csv`, `labels_train.txt`, `val-map.txt`."""
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", path.stem).lower()))


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()
