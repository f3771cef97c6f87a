"""Where do the pictures lie? The files and folders below a root, by their parts, with how many pictures each holds."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from convnet.data.image_formats import BadPicture
from convnet.data.sources.listing import SPELLINGS, ByteReader, File, Parts, words_of

NEUTRAL = frozenset(("data", "dataset", "image", "images", "img", "imgs", "jpg", "jpegimages", "photos", "pictures"))
UNLABELLED = frozenset(("pred", "predict", "prediction", "unlabeled", "unlabelled", "unknown"))
LONGEST_TEXT = 1 << 28  # bytes of a text that comes with a published data set

by_parts = attrgetter("parts")  # in this order all files below a folder follow each other


@dataclass
class Tree:
    """All files and folders below `root`; `read` gives the bytes of an entry of this kind of source."""

    files: list[File]
    root: Path
    read: ByteReader
    pictures: Counter[Parts] = field(default_factory=Counter)  # meant to be pictures, at any depth below a folder
    direct: Counter[Parts] = field(default_factory=Counter)  # ... that lie in the folder itself
    inside: dict[Parts, list[str]] = field(default_factory=dict)  # the names of the folders in a folder

    def live(self, folder: Parts) -> list[str]:
        """The folders in a folder that have pictures at some depth."""
        return [name for name in self.inside.get(folder, []) if self.pictures[(*folder, name)]]

    def all_below(self, folder: Parts) -> Iterator[File]:
        """The files at any depth below a folder."""
        for k in range(bisect_left(self.files, folder, key=by_parts), len(self.files)):
            if self.files[k].parts[: len(folder)] != folder:
                return
            yield self.files[k]

    def below(self, folder: Parts) -> Iterator[File]:
        """What was meant to be a picture at any depth below a folder."""
        return filter(is_picture, self.all_below(folder))

    def text(self, *parts: str) -> str | None:
        """The text at a path, or None when there is none that can be read."""
        file = next(self.all_below(parts), None)
        if file is None or file.place is None or file.place.length > LONGEST_TEXT:
            return None
        try:
            data = self.read(file.entry())
        except BadPicture:
            return None
        return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "backslashreplace")


def tree_of(files: Iterable[File], folders: Iterable[Parts], root: Path, read: ByteReader) -> Tree:
    """The tree of these files and folders."""
    tree = Tree(sorted(files, key=by_parts), root, read)
    every = {folder[:end] for folder in folders for end in range(1, len(folder) + 1)}
    for file in tree.files:
        if ".." in file.parts:
            continue  # of a wicked tar: it lies nowhere
        every |= {file.parts[:end] for end in range(1, len(file.parts))}
        if is_picture(file):
            tree.pictures.update(file.parts[:end] for end in range(len(file.parts)))
            tree.direct[file.parts[:-1]] += 1
    for folder in sorted(every):
        tree.inside.setdefault(folder[:-1], []).append(folder[-1])
    return tree


def is_picture(file: File) -> bool:
    """Whether a file is a picture, or was meant to be one."""
    return file.problem is None or file.problem[0] == "failed"


def split_word(name: str) -> str | None:
    """The split that a folder's name speaks of: 'Final_Training', 'seg_train', 'test1'; None when none or several."""
    splits = {SPELLINGS[word] for word in words_of(name, "set") if word in SPELLINGS}
    return splits.pop() if len(splits) == 1 else None
