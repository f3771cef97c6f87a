"""The checks of a store and of a source: whole? fit to train on? Everything that is wrong, not only the first.

`check_store` reads every byte of a store and compares it with the sha256 that was written with it. `check_folder`
decodes every picture of a source, as `prepare` would, and looks for what makes a data set unfit: pictures that cannot
be read, classes that are too small or missing in a split, and the same picture twice, worst of all in two splits.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnet import hardware
from convnet.data import index, store
from convnet.data.decode import MAX_PIXELS, BadPicture, decode
from convnet.data.fitness import Problem, class_problems, classes_line, count
from convnet.data.sources import SPLITS, Entry, Source
from convnet.data.sources.listing import EMPTY
from convnet.data.store_header import read_header, shard_name
from convnet.errors import DataError, UsageError
from convnet.io import atomic
from convnet.io.prefetch import in_order
from convnet.io.strict_json import Json
from convnet.io.urls import Url, place
from convnet.progress import SILENT, Progress

BATCH = 64  # pictures between two reports to the progress
SHOWN = 5  # keys in a line
LINES = 20  # of one kind of problem
RANKS = ("labels", "leak", "duplicate")  # kinds of duplicates, the most harmful first
OTHERS = {"store.json", ".lock"}  # files of a store that its header does not list


@dataclass(frozen=True)
class Report:
    """What was checked, and what is wrong."""

    what: str
    counts: Json
    problems: list[Problem] = field(default_factory=list)
    notes: tuple[str, ...] = ()  # what was read how, the classes by name with their pictures
    unfit: bool = False  # prepare and train would stop

    @property
    def ok(self) -> bool:
        """Whether there is no error; there may be warnings."""
        return not any(problem.severity == "error" for problem in self.problems)

    def to_dict(self) -> Json:
        """For JSON."""
        return {"ok": self.ok, **asdict(self)}

    def lines(self) -> list[str]:
        """For people; names are as they are, so whoever prints them makes control characters harmless."""
        numbers = (f"{name.replace('_', ' ')} {n:,}" for name, n in self.counts.items() if isinstance(n, int))
        n_errors = sum(problem.severity == "error" for problem in self.problems)
        last = f"{n_errors:,} errors, {len(self.problems) - n_errors:,} warnings" if self.problems else "nothing wrong"
        lines = [f"{self.what}: {', '.join(numbers)}", *self.notes]
        for kind in dict.fromkeys(problem.kind for problem in self.problems):
            texts = [f"{p.severity}: {p.text}" for p in self.problems if p.kind == kind]
            lines += texts[:LINES]
            if len(texts) > LINES:
                lines.append(f"... and {len(texts) - LINES:,} more of this kind; --json lists all")
        return [*lines, last]


# a store


def check_store(path: Path, progress: Progress = SILENT) -> Report:
    """Reads the whole store at `path`; every damage is in the report, damaged pictures with split and key.

    Raises: UsageError when there is no store at `path`.
    """
    if isinstance(url := place(path, "the store"), Url):
        raise UsageError(f"{url}: a check reads every byte; copy the store to a disk and check the copy")
    what, problems = f"store {path}", list[Problem]()
    try:
        header = read_header(path)
    except DataError as error:
        return Report(what, {}, [Problem("error", "header", str(error))])
    listed, splits = header["files"], header["splits"]
    n_classes, total = len(header["classes"]), sum(entry["n"] for entry in splits.values())
    per_class = [sum(entry["per_class"]) for entry in splits.values()]
    shards = {shard_name(name, k) for name in splits for k in range(splits[name]["shards"])}
    if sum(per_class) != total:
        text = f"counts {total} pictures, but {sum(per_class)} by class"
        problems.append(_damage("header", path / "store.json", text))
    problems += _extra_files(path, {*listed, *OTHERS})
    for name in sorted(listed.keys() - shards):
        problems += _check_file(path / name, listed[name])
    progress.start("checking", total)
    pictures = (of for name in splits for of in _check_split(path, name, splits[name], listed, n_classes))
    for done, of_picture in enumerate(pictures, 1):
        problems += of_picture
        if done % BATCH == 0:
            progress.update(min(done, total), damaged=str(len(problems)))
    progress.update(total)
    progress.finish()
    return Report(what, {"pictures": total, "classes": n_classes, "files": len(listed) + 1}, problems)


def _damage(kind: str, path: Path, text: str, keys: Sequence[str] = ()) -> Problem:
    return Problem("error", kind, f"{path} {text}; prepare the store again", tuple(keys))


def _extra_files(path: Path, known: set[str]) -> list[Problem]:
    names = {str(p.relative_to(path)) for p in path.rglob("*") if not p.is_dir()}
    return [Problem("warning", "extra", f"{path / n} does not belong to the store") for n in sorted(names - known)]


def _check_file(path: Path, entry: Json) -> list[Problem]:
    """A small file against the header's sha256."""
    try:
        is_whole = atomic.sha256_file(path) == entry.get("sha256")
    except OSError as error:
        return [_damage("missing", path, f"cannot be read: {error.strerror}")]
    return [] if is_whole else [_damage("damaged", path, "is damaged: its sha256 does not match")]


def _check_split(path: Path, split: str, entry: Json, listed: Json, n_classes: int) -> Iterator[list[Problem]]:
    """The problems of one split: for each picture a list, mostly empty."""
    file, n_bytes = path / f"{split}.index.npy", int(entry["n"]) * index.ROW.itemsize
    try:
        data = atomic.read(file, n_bytes + atomic.CHUNK)
        rows = np.frombuffer(data, index.ROW, offset=len(data) - n_bytes)  # numpy's reader trips over damage
    except (OSError, ValueError):  # the file itself is reported among the others
        yield [_damage("index", file, f"is of no use: the pictures of {split} were not checked")]
        return
    yield _check_rows(file, rows, entry, n_classes)
    keys = _keys(path / f"{split}.keys.jsonl", split, len(rows), listed)
    for number in range(int(entry["shards"])):
        name = shard_name(split, number)
        ids = np.flatnonzero(rows["shard"] == number)
        yield from _check_shard(path / name, split, rows, ids, keys, listed[name]["bytes"])


def _keys(path: Path, split: str, n: int, listed: Json) -> list[str]:
    """The keys, or numbers in their place when the key list is damaged (which is reported on its own)."""
    try:
        keys = index.read_names(atomic.read(path, listed[path.name]["bytes"]))
    except (OSError, ValueError):
        keys = []
    return keys if len(keys) == n else [f"{split} picture {i}" for i in range(n)]


def _check_rows(file: Path, rows: NDArray[np.void], entry: Json, n_classes: int) -> list[Problem]:
    """An index against the header, and its rows against each other."""
    problems = []
    labels = rows["label"].astype(np.int64)
    if len(labels) and (labels.min() < 0 or labels.max() >= n_classes):
        problems.append(_damage("index", file, f"has labels outside 0 to {n_classes - 1}"))
    elif np.bincount(labels, minlength=n_classes).tolist() != entry["per_class"]:
        problems.append(_damage("index", file, "has other numbers of pictures in the classes than store.json says"))
    if (np.diff(rows["shard"].astype(np.int64)) < 0).any() or (len(rows) and rows["shard"].max() >= entry["shards"]):
        problems.append(_damage("index", file, "names shards out of order, or that are not there"))
    return problems


def _check_shard(
    path: Path, split: str, rows: NDArray[np.void], ids: NDArray[np.int64], keys: list[str], expected: int
) -> Iterator[list[Problem]]:
    """A shard: records that follow each other from its first byte to its trailer, each with its sha256."""
    problems, end = [], 0
    try:
        size = path.stat().st_size
        with open(path, "rb", opener=atomic.regular) as file:
            if size != expected:
                problems.append(_damage("damaged", path, f"has {size} bytes instead of {expected}"))
            for i in ids.tolist():
                offset, length = int(rows["offset"][i]), int(rows["length"][i])
                if offset != end:
                    problems.append(_damage("index", path, f"has a gap or an overlap before {keys[i]!r}", [keys[i]]))
                end = offset + length
                file.seek(min(offset, size))
                data = file.read(min(length, size))
                whole = hashlib.sha256(data).digest() == rows["sha256"][i].tobytes()
                whole = whole and store.weighted_sum(np.frombuffer(data, np.uint8)) == rows["sum"][i]
                text = f"is damaged at {split} picture {keys[i]!r}"
                yield [] if whole else [_damage("damaged", path, text, [keys[i]])]
            file.seek(min(end, size))
            if file.read(len(store.TRAILER) + 1) != store.TRAILER:
                text = f"does not end in {len(store.TRAILER)} zeros after its pictures"
                problems.append(_damage("damaged", path, text))
    except OSError as error:
        problems.append(_damage("missing", path, f"cannot be read: {error.strerror}", [keys[i] for i in ids]))
    yield problems


# a folder, or anything else that can be prepared


@dataclass(frozen=True)
class Checked:
    """What a worker saw of one picture."""

    entry: Entry
    reason: str | None = None  # why it can't be used
    notes: tuple[str, ...] = ()
    file_hash: bytes = b""
    pixel_hash: bytes = b""  # of height, width and pixels
    shorter: int = 0  # pixels


def check_folder(
    source: Source, progress: Progress = SILENT, workers: int | None = None, max_pixels: int = MAX_PIXELS
) -> Report:
    """Decodes every picture of `source` and reports on the whole; `workers` threads, one for each core.

    max_pixels: a picture of more is refused, as by `prepare`.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: must be at least 1")
    checked: list[Checked] = []
    progress.start("checking", len(source.entries))
    n_threads = workers or hardware.cores().n
    for one in in_order(lambda entry: _check_picture(source, entry, max_pixels), source.entries,
                        lambda entry: repr(entry.key), n_threads=n_threads, window=4 * n_threads):  # fmt: skip
        checked.append(one)
        if len(checked) % BATCH == 0:
            progress.update(len(checked))
    progress.update(len(checked))
    progress.finish()
    good = [one for one in checked if one.reason is None]
    failed = [*source.failed, *((one.entry.key, str(one.reason)) for one in checked if one.reason is not None)]
    problems = [Problem("error", "unreadable", f"{key!r}: {reason}", (key,)) for key, reason in sorted(failed)]
    numbers = count(len(source.classes), ((one.entry.split, one.entry.label) for one in good))
    of_classes = list(class_problems(source.classes, numbers))
    problems += [Problem("warning", "empty", note) for note in source.notes if note.endswith(EMPTY)]
    problems += [*of_classes, *_duplicates(source, good)]
    for one in good:
        problems += [Problem("warning", "odd", f"{one.entry.key!r}: {note}", (one.entry.key,)) for note in one.notes]
    counts = {
        "seen": len(checked) + len(source.skipped) + len(source.failed),
        "good": len(good),
        "skipped": len(source.skipped),
        "unreadable": len(failed),
        "classes": len(source.classes),
        "smallest_side": min((one.shorter for one in good), default=0),
        "per_class": {part: row for part, row in numbers.items() if sum(row)},
    }
    unfit = any(problem.severity == "error" for problem in of_classes)
    notes = (classes_line(source.classes, numbers), *(note for note in source.notes if not note.endswith(EMPTY)))
    return Report(f"{source.name} ({source.kind})", counts, problems, notes, unfit)


def _check_picture(source: Source, entry: Entry, max_pixels: int) -> Checked:
    try:
        data = source.read(entry)
        pixels, notes = decode(data, max_pixels)
    except BadPicture as error:
        return Checked(entry, str(error))
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    whole = hashlib.sha256(data).digest() if isinstance(data, bytes) else digest.digest()
    return Checked(entry, None, notes, whole, digest.digest(), min(pixels.shape[:2]))


def _duplicates(source: Source, good: Sequence[Checked]) -> list[Problem]:
    """Groups of the same picture, the most harmful first: under two labels, in two splits, twice in a split."""
    groups: dict[bytes, list[Checked]] = {}
    for one in good:
        groups.setdefault(one.pixel_hash, []).append(one)
    problems = list[Problem]()
    for group in groups.values():
        if len(group) > 1:
            same = (
                "the same file" if len({one.file_hash for one in group}) == 1 else "the same pixels in different files"
            )
            problems.append(duplicate(source.classes, [one.entry for one in group], same))
    return by_harm(problems)


def by_harm(duplicates: Iterable[Problem]) -> list[Problem]:
    """The most harmful first."""
    return sorted(duplicates, key=lambda problem: (RANKS.index(problem.kind), problem.text))


def duplicate(classes: Sequence[str], group: Sequence[Entry], same: str) -> Problem:
    """What is wrong with a group of pictures that are one; `same` says in which sense."""
    keys = tuple(entry.key for entry in group)
    labels = sorted({classes[entry.label] for entry in group})
    splits = [split for split in SPLITS if any(entry.split == split for entry in group)]
    if len(labels) > 1:
        return Problem("error", "labels", f"{same} under the labels {_some(labels)}: {_some(keys)}", keys)
    if len(splits) > 1:
        return Problem("error", "leak", f"{same} in {' and '.join(splits)}: {_some(keys)}", keys)
    return Problem("warning", "duplicate", f"{same} {len(keys)} times in {splits[0]}: {_some(keys)}", keys)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
