"""Which labels and splits do files and folders give? A published set's own files decide, or else its class folders."""

from collections.abc import Iterable
from pathlib import Path

from convnet.data.sources.layout import class_folders, source_of
from convnet.data.sources.listing import Found, Parts, Reader, Source
from convnet.data.sources.published_sets import published
from convnet.data.sources.tree import tree_of
from convnet.errors import UsageError

CHOICES = ("folders", "outer", "inner")  # what --layout may say


def arrange(
    found: Iterable[Found], folders: Iterable[Parts], where: Path, kind: str, reader: Reader, choice: str | None = None
) -> Source:
    """The source of all files and folders found (paths as parts).

    choice: one of CHOICES, where a person says that class folders decide, and which of two that could be the class.
    Raises: UsageError when the folders are no classes, could be read in two ways, or hold nothing to train on.
    """
    if choice not in (None, *CHOICES):
        raise UsageError(f"--layout {choice}: must be {', '.join(CHOICES[:-1])} or {CHOICES[-1]}")
    tree = tree_of(found, folders, where, reader)
    layout = published(tree) if choice is None else None
    return source_of(tree, layout or class_folders(tree, choice, kind))
