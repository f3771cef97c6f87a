"""Where do the pictures lie? The files and folders below a root, by their parts, with how many pictures each holds."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convnet.data.image_formats import BadPicture
from convnet.data.sources.listing import SPELLINGS, Entry, Found, Parts

NEUTRAL = frozenset(("data", "dataset", "image", "images", "img", "imgs", "jpg", "jpegimages", "photos", "pictures"))
UNLABELLED = frozenset(("pred", "predict", "prediction", "unlabeled", "unlabelled", "unknown"))
NAMED = 5  # names in a sentence
LONGEST_TEXT = 1 << 28  # bytes of a text that comes with a published data set


@dataclass
class Tree:
    """All files and folders below `where`; `read` gives the bytes of an entry of this kind of source."""

    files: list[Found]
    where: Path
    read: Callable[[Entry], Any]
    pictures: Counter[Parts] = field(default_factory=Counter)  # meant to be pictures, at any depth below a folder
    direct: Counter[Parts] = field(default_factory=Counter)  # ... that lie in the folder itself
    inside: dict[Parts, list[str]] = field(default_factory=dict)  # the names of the folders in a folder

    def live(self, folder: Parts) -> list[str]:
        """The folders in a folder that have pictures at some depth."""
        return [name for name in self.inside.get(folder, []) if self.pictures[(*folder, name)]]

    def all_below(self, folder: Parts) -> Iterator[Found]:
        """The files at any depth below a folder."""
        for k in range(bisect_left(self.files, folder, key=parts_of), len(self.files)):
            if self.files[k].parts[: len(folder)] != folder:
                return
            yield self.files[k]

    def below(self, folder: Parts) -> Iterator[Found]:
        """What was meant to be a picture at any depth below a folder."""
        return filter(is_meant, self.all_below(folder))

    def text(self, *parts: str) -> str | None:
        """The text at a path, or None when there is none that can be read."""
        file = next(self.all_below(parts), None)
        if file is None or file.place is None or _bytes(file) > LONGEST_TEXT:
            return None
        try:
            data: bytes = self.read(Entry("/".join(parts), "train", 0, file.place, file.stamp))
        except BadPicture:
            return None
        return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "backslashreplace")


def tree_of(found: Iterable[Found], folders: Iterable[Parts], where: Path, read: Callable[[Entry], Any]) -> Tree:
    """The tree of these files and folders."""
    tree = Tree(sorted(found, key=parts_of), where, read)
    every = {folder[:end] for folder in folders for end in range(1, len(folder) + 1)}
    for file in tree.files:
        if ".." in file.parts:
            continue  # of a wicked tar: it lies nowhere
        every |= {file.parts[:end] for end in range(1, len(file.parts))}
        if is_meant(file):
            tree.pictures.update(file.parts[:end] for end in range(len(file.parts)))
            tree.direct[file.parts[:-1]] += 1
    for folder in sorted(every):
        tree.inside.setdefault(folder[:-1], []).append(folder[-1])
    return tree


def parts_of(file: Found) -> Parts:
    """What files are sorted by: all below a folder follow each other."""
    return file.parts


def is_meant(file: Found) -> bool:
    """Whether a file is a picture, or was meant to be one."""
    return file.problem is None or file.problem[0] == "failed"


def split_word(name: str) -> str | None:
    """The split that a folder's name speaks of: 'Final_Training', 'seg_train', 'test1'; None when none or several."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    splits = {SPELLINGS[word] for word in (word.removesuffix("set") for word in words) if word in SPELLINGS}
    return splits.pop() if len(splits) == 1 else None


def n_pictures(number: int) -> str:
    """A number of pictures, in words."""
    return f"{number:,} pictures" if number != 1 else "1 picture"


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(map(repr, names[:NAMED])) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")


def _bytes(file: Found) -> int:
    """The length of a file or of a member, as its stamp tells it."""
    return file.place[2] if isinstance(file.place, tuple) else int(file.stamp.split(":")[0] or 0)
