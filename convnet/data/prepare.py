"""Preparation of a store: shorter side to S, centre crop, and the statistics of the training pictures.

The paper (section 2) scales the shorter side to 256, cuts out the central 256 x 256, and subtracts the mean of the
training set; section 4.1 needs the principal components of the RGB values. All of it is computed in one pass.

The listing is cut into shards; each shard is finished on its own, so that a preparation that was killed goes on where
it was. Threads decode and resize (Pillow releases the interpreter lock); one thread writes in listing order. All sums
are sums of integers, exact in any order: neither the workers nor a kill can change a byte of the result.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from convnet.data import store
from convnet.data.decode import MAX_PIXELS, stored_by
from convnet.data.fitness import count, refuse_unfit
from convnet.data.index import BLOCK
from convnet.data.preparation import records, unfinished
from convnet.data.preparation.commit import checked, commit, is_done
from convnet.data.preparation.unfinished import WORK as WORK
from convnet.data.preparation.unfinished import Job, Part, Plan
from convnet.data.resize import Encoding, Fit, Settings
from convnet.data.sources import SPLITS, Source, open_source
from convnet.data.statistics import Sums
from convnet.data.store_header import VERSION, is_store, read_header
from convnet.errors import UsageError
from convnet.io import atomic, npy, rng
from convnet.io.prefetch import in_order
from convnet.io.processes import Processes
from convnet.progress import SILENT, Progress

SIZE = 256  # pixels: AlexNet section 2
SHARD_BYTES = 1 << 27  # about this much in a shard
JPEG_PICTURES = 2048  # in a jpeg shard, whose bytes aren't known before
FLUSH_BYTES = 1 << 24  # are written, then flushed to the disk beside the work


@dataclass(frozen=True)
class PartOfStore:
    """What `prepare_part` made: of the store's `n_shards` the ones of part i of n, their pictures, and how many of
    these failed."""

    part: tuple[int, int]
    shards: tuple[str, ...]
    n_shards: int
    pictures: int
    failed: int


def prepare(
    source: Source | atomic.PathLike,
    path: atomic.PathLike,
    *,
    size: int | None = None,
    encoding: Encoding = "raw",
    shorter_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    fit: Fit = "crop",
    workers: int | None = None,
    progress: Progress = SILENT,
) -> store.Store:
    """Makes the store at `path` from `source` (what `open_source` gives or takes), or goes on with one, and opens it.

    size: pixels of the square; None: the source's own (MNIST 28, CIFAR 32, digits 8), for photos 256.
    shorter_side: pixels; None: `size`. workers: threads; None: one for each core.
    fit: "crop", or "pad" and "squash", which keep whole pictures (`convnet/data/resize.py`).
    max_pixels: a picture of more is refused; all threads together decode no more at a time (docs/pictures.md).

    Raises: UsageError when `path` holds something else; DataError when classes are unfit (fitness.py); DiskError.
    """
    path = atomic.as_path(path, "the store")
    source = source if isinstance(source, Source) else open_source(source, work=path / WORK)
    settings = settings_for(source, size, encoding, shorter_side, max_pixels, fit)
    threads = unfinished.n_threads(workers)
    jobs, plan = _planned(source, settings)
    if is_done(path):
        return checked(_finished(path, plan, progress))
    with atomic.lock(path, "preparing"):
        if is_store(path):  # by a process that was killed, or finished, just after it
            finished = _finished(path, plan, progress)
            unfinished.end(path)
            return checked(finished)
        unfinished.begin(path, plan)
        _make_shards(path, jobs, source, settings, threads, progress)
        return checked(commit(path, plan))


def prepare_part(
    source: Source,
    path: atomic.PathLike,
    part: tuple[int, int],
    settings: Settings,
    *,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> PartOfStore | store.Store:
    """Makes the shards of part i of n (1 to n) of the store at `path`, or goes on with them; gives the store if it is
    finished already.

    Parts may be made at the same time, on several machines that share the disk; `merge` makes the store of them.

    Raises: as `prepare`, and UsageError when other parts have another source or other settings.
    """
    path = atomic.as_path(path, "the store")
    i, n = part
    if not 1 <= i <= n:
        raise UsageError(f"--part {i}/{n}: must be i/n with i from 1 to n, as 1/{max(n, 1)}")
    threads = unfinished.n_threads(workers)
    jobs, plan = _planned(source, settings)
    if is_store(path):
        return checked(_finished(path, plan, progress))
    own = jobs[Processes(i - 1, n).part(len(jobs))]
    with atomic.lock(path, "preparing parts", shared=True):
        unfinished.join(path, plan, n)
        _make_shards(path, own, source, settings, threads, progress, shared=True)
        n_failed = sum(unfinished.read_part(path, job, settings.size).n_failed for job in own)
    return PartOfStore(part, tuple(job.shard for job in own), len(jobs), sum(job.n for job in own), n_failed)


def settings_for(
    source: Source,
    size: int | None,
    encoding: Encoding,
    shorter_side: int | None,
    max_pixels: int = MAX_PIXELS,
    fit: Fit = "crop",
) -> Settings:
    """The settings of `prepare`, with what was not given filled in."""
    square = size if size is not None else source.natural_size or SIZE
    return Settings(square, shorter_side if shorter_side is not None else square, encoding, max_pixels, fit)


def holds(path: Path, source: Source, settings: Settings) -> bool:
    """Whether the store at `path` was made from these very pictures with these settings."""
    made = read_header(path)
    return bool(made["listing"] == _listing_hash(_jobs(source, settings), source, settings))


# the work, cut into shards


def _jobs(source: Source, settings: Settings) -> list[Job]:
    """Training pictures in a random order that never changes, so that a reader of the shards sees mixed classes."""
    member = 3 * settings.size**2 + npy.HEADER_BYTES + 3 * BLOCK
    per_shard = JPEG_PICTURES if settings.encoding == "jpeg" else max(1, SHARD_BYTES // member)
    jobs = []
    for split in SPLITS:
        entries = [entry for entry in source.entries if entry.split == split]
        if split == "train":
            entries = [entries[i] for i in rng.permutation(len(entries), 0, rng.stream("store order"))]
        for number, first in enumerate(range(0, len(entries), per_shard)):
            own = entries[first : first + per_shard]
            jobs.append(Job(split, number, len(own), first, own))
    return jobs


def _listing_hash(jobs: list[Job], source: Source, settings: Settings) -> str:
    """Stands for the settings and the pictures that the source lists: the same for a copy of it elsewhere."""
    digest = hashlib.sha256(json.dumps([settings.stored, source.classes]).encode())
    if settings.max_pixels != MAX_PIXELS:
        digest.update(str(settings.max_pixels).encode())
    for job in jobs:
        for entry in job.entries:
            digest.update(json.dumps([entry.key, entry.split, entry.label, entry.lasting]).encode())
    for key, reason in source.failed:
        digest.update(json.dumps([key, reason]).encode())
    return digest.hexdigest()


def _planned(source: Source, settings: Settings) -> tuple[list[Job], Plan]:
    """The shards to be made, and the plan. Raises: DataError when the source's classes are unfit."""
    numbers = count(len(source.classes), ((entry.split, entry.label) for entry in source.entries))
    refuse_unfit(source.name, source.classes, numbers)
    jobs = _jobs(source, settings)
    shards: dict[str, list[int]] = {}
    files = hashlib.sha256()
    for job in jobs:
        shards.setdefault(job.split, []).append(job.n)
        files.update(json.dumps([entry.stamp for entry in job.entries]).encode())
    decoders = f"store {VERSION}, Pillow {PIL.__version__}, {stored_by()}"
    return jobs, Plan(settings, decoders, source.classes, _listing_hash(jobs, source, settings), files.hexdigest(),
                      shards, source.name, source.kind, source.notes, source.skipped, source.failed)  # fmt: skip


def _finished(path: Path, plan: Plan, progress: Progress) -> store.Store:
    made = store.Store(path)
    if made.header["listing"] != plan.listing:
        text = "holds a store made from other pictures or settings; remove the folder, or choose another"
        raise UsageError(f"{path} {text}")
    progress.note(f"{path} is already prepared from these pictures: nothing to do")
    return made


# one shard


def _make_shards(
    path: Path,
    jobs: Sequence[Job],
    source: Source,
    settings: Settings,
    n_threads: int,
    progress: Progress,
    shared: bool = False,
) -> None:
    """Makes what isn't whole of these shards. shared: other processes may be making the same ones."""
    # Pillow keeps its memory blocks: 120 page faults fewer a picture
    Image.core.set_blocks_max(64)  # type: ignore[attr-defined]
    todo = unfinished.still_to_do(path, jobs, settings.size, n_threads, progress)
    for _, damage in todo:
        if damage is not None:
            progress.warn(f"{damage}; the shard is made anew")
    total = sum(job.n for job in jobs)
    done = total - sum(job.n for job, _ in todo)
    progress.start("preparing", total, done)
    for job, _ in todo:
        with unfinished.making(path, job, settings.size, progress) if shared else nullcontext(True) as is_own:
            for n in _make_shard(path, job, source, settings, n_threads) if is_own else [job.n]:
                done += n
                progress.update(done)
    progress.finish()


def _make_shard(path: Path, job: Job, source: Source, settings: Settings, n_threads: int) -> Iterator[int]:
    """Writes one shard and its part; yields the number of pictures finished, chunk by chunk."""
    part, offset, rooms = Part(Sums.zero(settings.size)), 0, list[NDArray[np.uint8]]()
    n = records.n_at_once(settings)
    chunks = [(job.first + i, job.entries[i : i + n]) for i in range(0, len(job.entries), n)]
    with atomic.atomic(path / job.shard) as file, _flushing(file) as flush:
        for made in in_order(lambda item: records.make_chunk(source, settings, job, *item, rooms), chunks,
                             lambda item: f"a picture of {item[1][0].key!r} to {item[1][-1].key!r}",
                             n_threads=n_threads, window=2 * n_threads):  # fmt: skip
            for k, record in enumerate(made.records):
                made.part.rows[k] = made.part.rows[k]._replace(offset=offset)
                file.write(record.data)
                offset += len(record)
            flush(offset)
            part.add(made.part)
            if made.room is not None:
                rooms.append(made.room)
            yield len(made.part.rows) + made.part.n_failed
        file.write(store.TRAILER)
    unfinished.write_part(path, job, part)


@contextmanager
def _flushing(file: IO[bytes]) -> Iterator[Callable[[int], None]]:
    """A function to be told how much is written: now and then a thread flushes it, so that the end waits for little."""
    running: Future[None] | None = None
    flushed = 0

    def flush(written: int) -> None:
        nonlocal running, flushed
        if written - flushed >= FLUSH_BYTES and (running is None or running.done()):
            if running is not None:
                running.result()
            running, flushed = disk.submit(os.fsync, file.fileno()), written

    with ThreadPoolExecutor(1, thread_name_prefix="flush") as disk:
        yield flush
        if running is not None:
            running.result()
