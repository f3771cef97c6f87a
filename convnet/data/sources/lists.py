"""Which pictures do lists name? Text files of (name, class) or (name, class, split) beside the pictures.

Several lists are one source when their names say which split each is: train.txt and val.txt, train.csv and test.csv.
Lists of names alone, called so, say the split of pictures that another list gives a class.

file            answers
tables.py       lines and fields of a text
columns.py      which column holds name, class and split
names.py        which file a name means
labels.py       which class a line gives
list_source.py  what the lists say together -> a source
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from convnet.data.sources.columns import ANY, ColumnNames, columns_of, header_key
from convnet.data.sources.labels import CHECKSUM, NAME_FILES, NOTHING, read_annotations
from convnet.data.sources.list_source import LabelList, name_of, source_of_lists
from convnet.data.sources.listing import LIST_SUFFIXES, SPELLINGS, File, Source, has_picture_suffix, shown, words_of
from convnet.data.sources.names import FileIndex
from convnet.data.sources.tables import Table, peek_table, read_table
from convnet.data.sources.walk import walk
from convnet.errors import UsageError

UNREAD = {
    ".json": "JSON", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".xml": "XML", ".parquet": "Parquet",
    ".feather": "Feather", ".arrow": "Arrow", ".xlsx": "an Excel sheet", ".xls": "an Excel sheet",
    ".ods": "a spreadsheet", ".mat": "a MATLAB file", ".lst": "MXNet's list",
}  # fmt: skip
SPLIT_WORDS = {**SPELLINGS, "trainval": "train"}
FEWEST = 3  # pictures of a val or test list that all have one class, before that class is a filler


def lists_in(folder: Path, names: Iterable[str], files: Iterable[File] | None = None) -> list[Path]:
    """The texts in a folder, or in folders called train, val or test in it, that seem to be lists of (name, class).

    names: what the folder holds. files: what `walk` lists below it, where that is known. Only the first lines are read.
    """
    index = FileIndex(walk(folder)[0] if files is None else files, folder)
    return [path for path, n_columns in _texts(folder, names, index) if n_columns > 1]


def refuse_unread(path: Path) -> None:
    """Raises: UsageError when a path is a list in a format that isn't read."""
    if what := UNREAD.get(path.suffix.lower()):
        raise UsageError(
            f"{shown(path)} is {what}, which is not read as a list; write it as CSV with the header name,class or "
            "name,class,split"
        )


def open_list(path: Path, chosen: ColumnNames = ANY) -> Source:
    """The source of the list that the user points at; names are relative to its folder.

    Raises: UsageError when a name has two classes or a column is missing; DataError when the list is no text.
    """
    files, _ = walk(path.parent)
    others = [other for other in lists_in(path.parent, os.listdir(path.parent), files) if other.name != path.name]
    notes = [f"{name_of(other)} seems to be a list too; it was not used" for other in others]
    index = FileIndex(files, path.parent)
    return source_of_lists(path.parent, index, [_read(path, index, chosen, None)], notes)


def open_lists(folder: Path, paths: Sequence[Path], chosen: ColumnNames = ANY) -> Source:
    """The source of the lists that `lists_in` sees in a folder: one, or one for each split.

    Raises: UsageError when several could be meant, and as `open_list`.
    """
    index = FileIndex(walk(folder)[0], folder)
    fillers = [path for path in paths if "submission" in words_of(path.stem)]
    splits = {path: _split_of(path, folder) for path in paths if path not in fillers}
    if not splits or (len(splits) > 1 and (None in splits.values() or len(set(splits.values())) < len(splits))):
        texts = ", ".join(map(name_of, splits or fillers))
        raise UsageError(
            f"{shown(folder)} holds {'several lists' if splits else 'no list of classes but'}: {texts}; "
            f"point at one of them, as in: convnet prepare {shown(paths[0])} STORE"
        )
    first = min(splits, key=lambda path: splits[path] != "train")
    lists = [_read(first, index, chosen, splits[first])]
    lists += [_read(path, index, chosen, split, lists[0]) for path, split in splits.items() if path != first]
    for path, n_columns in _texts(folder, os.listdir(folder), index):
        if n_columns == 1 and (split := _split_of(path, folder)) and split not in splits.values():
            lists.append(_read_unlabelled(read_table(path), index, ANY, split))
    notes = [f"{name_of(path)} is a form to fill in; it was not used" for path in fillers]
    return source_of_lists(folder, index, [_without_fillers(one, lists) for one in lists], notes)


def _read_unlabelled(table: Table, index: FileIndex, chosen: ColumnNames, split: str | None) -> LabelList:
    columns = columns_of(table, index.__contains__, replace(chosen, label=None), labelled=False)
    return LabelList(table.path, split, columns, read_annotations(table, columns, split), "has no classes")


def _read(
    path: Path, index: FileIndex, chosen: ColumnNames, split: str | None, first: LabelList | None = None
) -> LabelList:
    """One list; one for tests may lack the class column of the `first`, the list for training, or leave it empty."""
    table = read_table(path)
    if first is not None and first.columns.header:
        header = [header_key(field) for field in table.rows[0][1]]
        known = [header_key(field) for field in first.columns.header]
        if known[first.columns.name] in header and not any(known[n] in header for n in first.columns.label):
            return _read_unlabelled(table, index, chosen, split)
    columns = columns_of(table, index.__contains__, chosen)
    if not columns.header and not chosen and words_of(path.stem) & {"partition", "split", "splits"}:
        raise UsageError(
            f"{shown(path)} has no header, and its name says that it holds splits, not classes; write a header such as "
            "name,class above it, or point at the list of classes"
        )
    fields = {row[n].lower() for _, row in table.rows[bool(columns.header) :] for n in columns.label}
    if first is not None and fields <= NOTHING | {""}:
        columns = replace(columns, label=())
        return LabelList(path, split, columns, read_annotations(table, columns, split), "has no classes")
    return LabelList(path, split, columns, read_annotations(table, columns, split))


def _without_fillers(one: LabelList, lists: Sequence[LabelList]) -> LabelList:
    """The list, without classes where it is for val or test and gives all pictures one, as where they are secret."""
    lines = one.annotations
    others = {line.label for other in lists if other is not one and not other.lacks for line in other.annotations}
    constant = len(lines) >= FEWEST and len({line.label for line in lines}) == 1 and len(others) > 1
    if one.lacks or one.split in (None, "train") or not constant:
        return one
    lacks = f"gives all {len(lines)} pictures the class '{lines[0].label}'"
    return replace(one, annotations=[replace(line, label="") for line in lines], lacks=lacks)


def _texts(folder: Path, names: Iterable[str], index: FileIndex) -> list[tuple[Path, int]]:
    """The texts that name pictures of a folder, and how many columns each has, at most 2."""
    paths = [folder / name for name in sorted(names)]
    for path in [path for path in paths if path.name.lower() in SPELLINGS and path.is_dir()]:
        paths += [path / name for name in sorted(os.listdir(path))]
    texts = []
    for path in paths:
        if path.name.startswith(".") or not path.name.lower().endswith(LIST_SUFFIXES):
            continue
        if (table := peek_table(path)) is not None and (n_columns := _columns_of_pictures(table, index)):
            texts.append((path, n_columns))
    return texts


def _columns_of_pictures(table: Table, index: FileIndex) -> int:
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


def _split_of(path: Path, folder: Path) -> str | None:
    """The split that a list's name gives, or the folder called train, val or test that it lies in."""
    splits = {SPLIT_WORDS[word] for word in words_of(path.stem) if word in SPLIT_WORDS}
    if not splits and path.parent != folder:
        return SPELLINGS.get(path.parent.name.lower())
    return splits.pop() if len(splits) == 1 else None
