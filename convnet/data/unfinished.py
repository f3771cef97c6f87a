"""Resuming a preparation: what of a store is finished, and whole? Each shard's part in `.work`, under a sha256.

A preparation that was killed goes on with the finished shards. Each is held against its part first: every record's
sha256, and the trailer. What is damaged is thrown away and made anew, so damage can't get behind the commit mark.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convnet.data import store
from convnet.data.index import Row
from convnet.data.sources.listing import Entry
from convnet.data.statistics import Sums
from convnet.data.store_header import shard_name
from convnet.errors import DataError, UsageError
from convnet.io import atomic
from convnet.io.prefetch import in_order
from convnet.progress import Progress

WORK = ".work"  # the folder of an unfinished store
OURS = re.compile(  # the files of a store that was begun; a source.tar in the work folder is kept
    r"\.?((train|val|test)(-\d{5}\.(tar|part|json|sums)|\.(index|blocks)\.npy|\.keys\.jsonl)|mean\.npy|left_out\.jsonl)(\.part)?"
)


@dataclass(frozen=True)
class Job:
    """One shard: its split, its number, the position of its first picture in the split, its entries."""

    split: str
    number: int
    first: int
    entries: Sequence[Entry]


@dataclass
class Part:
    """What is known of some pictures of a store: rows of the index, keys, left-out pictures and sums."""

    sums: Sums
    rows: list[Row] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    enlarged: int = 0

    def add(self, other: "Part") -> None:
        """Appends the pictures of another part."""
        self.sums.add(other.sums)
        self.rows += other.rows
        self.keys += other.keys
        self.left_out += other.left_out
        self.enlarged += other.enlarged

    @property
    def n_bytes(self) -> int:
        """The bytes of all records."""
        return sum(row.length for row in self.rows)

    @property
    def n_failed(self) -> int:
        return sum(row["status"] == "failed" for row in self.left_out)


def end(path: Path) -> None:
    """Removes what a finished store needs no more. Raises: DiskError; the store is whole then, and the same command
    tries again."""
    with atomic.disk_errors(path / WORK):
        if (path / WORK).exists():
            shutil.rmtree(path / WORK)


def begin(path: Path, plan: str) -> None:
    """Makes room for this plan: keeps what an earlier run of the same plan finished, clears what another one began."""
    if (path / WORK).is_symlink():
        raise DataError(f"{path / WORK} is a link, through which nothing is written; remove it")
    mark = path / WORK / "plan"
    if mark.exists() and mark.read_bytes() == plan.encode():
        return
    strange = sorted(p.name for p in path.iterdir() if p.name not in (".lock", WORK))
    if strange and not mark.exists():
        raise UsageError(f"{path} is not empty (it holds {strange[0]!r}); choose a new folder for the store")
    with atomic.disk_errors(path):
        for old in (*path.glob(f"{WORK}/*-*.*"), *path.iterdir()):  # parts first: none may outlive its shard
            if OURS.fullmatch(old.name):
                old.unlink()
    atomic.write_atomic(mark, plan.encode())


def still_to_do(path: Path, jobs: Sequence[Job], size: int, n_threads: int, progress: Progress) -> list[Job]:
    """The jobs without a finished shard; of those that have one every byte is read, and damage is told."""
    begun = [job for job in jobs if _place(path, job).exists()]
    if not begun:
        return list(jobs)
    done, whole = 0, set()
    progress.start("checking what is finished", sum(len(job.entries) for job in begun))
    damages = in_order(lambda job: _damage(path, job, size), begun, lambda job: str(_place(path, job)),
                       n_threads=n_threads, window=2 * n_threads)  # fmt: skip
    for job, damage in zip(begun, damages, strict=True):
        if damage is None:
            whole.add((job.split, job.number))
        else:
            progress.warn(f"{damage}; the shard is made anew")
        done += len(job.entries)
        progress.update(done)
    progress.finish()
    return [job for job in jobs if (job.split, job.number) not in whole]


def write_part(path: Path, job: Job, part: Part) -> None:
    """Says that a shard is finished, once it is on the disk."""
    names = {"rows": part.rows, "keys": part.keys, "left_out": part.left_out, "enlarged": part.enlarged}
    text = json.dumps(names | {"n": part.sums.n, "products": part.sums.products.tolist()})
    content = text.encode() + b"\n" + part.sums.pixels.astype("<i8").tobytes()
    atomic.write_atomic(_place(path, job), hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def read_part(path: Path, job: Job, size: int) -> Part:
    """What `write_part` wrote. Raises: DataError when it can't be read or isn't as it was written."""
    place = _place(path, job)
    try:
        digest, _, content = place.read_bytes().partition(b"\n")
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror}; run the same command again") from error
    if digest != hashlib.sha256(content).hexdigest().encode():
        raise DataError(f"{place} is damaged: its sha256 does not match; run the same command again")
    text, _, pixels = content.partition(b"\n")
    names = json.loads(text)
    sums = np.frombuffer(pixels, "<i8").reshape(size, size, 3).astype(np.int64)
    products = np.array(names.pop("products"), np.int64)
    rows = [Row(*row) for row in names.pop("rows")]
    return Part(Sums(names.pop("n"), sums, products), rows, **names)


def _place(path: Path, job: Job) -> Path:
    return path / WORK / f"{job.split}-{job.number:05d}.part"


def _damage(path: Path, job: Job, size: int) -> str | None:
    """Why a finished shard, or its part, is not as it was written; None when it is."""
    shard = path / shard_name(job.split, job.number)
    try:
        part = read_part(path, job, size)
        with open(shard, "rb") as file:
            for row in part.rows:
                if hashlib.sha256(file.read(row.length)).hexdigest() != row.sha256:
                    return f"{shard} is damaged at byte {row.offset:,} to {row.offset + row.length - 1:,}"
            whole = file.read(len(store.TRAILER) + 1) == store.TRAILER
            return None if whole else f"{shard} is damaged at its end"
    except OSError as error:
        return f"{shard} cannot be read: {error.strerror}"
    except DataError as error:
        return str(error).partition(";")[0]
