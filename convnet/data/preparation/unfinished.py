"""Resuming a preparation: what of a store is finished, and whole? Each shard's part in `.work`, under a sha256.

A preparation that was killed goes on with the finished shards. Each is held against its part first: every record's
sha256, and the trailer. What is damaged is thrown away and made anew, so damage can't get behind the commit mark.

The plan beside the parts says all that a store needs besides: whoever finds every part can make the store of them.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from convnet import hardware
from convnet.data import store
from convnet.data.index import Row
from convnet.data.resize import Settings
from convnet.data.sources.listing import Entry, Reason
from convnet.data.statistics import Sums
from convnet.data.store_header import shard_name
from convnet.errors import DataError, UsageError
from convnet.io import atomic
from convnet.io.prefetch import in_order
from convnet.progress import SILENT, Progress

WORK = ".work"  # the folder of an unfinished store
OURS = re.compile(  # the files of a store that was begun; a source.tar in the work folder is kept
    r"\.?((train|val|test)(-\d{5}\.(tar|part|json|sums)|\.(index|blocks)\.npy|\.keys\.jsonl)|mean\.npy|left_out\.jsonl)(\.part)?"
)


@dataclass(frozen=True)
class Job:
    """One shard: its split, its number, how many pictures; to make it, the first one's position in the split, and
    their entries."""

    split: str
    number: int
    n: int
    first: int = 0
    entries: Sequence[Entry] = ()

    @property
    def shard(self) -> str:
        """The name of its file."""
        return shard_name(self.split, self.number)


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


@dataclass(frozen=True)
class Plan:
    """What becomes of which pictures: all that a store needs beside its finished shards.

    listing, files: stand for the pictures, and for their files' sizes and times. shards: how many pictures each one
    of a split is to have, in order. skipped, failed: with reasons, as the listing has them.
    """

    settings: Settings
    decoders: str
    classes: tuple[str, ...]
    listing: str
    files: str
    shards: dict[str, list[int]]
    name: str
    kind: str
    notes: tuple[str, ...]
    skipped: tuple[Reason, ...]
    failed: tuple[Reason, ...]

    @property
    def jobs(self) -> list[Job]:
        """Its shards, without their entries."""
        return [Job(split, number, n) for split, sizes in self.shards.items() for number, n in enumerate(sizes)]

    @property
    def of_shards(self) -> tuple[object, ...]:
        """What the bytes of the shards depend on."""
        return self.settings, self.decoders, self.listing, self.files, self.shards

    def to_bytes(self) -> bytes:
        """It as JSON, and its sha256 before it."""
        body = json.dumps(asdict(self)).encode()
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    @classmethod
    def of_bytes(cls, data: bytes) -> "Plan | None":
        """What `to_bytes` wrote; None when it is damaged."""
        digest, _, body = data.partition(b"\n")
        if digest != hashlib.sha256(body).hexdigest().encode():
            return None
        names = json.loads(body)
        for name in ("classes", "notes"):
            names[name] = tuple(names[name])
        for name in ("skipped", "failed"):
            names[name] = tuple((key, reason) for key, reason in names[name])
        return cls(Settings(**names.pop("settings")), **names)

    def differs(self, other: "Plan") -> str:
        """What another plan has that this one has not, in words."""
        for name, value in asdict(other.settings).items():
            if value != (own := getattr(self.settings, name)):
                return f"{name} {value}, not {own}"
        names = {"decoders": f"{other.decoders}, not {self.decoders}", "listing": "other pictures or classes",
                 "files": "files of other sizes or times", "skipped": "other files left out"}  # fmt: skip
        different = (text for name, text in names.items() if getattr(self, name) != getattr(other, name))
        return next(different, f"the source {other.name} ({other.kind}), not {self.name} ({self.kind})")


def n_threads(workers: int | None) -> int:
    """As asked for, or one for each core. Raises: UsageError."""
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: must be at least 1")
    return workers or hardware.cores().n


def end(path: Path) -> None:
    """Removes what a finished store needs no more. Raises: DiskError; the store is whole then, and the same command
    tries again."""
    with atomic.disk_errors(path / WORK):
        if (path / WORK).exists():
            shutil.rmtree(path / WORK)


def begin(path: Path, plan: Plan) -> None:
    """Makes room for this plan: keeps what an earlier run of the same plan finished, clears what another one began."""
    there = read_plan(path)
    if there is not None and there.of_shards == plan.of_shards:
        if there != plan:
            atomic.write_atomic(_mark(path), plan.to_bytes())
        return
    _refuse_strangers(path)
    with atomic.disk_errors(path):
        for old in (*path.glob(f"{WORK}/*-*.*"), *path.iterdir()):  # parts first: none may outlive its shard
            if OURS.fullmatch(old.name):
                old.unlink()
    atomic.write_atomic(_mark(path), plan.to_bytes())


def join(path: Path, plan: Plan, n: int) -> None:
    """Begins with this plan, or joins others that make parts of the same, this one of `n`; several may at one moment.

    Raises: UsageError when the others' plan is another one; DataError when it is damaged.
    """
    _refuse_strangers(path)
    with atomic.lock(_mark(path), "beginning", is_folder=False, waiting=SILENT.note):
        if not _mark(path).exists():
            atomic.write_atomic(_mark(path), plan.to_bytes())
        there = plan_of(path)
        if there != plan:
            raise UsageError(
                f"{path} was begun with {plan.differs(there)}; every part needs the same source and settings: give it "
                "these, or choose another folder"
            )
        atomic.write_atomic(path / WORK / f"of-{n}", b"")


def read_plan(path: Path) -> Plan | None:
    """The plan of the store that is being prepared at `path`; None when there is none, or it is damaged.

    Raises: DataError when its place is a link.
    """
    if (path / WORK).is_symlink():
        raise DataError(f"{path / WORK} is a link, through which nothing is written; remove it")
    return Plan.of_bytes(_mark(path).read_bytes()) if _mark(path).exists() else None


def plan_of(path: Path) -> Plan:
    """The plan that the parts have. Raises: UsageError when there is none; DataError when it is damaged."""
    plan = read_plan(path)
    if plan is not None:
        return plan
    if _mark(path).exists():
        raise DataError(f"{_mark(path)} is damaged: its sha256 does not match; remove {path} and prepare it anew")
    raise UsageError(f"{path} holds no parts of a store; make them with: convnet prepare SOURCE {path} --part i/n")


def numbers_of_parts(path: Path) -> list[int]:
    """In how many parts the store was begun: one number, unless somebody changed it."""
    return sorted(int(mark.name.removeprefix("of-")) for mark in path.glob(f"{WORK}/of-[1-9]*"))


@contextmanager
def making(path: Path, job: Job, size: int, progress: Progress) -> Iterator[bool]:
    """Holds a shard for this process; whether it is to be made, and not just finished by another one."""
    with atomic.lock(_place(path, job), "preparing", is_folder=False, waiting=progress.note):
        yield not _place(path, job).exists() or damage(path, job, size) is not None


def _mark(path: Path) -> Path:
    return path / WORK / "plan"


def _refuse_strangers(path: Path) -> None:
    """Raises: UsageError when there are files, and no mark that says whose they are."""
    strange = sorted(p.name for p in path.iterdir() if p.name not in (".lock", WORK))
    if strange and not _mark(path).exists():
        raise UsageError(f"{path} is not empty (it holds {strange[0]!r}); choose a new folder for the store")


def still_to_do(
    path: Path, jobs: Sequence[Job], size: int, n_threads: int, progress: Progress
) -> list[tuple[Job, str | None]]:
    """The jobs without a whole shard, and why: None where none is finished. Of the finished every byte is read."""
    begun = [job for job in jobs if _place(path, job).exists()]
    if not begun:
        return [(job, None) for job in jobs]
    done, whole, found = 0, set[str](), dict[str, str]()
    progress.start("checking what is finished", sum(job.n for job in begun))
    damages = in_order(lambda job: damage(path, job, size), begun, lambda job: str(_place(path, job)),
                       n_threads=n_threads, window=2 * n_threads)  # fmt: skip
    for job, reason in zip(begun, damages, strict=True):
        if reason is None:
            whole.add(job.shard)
        else:
            found[job.shard] = reason
        done += job.n
        progress.update(done)
    progress.finish()
    return [(job, found.get(job.shard)) for job in jobs if job.shard not in whole]


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


def damage(path: Path, job: Job, size: int) -> str | None:
    """Why a finished shard, or its part, is not as it was written; None when it is."""
    shard = path / job.shard
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
