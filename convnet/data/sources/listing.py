"""What is a listing of labelled pictures, and how is one of its files read?

Every kind of source ends in the same `Source`: classes, entries in a fixed order, and what was
left out with the reason.
Who goes to `val` when nobody said is drawn here; which folder is the split and which the class: layout.py.
"""

import errno
import itertools
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from convnet.data.image_formats import SUFFIXES, BadPicture, not_read, sniff
from convnet.errors import UsageError
from convnet.io import rng
from convnet.io.atomic import what_is

SPLITS = ("train", "val", "test")
SPELLINGS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
}
NUMBER = re.compile(r"-?[0-9]+")  # a class that is a whole number
LITTER = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information"))  # of systems
SNIFFED = 32  # bytes of a file without a picture's extension that are looked at
LARGEST = 1 << 30  # bytes of one encoded picture

EMPTY = "holds no pictures: it is no class"  # what a note says of a folder in a class's place

Reason = tuple[str, str]
Parts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One labelled picture of a source.

    `key` is unique in the source, '/'-separated and encodable in UTF-8; `split` is train, val or test; `label` indexes
    the source's classes; `place` is the source's own; `stamp` changes when the content does (size and time of a file).
    """

    key: str
    split: str
    label: int
    place: Any
    stamp: str

    @property
    def lasting(self) -> str:
        """What of the stamp a copy of the source keeps: all but the time."""
        return ":".join(part for i, part in enumerate(self.stamp.split(":")) if i != 1)


Reader = Callable[[Entry], bytes | NDArray[np.uint8]]


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
class Found:
    """A file that was come across; `problem` says why it is no picture (skipped) or an unusable one (failed)."""

    parts: Parts
    place: Any
    stamp: str
    problem: tuple[Literal["skipped", "failed"], str] | None = None


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


def finish(
    where: Path,
    kind: str,
    classes: tuple[str, ...],
    entries: list[Entry],
    left_out: Iterable[Found],
    notes: Iterable[str],
    reader: Reader,
    name: str | None = None,
) -> Source:
    """The Source of these entries, in order, with the problems sorted into skipped and failed.

    Raises: UsageError when there is nothing to train on.
    """
    problems = sorted({("/".join(file.parts), *file.problem) for file in left_out if file.problem})
    skipped = tuple((key, reason) for key, how, reason in problems if how == "skipped")
    failed = tuple((key, reason) for key, how, reason in problems if how == "failed")
    if not any(entry.split == "train" for entry in entries):
        first = next(iter(failed or skipped), None)
        hint = f"; first of them {first[0]!r}: {first[1]}" if first else ""
        raise UsageError(
            f"{shown(where)}: no pictures to train on ({len(skipped)} files skipped, {len(failed)} unusable{hint}); "
            "a source needs pictures in class folders, with or without train/ and val/ above them"
        )
    order = {part: number for number, part in enumerate(SPLITS)}
    entries.sort(key=lambda entry: (order[entry.split], entry.label, entry.key))
    return Source(
        name or slug(where), kind, classes, entries, skipped, failed, None, (*notes, *numbering(classes)), reader
    )


def divided(source: Source, split: float, seed: int, into: str = "val") -> Source:
    """A source without splits with round(split * n) pictures of each class moved to `into`, at least 1 of 2.

    Who moves depends on the seed, the class's name and the pictures' keys: not on the other classes. A source with
    splits of its own stays as it is. Notes tell what was divided, and the classes that a split lacks.
    Raises: UsageError when a source with splits of its own is to be divided into `test`.
    """
    splits = [part for part in SPLITS if any(entry.split == part for entry in source.entries)]
    entries, notes = list(source.entries), list(source.notes)
    if splits == ["train"] and split <= 0:
        notes.append("no validation pictures: the split is 0")
    elif splits == ["train"]:
        moved = _drawn(source, split, seed)
        entries = [replace(entry, split=into if entry.key in moved else "train") for entry in entries]
        entries.sort(key=lambda entry: SPLITS.index(entry.split))
        notes.append(f"split {100 * split:g} % of each class into {into} with seed {seed}")
    elif into != "val":
        raise UsageError(
            f"--as {into}: {source.name} has splits of its own ({', '.join(splits)}); only a source without is divided"
        )
    return replace(source, entries=entries, notes=(*notes, *_gaps(source.classes, entries)))


def _drawn(source: Source, split: float, seed: int) -> set[str]:
    """The keys of round(split * n) pictures of each class, at least 1 of 2."""
    groups: dict[int, list[str]] = {}
    for entry in source.entries:
        groups.setdefault(entry.label, []).append(entry.key)
    drawn: set[str] = set()
    for label, keys in groups.items():
        n_moved = min(max(round(split * len(keys)), 1), len(keys) - 1)
        counters = np.array([rng.stream(key) for key in keys], np.uint64)
        numbers = rng.bits(seed, rng.stream("split"), rng.stream(source.classes[label]), counters)
        drawn |= {key for _, key in sorted(zip(numbers.tolist(), keys, strict=True))[:n_moved]}
    return drawn


def read_entry(entry: Entry) -> bytes:
    """The whole file of an entry whose place is a path."""
    return read_file(entry.place, entry.stamp)


def read_piece(entry: Entry) -> bytes:
    """The bytes of an entry whose place is (path, offset, length); its stamp begins with the whole file's."""
    path, offset, length = entry.place
    return read_file(path, ":".join(entry.stamp.split(":")[:2]), offset, length)


def read_file(path: Path, stamp: str, offset: int = 0, length: int | None = None) -> bytes:
    """A file (or a piece of it) that must still have this stamp before and after reading. Never waits on a fifo.

    Raises: BadPicture with the reason.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadPicture(reason_of(error)) from error
    try:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            raise BadPicture(f"not a regular file but {what_is(before.st_mode)}")
        wanted = before.st_size if length is None else length
        if wanted > LARGEST:
            raise BadPicture(f"{wanted:,} bytes are more than the {LARGEST:,} that one picture may have")
        data = pread(handle, wanted, offset)
        if stamp_of(before) != stamp or stamp_of(os.fstat(handle)) != stamp or len(data) != wanted:
            raise BadPicture("changed while it was read")
        return data
    except OSError as error:
        raise BadPicture(reason_of(error)) from error
    finally:
        os.close(handle)


def pread(handle: int, length: int, offset: int) -> bytes:
    """`length` bytes at `offset`, fewer only at the file's end."""
    pieces = []
    while length > 0 and (piece := os.pread(handle, length, offset)):
        pieces.append(piece)
        length -= len(piece)
        offset += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def judge(name: str, head: Callable[[], bytes]) -> tuple[Literal["skipped"], str] | None:
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


def slug(where: Path) -> str:
    """A short name that is safe as a file's: `My flowers.tar.gz` -> `My-flowers`."""
    name = re.sub(
        r"\.(tar(\.(gz|bz2|xz))?|tgz|tbz2?|txz|zip|txt|csv|tsv)$", "", shown(where.absolute().name), flags=re.I
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
    notes: list[str] = []
    for part in [part for part in SPLITS if part in present]:
        missing = [name for label, name in enumerate(classes) if label not in present[part]]
        if missing:
            some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            notes.append(f"{len(missing)} of {len(classes)} classes have no pictures in {part}: {some}")
    return notes
