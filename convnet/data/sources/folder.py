"""Class folders, or the lists beside them? Folders that are classes decide, and a list that contradicts them stops.

what a folder holds                         what decides
a published set's own files                 these (published/label_files.py)
class folders                               the folders; lists beside them are named in a note
class folders, and a list of other classes  nothing: it stops and says how to choose
class folders, flat pictures, and a list    the list, where it says what the folders say and labels the flat ones too
folders that are no classes, and lists      the lists
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from convnet.data.sources.columns import ANY, ColumnNames
from convnet.data.sources.layout import class_folders, source_of
from convnet.data.sources.listing import ByteReader, File, Parts, Source, first_few, read_entry, shown
from convnet.data.sources.lists import lists_in, open_lists
from convnet.data.sources.published.label_files import published
from convnet.data.sources.tree import tree_of
from convnet.data.sources.walk import walk
from convnet.errors import ConvnetError, UsageError

KIND = "class folders"
CHOICES = ("folders", "outer", "inner")  # what --layout may say
LONGEST = 1 << 24  # bytes of a list that is compared with the folders beside it


def folder_source(
    files: Iterable[File], folders: Iterable[Parts], root: Path, kind: str, reader: ByteReader, choice: str | None
) -> Source:
    """The source of files and folders: by a published set's own files, else by its class folders.

    choice: one of CHOICES, where a person says that class folders decide, and which of two that could be the class.
    Raises: UsageError when the folders are no classes, could be read in two ways, or hold nothing to train on.
    """
    if choice not in (None, *CHOICES):
        raise UsageError(f"--layout {choice}: must be {', '.join(CHOICES[:-1])} or {CHOICES[-1]}")
    tree = tree_of(files, folders, root, reader)
    layout = published(tree) if choice is None else None
    return source_of(tree, layout or class_folders(tree, choice, kind))


def open_folder(root: Path, names: list[str], choice: str | None = None, columns: ColumnNames = ANY) -> Source:
    """The source of a folder of pictures, by its class folders or by its lists.

    choice: as in `folder_source`; columns: those of a list, which is thereby chosen.
    Raises: UsageError when it is neither, or when both could be meant.
    """
    files, folders = walk(root)
    lists = lists_in(root, names, files)
    if columns and lists:
        return open_lists(root, lists, columns)
    try:
        source = folder_source(files, folders, root, KIND, read_entry, choice)
    except UsageError:
        if choice is not None or not lists:
            raise
        return open_lists(root, lists)
    if source.kind != KIND or not lists:
        return source
    if choice is None and (listed := _instead(root, source, lists)) is not None:
        return listed
    note = f"{_names(lists)} lies there too and was not used; point at it to use it"
    return replace(source, notes=(*source.notes, note))


def _instead(root: Path, source: Source, lists: Sequence[Path]) -> Source | None:
    """The source of the lists where they decide, not the folders. Raises: UsageError when the two contradict."""
    if len({entry.label for entry in source.entries}) < 2:
        return open_lists(root, lists)
    if sum(path.stat().st_size for path in lists) > LONGEST:
        return None
    try:
        listed = open_lists(root, lists)
    except ConvnetError:  # no list of classes
        return None
    if what := _contradiction(source, listed):
        path = root / shown(lists[0].name)
        raise UsageError(
            f"{shown(root)} has class folders, and {_names(lists)} says otherwise: {what}; "
            f"--layout folders takes the folders, convnet prepare {shown(path)} STORE takes the list"
        )
    if set(source.classes) == set(listed.classes) and _keys(listed) > _keys(source):
        return replace(listed, notes=(*listed.notes, "the list also labels pictures that lie in no class folder"))
    return None


def _contradiction(source: Source, listed: Source) -> str | None:
    """What a list says of a picture that its folders don't; None when it is no list of classes or agrees.

    Classes agree when each of one is one of the other, whatever their names.
    """
    by_list = {entry.key: entry for entry in listed.entries}
    both = [(entry, by_list[entry.key]) for entry in source.entries if entry.key in by_list]
    if 2 * len(listed.classes) > len(listed.entries) > 2 * len(source.classes):
        return None  # a value for nearly every picture, such as its width
    names: dict[int, tuple[str, str]] = {}
    for entry, other in both:
        pair = source.classes[entry.label], listed.classes[other.label]
        former = names.setdefault(entry.label, pair)
        if former != pair:
            return f"{entry.key!r} is {pair[0]!r} by its folder and {pair[1]!r} by the list, others are {former[1]!r}"
    n_listed = len({pair[1] for pair in names.values()})
    if n_listed < len(names):
        return f"it has {n_listed} classes for the {len(names)} of the folders"
    if any(other.split != "train" for _, other in both):
        for entry, other in both:
            if entry.split != other.split:
                return f"{entry.key!r} is in {entry.split} by its folder and in {other.split} by the list"
    return None


def _keys(source: Source) -> set[str]:
    return {entry.key for entry in source.entries}


def _names(lists: Sequence[Path]) -> str:
    return first_few(shown(path.name) for path in lists)
