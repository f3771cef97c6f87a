"""A source becomes a store, and says what was odd about it. Nothing here needs torch, which takes seconds to load."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from convnet.data.fitness import classes_line, count
from convnet.data.prepare import WORK, PartOfStore, prepare, prepare_part
from convnet.data.resize import Settings
from convnet.data.sources import ANY, ColumnNames, Source, open_source
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.io.urls import Url, place
from convnet.progress import Progress

TOLD = 20  # left-out pictures that are named on the screen


def open_for(
    where: str,
    store: Path,
    split: float = 0.1,
    seed: int = 0,
    into: str = "val",
    layout: str | None = None,
    columns: ColumnNames = ANY,
    part: tuple[int, int] | None = None,
) -> Source:
    """The source at `where`. A compressed tar is unpacked into the unfinished store that is made of it.

    layout, columns: how its folders, or the columns of its list, are to be read. part: of the store, with a copy of its
    own.
    Raises: UsageError when the store would lie inside its own source.
    """
    if isinstance(url := place(store, "the store"), Url):
        raise UsageError(f"{url}: a store is made in a folder; name one, and copy it to its URL afterwards")
    if where != "digits" and Path(where).is_dir() and store.resolve().is_relative_to(Path(where).resolve()):
        raise UsageError(f"{store} lies inside {where}, whose pictures it is made of; choose a folder outside")
    return open_source(
        where, split=split, seed=seed, into=into, work=_work(store, part), layout=layout, columns=columns
    )


def _work(store: Path, part: tuple[int, int] | None) -> Path:
    return store / WORK if part is None else store / WORK / f"{part[0]}-of-{part[1]}"


def make_store(source: Source, path: Path, settings: Settings, progress: Progress, workers: int | None = None) -> Store:
    """Prepares `source` into the store `path`, and says what was odd."""
    _say_what_it_is(source, progress)
    made = prepare(source, path, **asdict(settings), workers=workers, progress=progress)
    forget_unpacked(path)
    say_what_was_odd(made, progress)
    return made


def make_part(
    source: Source,
    path: Path,
    part: tuple[int, int],
    settings: Settings,
    progress: Progress,
    workers: int | None = None,
) -> PartOfStore | Store:
    """Prepares a part of the store `path`; merging says what was odd."""
    _say_what_it_is(source, progress)
    made = prepare_part(source, path, part, settings, workers=workers, progress=progress)
    forget_unpacked(path, part)
    return made


def _say_what_it_is(source: Source, progress: Progress) -> None:
    progress.note(f"{source.name}: {source.kind}, {len(source.entries):,} pictures, {len(source.classes):,} classes")
    numbers = count(len(source.classes), ((entry.split, entry.label) for entry in source.entries))
    for note in (classes_line(source.classes, numbers), *source.notes):
        progress.note(note)


def forget_unpacked(store: Path, part: tuple[int, int] | None = None) -> None:
    """Removes the tar that `open_for` may have unpacked, and nothing else."""
    with suppress(OSError):
        (_work(store, part) / "source.tar").unlink()
        for folder in dict.fromkeys([_work(store, part), store / WORK, store]):
            folder.rmdir()  # only if nothing was prepared there


def say_what_was_odd(store: Store, progress: Progress) -> None:
    rows = store.left_out()
    for row in rows[:TOLD]:
        progress.note(f"{row['status']}: {row['key']}: {row['reason']}")
    if len(rows) > TOLD:
        progress.note(f"... and {len(rows) - TOLD:,} more in {store.path / 'left_out.jsonl'}")
    enlarged = store.header["counts"]["enlarged"]
    if enlarged:
        used, side = store.header["counts"]["used"], store.header["shorter_side"]
        progress.note(f"{enlarged:,} of {used:,} pictures were smaller than {side} pixels and were enlarged")


def refuse_columns(store: str, columns: ColumnNames) -> None:
    """Raises: UsageError when columns are named for a store, which has none."""
    if columns:
        raise UsageError(f"{store} is a store and no list; --name-column and its like are for lists")
