"""Which pictures lie in a folder? Links are followed, loops are noticed, nothing is opened that could block."""

import os
import stat
from pathlib import Path

from convnet.data.sources.listing import (
    SNIFFED,
    SPELLINGS,
    Found,
    Parts,
    has_picture_suffix,
    is_hidden,
    judge,
    reason_of,
    shown,
    stamp_of,
)
from convnet.io.atomic import what_is

Identity = tuple[int, int]  # device and inode of a folder


def walk(where: Path) -> tuple[list[Found], list[Parts]]:
    """Every file below a folder and every folder, in an order that depends on names only.

    A folder that a link reaches again within the same class is listed once: the real one.
    """
    status = where.stat()
    found: list[Found] = []
    folders: list[Parts] = []
    keys: set[Parts] = set()
    seen: dict[Parts, set[Identity]] = {}
    waiting: list[tuple[Path, Parts, tuple[Identity, ...]]] = [(where, (), ((status.st_dev, status.st_ino),))]
    links: list[tuple[Path, Parts, tuple[Identity, ...]]] = []
    while waiting or links:
        path, parts, above = waiting.pop() if waiting else links.pop(0)
        if above[-1] in above[:-1]:
            found.append(Found(parts, None, "", ("failed", "symlink loop")))
            continue
        if above[-1] in seen.setdefault(_scope(parts), set()):
            found.append(Found(parts, None, "", ("skipped", "a link to a folder that is listed already")))
            continue
        seen[_scope(parts)].add(above[-1])
        folders.append(parts)
        for item, mode in _scan(path, parts, found, keys):
            status = item.stat()
            below = (
                Path(item.path),
                (*parts, _unique(item.name, parts, keys)),
                (*above, (status.st_dev, status.st_ino)),
            )
            (links if mode == "link" else waiting).append(below)
    return found, folders[1:]


def _scope(parts: Parts) -> Parts:
    """What is taken for the class of a folder while the layout is not known: the part below train, or the first."""
    below = next((n + 2 for n, part in enumerate(parts[:3]) if part.lower() in SPELLINGS), 1)
    return parts[:below]


def _scan(path: Path, parts: Parts, found: list[Found], keys: set[Parts]) -> list[tuple["os.DirEntry[str]", str]]:
    """Notes the files of one folder in `found`; returns the folders in it, each real or a link."""
    try:
        with os.scandir(path) as listing:
            items = sorted(listing, key=lambda item: os.fsencode(item.name))
    except OSError as error:
        found.append(Found(parts or (".",), None, "", ("failed", f"unreadable folder: {reason_of(error)}")))
        return []
    below = []
    for item in items:
        if is_hidden(item.name):
            found.append(Found((*parts, _unique(item.name, parts, keys)), None, "", ("skipped", "hidden")))
            continue
        try:
            if item.is_dir():
                below.append((item, "link" if item.is_symlink() else "folder"))
                continue
            found.append(_file(item, (*parts, _unique(item.name, parts, keys))))
        except OSError as error:  # is_dir says False for a dangling link, but raises on a loop
            key = (*parts, _unique(item.name, parts, keys))
            found.append(Found(key, None, "", ("failed", reason_of(error))))
    return below


def _file(item: "os.DirEntry[str]", parts: Parts) -> Found:
    """One directory entry that is no folder."""
    try:
        status = item.stat()
    except FileNotFoundError:
        return Found(parts, None, "", ("failed", "dangling link" if item.is_symlink() else "vanished"))
    except OSError as error:
        return Found(parts, None, "", ("failed", reason_of(error)))
    if not stat.S_ISREG(status.st_mode):
        how = "failed" if has_picture_suffix(item.name) else "skipped"
        reason = f"not a regular file but {what_is(status.st_mode)}"
        return Found(parts, None, "", ("failed", reason) if how == "failed" else ("skipped", reason))
    path = Path(item.path)
    return Found(parts, path, stamp_of(status), judge(item.name, lambda: head(path)))


def head(path: Path) -> bytes:
    """The first bytes of a regular file, none if it can't be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(handle, SNIFFED)
    except OSError:
        return b""
    finally:
        os.close(handle)


def _unique(name: str, parts: Parts, keys: set[Parts]) -> str:
    """The name in UTF-8; when two names of a folder look the same escaped, the later one is numbered."""
    text = plain = shown(name)
    number = 2
    while (*parts, text) in keys:
        text, number = f"{plain}~{number}", number + 1
    keys.add((*parts, text))
    return text
