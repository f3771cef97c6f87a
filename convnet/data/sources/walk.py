"""Which files lie in a folder? Links are followed, loops are noticed, nothing is opened that could block."""

import os
import stat
from pathlib import Path

from convnet.data.sources.listing import (
    SNIFFED,
    SPELLINGS,
    File,
    Parts,
    Place,
    failed,
    has_picture_suffix,
    is_hidden,
    judge,
    reason_of,
    shown,
    skipped,
    stamp_of,
)
from convnet.io.atomic import regular, what_is

Identity = tuple[int, int]  # device and inode of a folder


def walk(root: Path) -> tuple[list[File], list[Parts]]:
    """Every file below a folder and every folder, in an order that depends on names only.

    A folder that a link reaches again within the same class is listed once: the real one.
    """
    files: list[File] = []
    folders: list[Parts] = []
    keys: set[Parts] = set()
    seen: set[tuple[Parts, Identity]] = set()
    waiting: list[tuple[Path, Parts, tuple[Identity, ...]]] = [(root, (), (_identity(root.stat()),))]
    links: list[tuple[Path, Parts, tuple[Identity, ...]]] = []
    while waiting or links:
        path, parts, above = waiting.pop() if waiting else links.pop(0)
        if above[-1] in above[:-1]:
            files.append(failed(parts, "symlink loop"))
            continue
        if (_scope(parts), above[-1]) in seen:
            files.append(skipped(parts, "a link to a folder that is listed already"))
            continue
        seen.add((_scope(parts), above[-1]))
        folders.append(parts)
        for item in _items(path, parts, files):
            key = (*parts, _unique(item.name, parts, keys))
            try:
                if is_hidden(item.name):
                    files.append(skipped(key, "hidden"))
                elif item.is_dir():
                    below = (Path(item.path), key, (*above, _identity(item.stat())))
                    (links if item.is_symlink() else waiting).append(below)
                else:
                    files.append(_file(item, key))
            except FileNotFoundError:
                files.append(failed(key, "dangling link" if item.is_symlink() else "vanished"))
            except OSError as error:  # is_dir says False for a dangling link, but raises on a loop
                files.append(failed(key, reason_of(error)))
    return files, folders[1:]


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _scope(parts: Parts) -> Parts:
    """What counts as the class of a folder while the layout is not known: the part below train, or the first."""
    below = next((n + 2 for n, part in enumerate(parts[:3]) if part.lower() in SPELLINGS), 1)
    return parts[:below]


def _items(path: Path, parts: Parts, files: list[File]) -> list["os.DirEntry[str]"]:
    """What lies in a folder, by name; one that can't be read is a failed file."""
    try:
        with os.scandir(path) as listing:
            return sorted(listing, key=lambda item: os.fsencode(item.name))
    except OSError as error:
        files.append(failed(parts or (".",), f"unreadable folder: {reason_of(error)}"))
        return []


def _file(item: "os.DirEntry[str]", key: Parts) -> File:
    """One directory entry that is no folder."""
    status = item.stat()
    if not stat.S_ISREG(status.st_mode):
        reason = f"not a regular file but {what_is(status.st_mode)}"
        return failed(key, reason) if has_picture_suffix(item.name) else skipped(key, reason)
    path = Path(item.path)
    return File(key, Place(path, 0, status.st_size), stamp_of(status), judge(item.name, lambda: _head(path)))


def _head(path: Path) -> bytes:
    """The first bytes of a regular file, none if it can't be read."""
    try:
        with open(path, "rb", buffering=0, opener=regular) as file:
            return file.read(SNIFFED)
    except OSError:
        return b""


def _unique(name: str, parts: Parts, keys: set[Parts]) -> str:
    """The name in UTF-8; when two names of a folder look the same escaped, the later one is numbered."""
    text = plain = shown(name)
    number = 2
    while (*parts, text) in keys:
        text, number = f"{plain}~{number}", number + 1
    keys.add((*parts, text))
    return text
