"""Which file does a name in a list mean?

A name is looked up as it stands, then in other spellings: Windows' backslashes, without its extension, with letters of
another case, below a folder that has gone (/home/bob/set/a.jpg), or inside the folder that holds the pictures. All
names of a list are looked up in one place: beside the list, if any of them is there; else below a folder called like
the list's split; else anywhere below. Two files that a name could mean are never chosen between.
"""

import itertools
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from convnet.data.sources.listing import SPELLINGS, File, has_picture_suffix, shown

LEAVES = "its name leaves the folder; not read"
MISSING = "in the list, but missing"
DRIVE = re.compile(r"[A-Za-z]:/")


class FileIndex:
    """The files below a folder, by every spelling that a list may have for them."""

    def __init__(self, files: Iterable[File], folder: Path) -> None:
        self.files = {file.key: file for file in files}
        self.roots = sorted({posixpath.abspath(shown(folder)), os.path.realpath(folder)})
        self._by_end: dict[int, dict[str, list[str]]] = {}

    def __contains__(self, name: str) -> bool:
        """Whether it could mean a picture below."""
        path = self._inside(_plain(name))
        parts = path.split("/")
        ends = ["/".join(parts[n:]) for n in range(len(parts))] if _is_absolute(path) else [path]
        return any(self.files[key].problem is None for end in ends for key in self._matches(end))

    def resolve(self, names: Iterable[str], beside: str, split: str | None) -> tuple[dict[str, str], dict[str, str]]:
        """({name: key of its file}, {name: why it has none}) for the names of one list.

        beside: the list's folder, relative, empty or ending in '/'. split: which split all these names belong to.
        """
        keys, problems, plain = {}, {}, {}
        for name in names:
            exact = posixpath.normpath(beside + name)
            if exact in self.files and not _leaves(name) and not name.startswith("/"):
                keys[name] = exact
            elif _leaves(path := self._inside(_plain(name))):
                problems[name] = LEAVES
            else:
                plain[name] = path
        strange = {name: path for name, path in plain.items() if _is_absolute(path)}
        if not keys and not any(map(self._matches, plain.values())):
            strange = plain.copy()
        for name, moved in self._moved(strange, beside).items():
            plain[name] = moved
        matches = {name: self._matches(path) for name, path in plain.items() if not _is_absolute(path)}
        narrowed = _in_one_place(matches, plain, beside, split, bool(keys))
        for name, path in plain.items():
            likely = narrowed.get(name, [])
            if len(likely) == 1:
                keys[name] = likely[0]
            elif likely:
                problems[name] = f"{len(likely)} files could be meant: {', '.join(sorted(likely)[:3])}"
            else:
                problems[name] = LEAVES if _is_absolute(strange.get(name, path)) else MISSING
        return keys, problems

    def _inside(self, path: str) -> str:
        """An absolute name that lies below the folder, relative to it."""
        for root in self.roots:
            if path.startswith(root.rstrip("/") + "/"):
                return path[len(root.rstrip("/")) + 1 :]
        return path

    def _moved(self, names: dict[str, str], beside: str) -> dict[str, str]:
        """Names without the one beginning (/home/bob/set) below which the files are here.

        Nothing where there are several such beginnings, or where absolute names exist outside the folder.
        """
        paths = {name: path.split("/") for name, path in names.items()}
        beginnings = {tuple(path[:cut]) for path in paths.values() if (cut := self._cut(path, beside))}
        whole = bool(beginnings)
        if not beginnings and all(map(_is_absolute, names.values())):
            beginnings = {_shared([path[:-1] for path in paths.values()])}
        if len(beginnings) != 1:
            return {}
        (first,) = beginnings
        below = {name: path[len(first) :] for name, path in paths.items() if tuple(path[: len(first)]) == first}
        moved = {name: "/".join(path) for name, path in below.items() if path}
        if any(_is_absolute(names[name]) and os.path.lexists(names[name]) for name in moved):
            return {}
        return moved if whole or all(len(self._matches(path)) == 1 for path in moved.values()) else {}

    def _cut(self, path: list[str], beside: str) -> int:
        """How many leading parts to leave away so that the rest is a file's whole path; 0 where none is."""
        wholes = (n for n in range(1, len(path)) if beside + "/".join(path[n:]) in self.files)
        return next(wholes, 0)

    def _matches(self, path: str) -> list[str]:
        """The files whose path ends in `path`: those of its own spelling, else those without regard to case."""
        folded, last = _folded(path), _folded(posixpath.basename(path))
        keys = self._ending_in(path.count("/") + 1).get(folded, [])
        whole = [key for key in keys if _folded(posixpath.basename(key)) == last] or keys
        return [key for key in whole if _ends_in(key, path)] or whole

    def _ending_in(self, n_parts: int) -> dict[str, list[str]]:
        """{the last parts of a path, folded: the files}; a picture's also without its extension."""
        if n_parts not in self._by_end:
            ends: dict[str, list[str]] = defaultdict(list)
            for key in self.files:
                if key.count("/") + 1 >= n_parts:
                    end = _folded("/".join(key.split("/")[-n_parts:]))
                    ends[end].append(key)
                    stem = posixpath.splitext(end)[0]
                    if has_picture_suffix(end) and not has_picture_suffix(stem):
                        ends[stem].append(key)
            self._by_end[n_parts] = ends
        return self._by_end[n_parts]


def _in_one_place(
    matches: dict[str, list[str]], paths: dict[str, str], beside: str, split: str | None, exact: bool
) -> dict[str, list[str]]:
    """The files of each name in the first place where any is: beside the list, in its split's folder, anywhere."""
    places = []
    for folder in dict.fromkeys((beside, "")):
        depth = folder.count("/")
        places.append(
            {
                name: [
                    key for key in keys if key.startswith(folder) and key.count("/") == depth + paths[name].count("/")
                ]
                for name, keys in matches.items()
            }
        )
    if exact:
        return places[0]
    if split is not None:
        places.append({name: [key for key in keys if split_folder(key) == split] for name, keys in matches.items()})
    return next((place for place in places if any(place.values())), matches)


def _shared(paths: list[list[str]]) -> tuple[str, ...]:
    """The parts with which all paths begin."""
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return tuple(parts[0] for parts in same)


def split_folder(key: str) -> str | None:
    """The split that a folder above a file is called by; None where there is none."""
    return next((SPELLINGS[part] for part in key.lower().split("/")[:-1] if part in SPELLINGS), None)


def _plain(name: str) -> str:
    """A name with '/' between its parts and without './'."""
    path = name.replace("\\", "/")
    return path if _leaves(path) else posixpath.normpath(path)


def _leaves(path: str) -> bool:
    return ".." in path.split("/") or "\0" in path


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or DRIVE.match(path) is not None


def _ends_in(key: str, path: str) -> bool:
    """Whether a file's path ends in this one, letter by letter; the last part may lack its extension."""
    return any(f"/{text}".endswith(f"/{path}") for text in (key, posixpath.splitext(key)[0]))


def _folded(text: str) -> str:
    """One form of a name for all its letters' cases and for composed and decomposed accents."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()
