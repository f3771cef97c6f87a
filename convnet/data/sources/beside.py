"""Class folders, or the lists beside them? Folders that are classes decide, and a list that contradicts them stops.

what a folder holds                         what decides
a published set's own files                 these (published.py)
class folders                               the folders; lists beside them are named in a note
class folders, and a list of other classes  nothing: it stops and says how to choose
class folders, flat pictures, and a list    the list, where it says what the folders say and labels the flat ones too
folders that are no classes, and lists      the lists
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convnet.data.sources.arrange import arrange
from convnet.data.sources.columns import ANY, ColumnNames
from convnet.data.sources.folders import walk
from convnet.data.sources.listing import Source, read_entry, shown
from convnet.data.sources.lists import lists_in, open_lists
from convnet.data.sources.tree import some
from convnet.errors import ConvnetError, UsageError

KIND = "class folders"
LONGEST = 1 << 24  # bytes of a list that is held against the folders beside it


def open_folder(where: Path, names: list[str], choice: str | None = None, columns: ColumnNames = ANY) -> Source:
    """The source of a folder of pictures, by its class folders or by its lists.

    choice: as in `arrange`; columns: those of a list, which is thereby chosen.
    Raises: UsageError when it is neither, or when both could be meant.
    """
    found, folders = walk(where)
    lists = lists_in(where, names, found)
    if columns and lists:
        return open_lists(where, lists, columns)
    try:
        source = arrange(found, folders, where, KIND, read_entry, choice)
    except UsageError:
        if choice is not None or not lists:
            raise
        return open_lists(where, lists)
    if choice is None and lists and source.kind == KIND:
        return _folders_or_lists(where, source, lists)
    return _with_note(source, lists if source.kind == KIND else [])


def _folders_or_lists(where: Path, source: Source, lists: Sequence[Path]) -> Source:
    """The source of the folders, or of the lists. Raises: UsageError when they contradict each other."""
    if len({entry.label for entry in source.entries}) < 2:
        return open_lists(where, lists)
    if sum(path.stat().st_size for path in lists) > LONGEST:
        return _with_note(source, lists)
    try:
        listed = open_lists(where, lists)
    except ConvnetError:  # no list of classes
        return _with_note(source, lists)
    if what := _contradiction(source, listed):
        path = where / shown(lists[0].name)
        raise UsageError(
            f"{shown(where)} has class folders, and {_names(lists)} says otherwise: {what}; "
            f"--layout folders takes the folders, convnet prepare {shown(path)} STORE takes the list"
        )
    if set(source.classes) == set(listed.classes) and _keys(listed) > _keys(source):
        return replace(listed, notes=(*listed.notes, "the list also labels pictures that lie in no class folder"))
    return _with_note(source, lists)


def _contradiction(source: Source, listed: Source) -> str | None:
    """What a list says of a picture that its folders don't; None when it is no list of classes or agrees.

    Classes agree when each of one is one of the other, whatever their names.
    """
    said = {entry.key: entry for entry in listed.entries}
    both = [(entry, said[entry.key]) for entry in source.entries if entry.key in said]
    if 2 * len(listed.classes) > len(listed.entries) > 2 * len(source.classes):
        return None  # a value for nearly every picture, such as its width
    names: dict[int, tuple[str, str]] = {}
    for entry, other in both:
        pair = source.classes[entry.label], listed.classes[other.label]
        former = names.setdefault(entry.label, pair)
        if former != pair:
            return f"{entry.key!r} is {pair[0]!r} by its folder and {pair[1]!r} by the list, others are {former[1]!r}"
    if len({pair[1] for pair in names.values()}) < len(names):
        return f"it has {len({pair[1] for pair in names.values()})} classes for the {len(names)} of the folders"
    if any(other.split != "train" for _, other in both):
        for entry, other in both:
            if entry.split != other.split:
                return f"{entry.key!r} is in {entry.split} by its folder and in {other.split} by the list"
    return None


def _keys(source: Source) -> set[str]:
    return {entry.key for entry in source.entries}


def _names(lists: Sequence[Path]) -> str:
    return some(shown(path.name) for path in lists)


def _with_note(source: Source, lists: Sequence[Path]) -> Source:
    if not lists:
        return source
    note = f"{_names(lists)} lies there too and was not used; point at it to use it"
    return replace(source, notes=(*source.notes, note))
