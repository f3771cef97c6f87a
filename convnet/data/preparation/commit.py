"""The end of a preparation: finished shards become a store, all made by one process or in parts by many.

Nothing but the plan and the shards' parts is read, so the source needn't be there, and a store is the same to the last
byte, however many made it.
"""

import json
from collections.abc import Sequence
from itertools import count as from_0
from itertools import groupby
from pathlib import Path

import numpy as np

from convnet.data import store
from convnet.data.fitness import count, refuse_unfit
from convnet.data.index import index_files, npy_bytes
from convnet.data.preparation import unfinished
from convnet.data.preparation.unfinished import WORK, Part, Plan
from convnet.data.statistics import Sums, mean_picture, statistics
from convnet.data.store_header import FORMAT, VERSION, VERSION_OF_FITS, header_bytes, is_store
from convnet.errors import DataError, UsageError
from convnet.io import atomic
from convnet.io.processes import Processes
from convnet.io.strict_json import Json
from convnet.progress import SILENT, Progress


def merge(path: atomic.PathLike, *, workers: int | None = None, progress: Progress = SILENT) -> store.Store:
    """Makes the store at `path` of its parts, every shard of which is read and held against its sums; and opens it.

    Raises: UsageError when there are no parts, when a shard is missing, or while parts are made; DataError when one is
    damaged, or classes are unfit; DiskError.
    """
    path = atomic.as_path(path, "the store")
    threads = unfinished.n_threads(workers)
    if not is_store(path):
        unfinished.plan_of(path)  # or a folder that holds none would get a lock
    if not is_done(path):
        with atomic.lock(path, "merging"):
            if not is_store(path):
                plan = unfinished.plan_of(path)
                _refuse_unfinished(path, plan, threads, progress)
                return checked(commit(path, plan))
            unfinished.end(path)
    progress.note(f"{path} is merged already: nothing to do")
    return checked(store.Store(path))


def is_done(path: Path) -> bool:
    """Whether a store is there, and nothing of its preparation."""
    return is_store(path) and not any((path / name).exists() for name in (WORK, ".lock"))


def checked(made: store.Store) -> store.Store:
    """The store, if its classes are fit. Raises: DataError; the store stays, as its list says what failed and why."""
    numbers = {name: split["per_class"] for name, split in made.header["splits"].items()}
    refuse_unfit(made.header["source"]["name"], made.classes, numbers, _first_failed(made.left_out()))
    return made


def _refuse_unfinished(path: Path, plan: Plan, n_threads: int, progress: Progress) -> None:
    """Raises: UsageError naming the shards that are missing and their parts; DataError when one is damaged."""
    jobs = plan.jobs
    todo = unfinished.still_to_do(path, jobs, plan.settings.size, n_threads, progress)
    if not todo:
        return
    for _, damage in todo:
        if damage is not None:
            progress.warn(damage)
    numbers = {split: [job.number for job, _ in todo if job.split == split] for split in plan.shards}
    names = "; ".join(f"{split} {_ranges(missing)}" for split, missing in numbers.items() if missing)
    again = "make their parts again"
    if len(counts := unfinished.numbers_of_parts(path)) == 1:
        (n,), shards = counts, {job.shard for job, _ in todo}
        parts = (jobs[Processes(i, n).part(len(jobs))] for i in range(n))
        own = [i for i, part in enumerate(parts, 1) if any(job.shard in shards for job in part)]
        again = f"make part {_ranges(own)} of {n} again (--part i/{n})"
    damaged = any(damage is not None for _, damage in todo)
    raise (DataError if damaged else UsageError)(
        f"{path}: of {len(jobs):,} shards {len(todo):,} are missing or damaged: {names}; {again}, and then merge"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers, in short.

    >>> _ranges([1, 3, 4, 5, 9])
    '1, 3-5, 9'
    """
    places = from_0()
    runs = [list(run) for _, run in groupby(numbers, key=lambda number: number - next(places))]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def commit(path: Path, plan: Plan) -> store.Store:
    """Joins the parts into indexes, statistics and, last, store.json."""
    jobs, settings = plan.jobs, plan.settings
    parts = {job.split: Part(Sums.zero(settings.size)) for job in jobs}
    total = Part(Sums.zero(settings.size))
    total.left_out += [{"status": "skipped", "key": key, "reason": reason} for key, reason in plan.skipped]
    total.left_out += [{"status": "failed", "key": key, "reason": reason} for key, reason in plan.failed]
    files: Json = {}
    for job in jobs:
        part = unfinished.read_part(path, job, settings.size)
        parts[job.split].add(part)
        files[job.shard] = {"bytes": part.n_bytes + len(store.TRAILER)}
    for part in parts.values():
        total.add(part)
    if not total.sums.n:
        numbers = count(len(plan.classes), ((split, row.label) for split in parts for row in parts[split].rows))
        refuse_unfit(plan.name, plan.classes, numbers, _first_failed(total.left_out))
    total.left_out.sort(key=lambda row: (row["status"], row["key"], row["reason"]))
    contents: dict[str, bytes] = {}
    for split, part in parts.items():
        contents |= index_files(split, part.rows, part.keys)
    contents["mean.npy"] = npy_bytes(mean_picture(total.sums))
    contents["left_out.jsonl"] = "".join(json.dumps(row) + "\n" for row in total.left_out).encode()
    header = {
        "format": FORMAT,
        "version": VERSION if settings.fit == "crop" else VERSION_OF_FITS,
        "source": {"name": plan.name, "kind": plan.kind, "notes": list(plan.notes)},
        **settings.stored,
        "classes": list(plan.classes),
        "splits": {split: _split_header(part, plan, split) for split, part in parts.items()},
        "counts": _counts(plan, total),
        "statistics": statistics(total.sums),
        "listing": plan.listing,
        "files": files | store.write_files(path, contents),
    }
    atomic.write_atomic(path / "store.json", header_bytes(header))
    unfinished.end(path)
    return store.Store(path)


def _split_header(part: Part, plan: Plan, split: str) -> Json:
    labels = np.array([row.label for row in part.rows], np.int64)
    per_class = np.bincount(labels, minlength=len(plan.classes)).tolist()
    return {"n": len(labels), "shards": len(plan.shards[split]), "per_class": per_class}


def _counts(plan: Plan, total: Part) -> dict[str, int]:
    used, skipped, failed = len(total.rows), len(plan.skipped), total.n_failed
    seen = sum(map(sum, plan.shards.values())) + skipped + len(plan.failed)
    assert seen == used + skipped + failed, "every picture seen is used, skipped or failed"
    return {"seen": seen, "used": used, "skipped": skipped, "failed": failed, "enlarged": total.enlarged}


def _first_failed(left_out: list[dict[str, str]]) -> str:
    failed = (row for row in left_out if row["status"] == "failed")
    return next((f"; failed: {row['key']!r}: {row['reason']}" for row in failed), "")
