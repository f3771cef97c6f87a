"""What is a listing of labelled pictures, and how is one of its files read?

Every kind of source ends in the same `Source`: classes, entries in a fixed order, and what was left out with the
reason. Which pictures are held out when nobody said is sampled here; which folder is the split and which the class:
layout.py.
"""

import errno
import itertools
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convnet.data.image_formats import SUFFIXES, BadPicture, not_read, sniff
from convnet.errors import UsageError
from convnet.io import rng
from convnet.io.atomic import regular

SPLITS = ("train", "val", "test")
SPELLINGS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LIST_SUFFIXES = (".txt", ".csv", ".tsv")
NUMBER = re.compile(r"-?[0-9]+")  # a class that is a whole number
LITTER = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information"))  # of systems
SNIFFED = 32  # bytes of a file without a picture's extension that are looked at
LARGEST = 1 << 30  # bytes of one encoded picture

EMPTY = "holds no pictures: it is no class"  # what a note says of a folder in a class's place

Reason = tuple[str, str]
Parts = tuple[str, ...]
Problem = tuple[Literal["skipped", "failed"], str]
ReadAt = Callable[[int, int], bytes]  # (length, offset) -> bytes, fewer at the end


class Place(NamedTuple):
    """Where the bytes of a picture lie in a file; `packed` is what a zip needs to know besides."""

    path: Path
    offset: int
    length: int
    packed: tuple[int, ...] = ()


IN_MEMORY = Place(Path(), 0, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One labelled picture of a source.

    `key` is unique in the source, '/'-separated and encodable in UTF-8; `split` is train, val or test; `label` indexes
    the source's classes; `stamp` changes when the content does (size and time of a file).
    """

    key: str
    split: str
    label: int
    place: Place
    stamp: str

    @property
    def lasting(self) -> str:
        """What of the stamp a copy of the source keeps: all but the time."""
        return ":".join(part for i, part in enumerate(self.stamp.split(":")) if i != 1)


Reader = Callable[[Entry], bytes | NDArray[np.uint8]]
ByteReader = Callable[[Entry], bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """A listing: every file that was found is in exactly one of `entries`, `skipped` and `failed`.

    `entries` are ordered by split (train, val, test), label, key; those of arrays by split and index. `skipped` was
    never meant to be a picture, `failed` was but cannot be used; both are (key, reason). `natural_size`: all pictures
    are squares of so many pixels. `notes` are for the user. `name` is safe as a file's name.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    entries: Sequence[Entry]
    skipped: tuple[Reason, ...]
    failed: tuple[Reason, ...]
    natural_size: int | None
    notes: tuple[str, ...]
    reader: Reader

    def read(self, entry: Entry) -> bytes | NDArray[np.uint8]:
        """The encoded bytes of a picture, or its pixels as uint8 (H, W, 3); several threads may read at once.

        Raises: BadPicture with the reason when the picture has vanished, changed or cannot be read.
        """
        return self.reader(entry)


@dataclass(frozen=True, slots=True)
class File:
    """A file of a source; `problem` says why it is no picture (skipped) or an unusable one (failed)."""

    parts: Parts
    place: Place | None = None
    stamp: str = ""
    problem: Problem | None = None

    @property
    def key(self) -> str:
        """Its path as text."""
        return "/".join(self.parts)

    def entry(self, split: str = "train", label: int = 0) -> Entry:
        """The file as a labelled picture."""
        assert self.place is not None
        return Entry(self.key, split, label, self.place, self.stamp)


def skipped(parts: Parts, reason: str) -> File:
    """A file that was never meant to be a picture of this source."""
    return File(parts, problem=("skipped", reason))


def failed(parts: Parts, reason: str) -> File:
    """A file that was meant to be a picture and can't be used."""
    return File(parts, problem=("failed", reason))


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes in their order: whole numbers by their value, unless one of them is none."""
    texts = set(names)
    if all(text.isascii() and text.isdecimal() for text in texts):
        return sorted(texts, key=lambda text: (int(text), text))
    return sorted(texts)


def numbering(classes: Sequence[str]) -> list[str]:
    """A note where classes are numbers and output k is not class k."""
    if not all(map(NUMBER.fullmatch, classes)):
        return []
    numbers = [int(name) for name in classes]
    place = next((k for k, number in enumerate(numbers) if k != number), None)
    if place is None:
        return []
    pairs = list(itertools.pairwise([-1, *numbers]))
    gaps = [f"{a + 1}" if b == a + 2 else f"{a + 1}-{b - 1}" for a, b in pairs if b > a + 1]
    missing = f"there are no pictures of {', '.join(gaps[:5])}{', ...' if len(gaps) > 5 else ''}; " if gaps else ""
    return [f"the labels are numbers: {missing}output {place} is class {classes[place]}"]


def make_source(
    path: Path,
    kind: str,
    classes: tuple[str, ...],
    entries: list[Entry],
    left_out: Iterable[File],
    notes: Iterable[str],
    reader: Reader,
    name: str | None = None,
) -> Source:
    """The Source of these entries, in order, with the problems sorted into skipped and failed.

    Raises: UsageError when there is nothing to train on.
    """
    reasons: dict[str, list[Reason]] = {"skipped": [], "failed": []}
    for key, (status, reason) in sorted({(file.key, file.problem) for file in left_out if file.problem}):
        reasons[status].append((key, reason))
    left = tuple(reasons["skipped"]), tuple(reasons["failed"])
    if not any(entry.split == "train" for entry in entries):
        first = next(iter(left[1] or left[0]), None)
        hint = f"; first of them {first[0]!r}: {first[1]}" if first else ""
        raise UsageError(
            f"{shown(path)}: no pictures to train on ({len(left[0])} files skipped, {len(left[1])} unusable{hint}); "
            "a source needs pictures in class folders, with or without train/ and val/ above them"
        )
    entries.sort(key=lambda entry: (SPLITS.index(entry.split), entry.label, entry.key))
    return Source(name or slug(path), kind, classes, entries, *left, None, (*notes, *numbering(classes)), reader)


def array_source(
    name: str,
    kind: str,
    classes: tuple[str, ...],
    splits: Mapping[str, tuple[NDArray[np.uint8], Iterable[int]]],
    pixels_of: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    size: int | None,
    skipped: Iterable[Reason],
    notes: Iterable[str],
) -> Source:
    """The Source of arrays, {split: (pictures, labels)}; keys count: `train/00000`.

    pixels_of: makes of a picture in its array one that is uint8 (H, W, 3).
    """
    arrays = {split: pictures for split, (pictures, _) in splits.items()}

    def read(entry: Entry) -> NDArray[np.uint8]:
        split, number = entry.key.split("/")
        return np.ascontiguousarray(pixels_of(arrays[split][int(number)]))

    entries = [
        Entry(f"{split}/{n:05d}", split, label, IN_MEMORY, array_stamp(pictures[n]))
        for split, (pictures, labels) in splits.items()
        for n, label in enumerate(labels)
    ]
    return Source(name, kind, classes, entries, tuple(skipped), (), size, tuple(notes), read)


def hold_out(source: Source, split: float, seed: int, into: str = "val") -> Source:
    """A source without splits with round(split * n) pictures of each class moved to `into`, at least 1 of 2.

    Which pictures move depends on the seed, the class's name and the pictures' keys: not on the other classes. A source
    with splits stays as it is. Notes tell what was held out, and the classes that a split lacks.
    Raises: UsageError when pictures of a source with splits are to be moved to `test`.
    """
    splits = [part for part in SPLITS if any(entry.split == part for entry in source.entries)]
    entries, notes = list(source.entries), list(source.notes)
    if splits == ["train"] and split <= 0:
        notes.append("no validation pictures: the split is 0")
    elif splits == ["train"]:
        moved = _sample(source, split, seed)
        entries = [replace(entry, split=into if entry.key in moved else "train") for entry in entries]
        entries.sort(key=lambda entry: SPLITS.index(entry.split))
        notes.append(f"split {100 * split:g} % of each class into {into} with seed {seed}")
    elif into != "val":
        raise UsageError(
            f"--as {into}: {source.name} has splits of its own ({', '.join(splits)}); only a source without is divided"
        )
    return replace(source, entries=entries, notes=(*notes, *_gaps(source.classes, entries)))


def _sample(source: Source, split: float, seed: int) -> set[str]:
    """The keys of round(split * n) pictures of each class, at least 1 of 2."""
    groups: dict[int, list[str]] = {}
    for entry in source.entries:
        groups.setdefault(entry.label, []).append(entry.key)
    moved: set[str] = set()
    for label, keys in groups.items():
        n_moved = min(max(round(split * len(keys)), 1), len(keys) - 1)
        counters = np.array([rng.stream(key) for key in keys], np.uint64)
        numbers = rng.bits(seed, rng.stream("split"), rng.stream(source.classes[label]), counters)
        moved |= {key for _, key in sorted(zip(numbers.tolist(), keys, strict=True))[:n_moved]}
    return moved


def read_entry(entry: Entry) -> bytes:
    """The bytes of an entry; its stamp begins with that of the file they lie in. Raises: BadPicture."""
    path, offset, length, _ = entry.place
    return read_file(path, entry.stamp, offset, length)


def read_file(path: Path, stamp: str, offset: int, length: int) -> bytes:
    """A piece of a file whose size and time are those in `stamp` before and after reading. Never waits on a fifo.

    Raises: BadPicture with the reason.
    """
    stamp = ":".join(stamp.split(":")[:2])
    if length > LARGEST:
        raise BadPicture(f"{length:,} bytes are more than the {LARGEST:,} that one picture may have")
    try:
        with open(path, "rb", buffering=0, opener=regular) as file:
            before = os.fstat(file.fileno())
            data = pread(file.fileno(), length, offset)
            if stamp_of(before) != stamp or stamp_of(os.fstat(file.fileno())) != stamp or len(data) != length:
                raise BadPicture("changed while it was read")
            return data
    except OSError as error:
        raise BadPicture(reason_of(error)) from error


def pread(handle: int, length: int, offset: int) -> bytes:
    """`length` bytes at `offset`, fewer only at the file's end."""
    pieces = []
    while length > 0 and (piece := os.pread(handle, length, offset)):
        pieces.append(piece)
        length -= len(piece)
        offset += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def judge(name: str, head: Callable[[], bytes]) -> Problem | None:
    """None for a regular file that is meant to be a picture, by its extension or by its first bytes; or why not."""
    if is_hidden(name):
        return "skipped", "hidden"
    if has_picture_suffix(name) or sniff(first := head()) is not None or not_read(first) is not None:
        return None
    return "skipped", "not a picture"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or what a system leaves in folders: copies and previews of pictures."""
    return name.startswith(".") or name in LITTER


def array_stamp(pixels: NDArray[np.uint8]) -> str:
    """The identity of a picture that is no file: the CRC of its pixels."""
    return f"{zlib.crc32(pixels.tobytes()):08x}"


def has_picture_suffix(name: str) -> bool:
    """Whether a name ends like a picture's."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def stamp_of(status: os.stat_result) -> str:
    """The cheap identity of a file's content: `size:mtime_ns`."""
    return f"{status.st_size}:{status.st_mtime_ns}"


def shown(path: Path | str) -> str:
    """A path as text that is always encodable in UTF-8: bytes that are no UTF-8 become `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def words_of(name: str, suffix: str = "") -> set[str]:
    """The words of a name, without this suffix: `trainLabels.csv`, `labels_train.txt`, `val-map.txt`."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return {word.removesuffix(suffix) for word in words}


def first_few(names: Iterable[str], most: int = 5, text: Callable[[str], str] = repr) -> str:
    """The first names for a sentence, and how many more there are."""
    names = list(names)
    return ", ".join(map(text, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def n_pictures(number: int) -> str:
    """A number of pictures, in words."""
    return f"{number:,} pictures" if number != 1 else "1 picture"


def slug(path: Path) -> str:
    """A short name that is safe as a file's: `My flowers.tar.gz` -> `My-flowers`."""
    name = re.sub(
        r"\.(tar(\.(gz|bz2|xz))?|tgz|tbz2?|txz|zip|txt|csv|tsv)$", "", shown(path.absolute().name), flags=re.I
    )
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-._")[:64] or "pictures"


def reason_of(error: OSError) -> str:
    """Why a file can't be read, in short."""
    known = {
        errno.ENOENT: "vanished",
        errno.ENOTDIR: "vanished",
        errno.EACCES: "no permission",
        errno.EPERM: "no permission",
        errno.ELOOP: "symlink loop",
        errno.ENXIO: "not a regular file but a socket",
        errno.ENAMETOOLONG: "its name is too long",
    }
    return known.get(error.errno or 0) or error.strerror or str(error)


def _gaps(classes: Sequence[str], entries: Iterable[Entry]) -> list[str]:
    """Notes on the classes that a split lacks."""
    present: dict[str, set[int]] = {}
    for entry in entries:
        present.setdefault(entry.split, set()).add(entry.label)
    notes = []
    for split in sorted(present, key=SPLITS.index):
        missing = [name for label, name in enumerate(classes) if label not in present[split]]
        if missing:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            notes.append(f"{len(missing)} of {len(classes)} classes have no pictures in {split}: {names}")
    return notes
