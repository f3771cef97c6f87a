"""Which pictures are looked at? Those of a store's split, or of files and folders, which need no classes."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convnet.data.decode import decode
from convnet.data.preprocess import Preprocessing
from convnet.data.resize import Fit
from convnet.data.sources import Source
from convnet.data.sources.listing import File, Place, first_few, shown, stamp_of
from convnet.data.sources.walk import walk
from convnet.data.store import Split, Store, is_store
from convnet.errors import DataError, UsageError
from convnet.evaluation.pictures import Picture, check_gives, read, read_picture, split_to_test
from convnet.evaluation.views import Look
from convnet.io.prefetch import in_order
from convnet.io.signals import Stop
from convnet.progress import SILENT, Progress

Odd = dict[str, str]  # status (skipped, failed or note), key and reason of a picture, as a store tells them
Opened = tuple[Picture, tuple[str, ...]]  # and what is odd about it


class Part(NamedTuple):
    """Some pictures that were read: their positions, those that could be, and what is odd about them."""

    ids: NDArray[np.int64]
    pictures: list[Picture]
    odd: list[Odd]


@dataclass(frozen=True, eq=False)
class Pictures:
    """n pictures in a fixed order.

    name      what messages call them
    keys      their names, each unique: a store's keys, paths below a folder, or paths as they were given
    labels    int64 (n,), or None where nobody tells classes
    classes   the names of the labels' classes
    identity  a sha256 that is another one when a picture is
    odd       what of the folder is no picture, or can't be read
    read      (positions, looks, preprocessing, n at a time, stop) -> the pictures; a thread reads the next ones
    """

    name: str
    keys: Sequence[str]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    identity: str
    odd: tuple[Odd, ...]
    read: Callable[[NDArray[np.int64], Sequence[Look], Preprocessing, int, Stop | None], Iterator[Part]]

    @property
    def n(self) -> int:
        return len(self.keys)

    def some(self, ids: NDArray[np.int64]) -> "Pictures":
        """Those at some positions, which rise."""

        def read(chosen: NDArray[np.int64], *how: Any) -> Iterator[Part]:
            for part in self.read(ids[chosen], *how):
                yield part._replace(ids=np.searchsorted(ids, part.ids))

        labels, keys = None if self.labels is None else self.labels[ids], [self.keys[i] for i in ids]
        identity = hashlib.sha256(json.dumps([self.identity, keys]).encode()).hexdigest()
        return replace(self, keys=keys, labels=labels, identity=identity, read=read)


def pictures_at(places: Sequence[Path], split: str | None = None, progress: Progress = SILENT) -> Pictures:
    """The pictures of a store's split (None: test, or else val, or train), or all of some files and folders.

    Raises: UsageError when there are none, or two of one name; DataError for a damaged store.
    """
    if len(places) == 1 and is_store(places[0]):
        return of_split(split_to_test(Store(places[0], progress), split))
    if split is not None:
        what = f"{shown(places[0])} is none (it has no store.json)"
        raise UsageError(f"--split {split} is for a store, and {what}; prepare one of it, or leave --split out")
    return of_files(places)


def of_split(split: Split) -> Pictures:
    """The pictures of a store's split, with its labels."""
    identity, name = f"{split.store.identity} {split.name}", f"{split.store.path} ({split.name})"
    keys, labels = tuple(split.keys), np.asarray(split.labels[:], np.int64)
    return Pictures(name, keys, labels, split.store.classes, identity, (), partial(_of_split, split))


def of_files(places: Sequence[Path]) -> Pictures:
    """The pictures in files and below folders, without labels. A damaged one is told when it is read."""
    files: list[File] = []
    for place in places:
        if not place.is_dir():
            files.append(_file(place))
            continue
        above = () if len(places) == 1 else (shown(place),)
        files += [File((*above, *file.parts), file.place, file.stamp, file.problem) for file in walk(place)[0]]
    good = [file for file in files if file.problem is None]
    if len(places) == 1:
        good.sort(key=lambda file: file.parts)
    keys = tuple(file.key for file in good)
    if not keys:
        raise UsageError(f"{first_few([shown(place) for place in places])}: no pictures there; name some, or a folder")
    if len(set(keys)) < len(keys):
        raise UsageError(f"{max(keys, key=keys.count)} is named twice; name each picture once")
    stamps = hashlib.sha256(json.dumps([[file.key, file.stamp] for file in good]).encode()).hexdigest()
    odd = [{"status": file.problem[0], "key": file.key, "reason": file.problem[1]} for file in files if file.problem]
    name = first_few([shown(place) for place in places], 2, str)
    return Pictures(name, keys, None, (), stamps, tuple(odd), partial(_each, keys, partial(_of_file, good)))


def _file(path: Path) -> File:
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"{shown(path)}: {error.strerror}; name a store, a folder or pictures") from error
    return File((shown(path),), Place(path, 0, status.st_size), stamp_of(status))


def _of_split(
    split: Split, ids: NDArray[np.int64], looks: Sequence[Look], how: Preprocessing, n: int, stop: Stop | None
) -> Iterator[Part]:
    check_gives(split, looks, how)
    for part, pictures in read(split, ids, looks, stop, n):
        yield Part(part, pictures, [])
        split.passed(int(part[0]))


def of_source(source: Source, max_pixels: int) -> Pictures:
    """All entries of a source that could be prepared, in its order. A damaged one is told when it is read."""

    def opened(i: int, looks: Sequence[Look], fit: Fit) -> Opened:
        pixels, notes = decode(source.read(source.entries[i]), max_pixels)
        return read_picture(pixels, looks, fit)[0], notes

    keys = tuple(entry.key for entry in source.entries)
    labels = np.array([entry.label for entry in source.entries], np.int64)
    identity = hashlib.sha256(json.dumps([(entry.key, entry.stamp) for entry in source.entries]).encode()).hexdigest()
    return Pictures(source.name, keys, labels, source.classes, identity, (), partial(_each, keys, opened))


def _of_file(files: Sequence[File], i: int, looks: Sequence[Look], fit: Fit) -> Opened:
    place = files[i].place
    assert place is not None
    return read_picture(place.path, looks, fit)


def _each(
    keys: Sequence[str],
    opened: Callable[[int, Sequence[Look], Fit], Opened],
    ids: NDArray[np.int64],
    looks: Sequence[Look],
    how: Preprocessing,
    n: int,
    stop: Stop | None,
) -> Iterator[Part]:
    """Pictures that are opened one by one, by their positions."""

    def of_part(part: NDArray[np.int64]) -> Part:
        good, pictures, odd = list[int](), list[Picture](), list[Odd]()
        for i in part.tolist():
            try:
                picture, notes = opened(i, looks, how.fit)
            except DataError as error:
                odd.append({"status": "failed", "key": keys[i], "reason": str(error)})
                continue
            good.append(i)
            pictures.append(picture)
            odd += [{"status": "note", "key": keys[i], "reason": note} for note in notes]
        return Part(np.array(good, np.int64), pictures, odd)

    parts = [ids[first : first + n] for first in range(0, len(ids), n)]
    yield from in_order(of_part, parts, lambda part: f"{keys[part[0]]!r}", stop=stop)
