"""An index is made; pictures are added and removed: the net is asked, a coder fitted, the file written."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from convnet.data.sources.listing import shown
from convnet.data.store import Store, is_store
from convnet.errors import DataError, UsageError
from convnet.evaluation.trained_net import TrainedNet
from convnet.io import atomic
from convnet.progress import SILENT, Progress
from convnet.retrieval import codes
from convnet.retrieval.activations import activations, before_classes, shapes_of
from convnet.retrieval.codes import Coder
from convnet.retrieval.hamming import Codes
from convnet.retrieval.index import Contents, Features, Index, Ints, load, write
from convnet.retrieval.pictures import Odd, Pictures, of_split, pictures_at

FITTED = 1 << 28  # numbers of features on which a coder is fitted, at most: 1 GiB in float32
ENCODED = 1024  # pictures at a time
LARGEST = 65504.0  # of float16


@dataclass(frozen=True)
class Changed:
    """What became of an index: how many pictures it has, how many of them are new (or now gone), how many of those that
    were to be added were there already; and those that could not be read, each with the reason."""

    n: int
    changed: int
    there: int = 0
    failed: tuple[Odd, ...] = ()


@dataclass(eq=False)
class Spool:
    """Features of new pictures, in a file that has no name: what kills the process removes it."""

    file: IO[bytes]
    path: Path
    n_features: int
    names: list[str]
    labels: list[int]

    def add(self, names: Sequence[str], labels: Sequence[int], features: NDArray[np.float32]) -> None:
        self.names += names
        self.labels += labels
        with atomic.disk_errors(self.path):
            self.file.write(features.astype(np.float16).tobytes())
            self.file.flush()

    def features(self, ids: Ints) -> Features:
        size = 2 * self.n_features
        data = b"".join(os.pread(self.file.fileno(), size, size * int(i)) for i in ids)
        return np.frombuffer(data, np.float16).reshape(len(ids), self.n_features)


def sources(places: Sequence[Path], split: str | None = None) -> tuple[list[Pictures], str]:
    """The pictures of a store (all of its splits, or one), or of files and folders; and what stands before their names
    in an index: the place, as it was given. Raises: UsageError when there are none."""
    above = f"{shown(places[0])}/" if len(places) == 1 and places[0].is_dir() else ""
    if split is not None or len(places) > 1 or not is_store(places[0]):
        return [pictures_at(places, split)], above
    store = Store(places[0])
    return [of_split(store.split(name)) for name in store.splits if store.split(name).n], above


def make(
    path: Path,
    net: TrainedNet,
    checkpoint: Path,
    place: Path,
    stage: str | None = None,
    *,
    split: str | None = None,
    kind: str = "",
    n_bits: int = 0,
    codes_only: bool = False,
    progress: Progress = SILENT,
) -> Changed:
    """Writes an index of the pictures at a place by a stage's activations, with codes where a kind of coder is named.

    stage: None is the one before the classes. Raises: UsageError when the index exists; DataError when no picture can
    be read; DiskError.
    """
    if path.exists():
        raise UsageError(f"{path} exists; --add adds pictures to it, or choose another name")
    stage = stage or before_classes(net)
    n_features = int(np.prod(shapes_of(net, [stage])[stage]))
    several, above = sources([place], split)
    sha256, classes = atomic.sha256_file(checkpoint), several[0].classes
    contents = Contents(str(checkpoint), sha256, stage, n_features, (), classes, kind)
    with atomic.lock(path, "indexing", is_folder=False), _spool(path, n_features) as spool:
        odd = _ask(net, stage, several, above, frozenset(), spool, progress)
        coder, n = None, len(spool.names)
        if not n:
            raise DataError(
                f"{shown(place)}: none of its pictures could be read; convnet check {shown(place)} says why"
            )
        if kind:
            chosen = np.unique(np.linspace(0, n - 1, min(n, FITTED // n_features)).astype(np.int64))
            coder = codes.fit(kind, spool.features(chosen), n_bits, progress=progress)
        _write(path, contents, coder, None, np.empty(0, np.int64), spool, codes_only)
    return Changed(n, n, 0, odd)


def add(
    path: Path, net: TrainedNet, checkpoint: Path, place: Path, split: str | None = None, progress: Progress = SILENT
) -> Changed:
    """Adds the pictures whose names the index lacks, by its own stage and coder.

    Raises: UsageError for another checkpoint, or a class that the index lacks; DataError; DiskError.
    """
    with atomic.lock(path, "indexing", is_folder=False):
        index = load(path)
        index.check_checkpoint(checkpoint)
        several, above = sources([place], split)
        given, known = several[0].classes, index.contents.classes
        if new := sorted(set(given) - set(known)):
            raise UsageError(f"{shown(place)} has the class {new[0]!r}, which {path} lacks; make another index")
        with _spool(path, index.contents.n_features) as spool:
            odd = _ask(net, index.contents.stage, several, above, frozenset(index.contents.names), spool, progress)
            spool.labels = [known.index(given[label]) if label >= 0 else -1 for label in spool.labels]
            if spool.names:
                everything = np.arange(index.contents.n)
                _write(path, index.contents, index.coder, index, everything, spool, not index.has_features)
    n_new, n_there = len(spool.names), sum(each.n for each in several) - len(spool.names) - len(odd)
    return Changed(index.contents.n + n_new, n_new, n_there, odd)


def remove(path: Path, checkpoint: Path, pattern: str) -> Changed:
    """Removes the pictures whose name matches a pattern (*, ?, [abc]), or that lie in the folder of that name.

    Raises: UsageError when there are none, or no others.
    """
    with atomic.lock(path, "indexing", is_folder=False):
        index = load(path)
        index.check_checkpoint(checkpoint)
        names, folder = index.contents.names, f"{pattern.rstrip('/')}/"
        kept = [i for i, name in enumerate(names) if not (name.startswith(folder) or fnmatchcase(name, pattern))]
        if len(kept) in (0, len(names)):
            which = "every" if not kept else "no"
            raise UsageError(f"{path}: {which} picture is at {pattern!r}; its first one is {names[0]!r}")
        _write(path, index.contents, index.coder, index, np.array(kept), None, not index.has_features)
    return Changed(len(kept), len(names) - len(kept))


def _ask(
    net: TrainedNet,
    stage: str,
    several: Sequence[Pictures],
    above: str,
    known: frozenset[str],
    spool: Spool,
    progress: Progress,
) -> tuple[Odd, ...]:
    """The features of the pictures whose names aren't known go into the spool; those that can't be read are told."""
    odd = [each for pictures in several for each in pictures.odd]
    for pictures in several:
        new = np.array([i for i, key in enumerate(pictures.keys) if above + key not in known], np.int64)
        for part in activations(net, pictures.some(new), [stage], progress=progress):
            features = part.stages[stage].reshape(len(part.keys), spool.n_features)
            if (beyond := np.abs(features).max(1, initial=0) > LARGEST).any():
                raise DataError(
                    f"{part.keys[int(beyond.argmax())]}: its activations of {stage} are beyond {LARGEST:,.0f}, the "
                    f"largest number of an index; choose a later stage"
                )
            labels = [-1] * len(part.keys) if part.labels is None else part.labels.tolist()
            spool.add([above + key for key in part.keys], labels, features)
            odd += part.odd
    return tuple(each for each in odd if each["status"] == "failed")


def _write(
    path: Path, contents: Contents, coder: Coder | None, old: Index | None, kept: Ints, spool: Spool | None, bare: bool
) -> None:
    """The pictures `kept` of an index and those of the spool, in the order of their names; bare: without features."""
    names, labels = [contents.names[i] for i in kept], [] if old is None else old.labels[kept].tolist()
    parts = [old.codes[kept]] if old is not None and old.codes is not None else []
    if spool is not None:
        names, labels = names + spool.names, labels + spool.labels
        parts += [] if coder is None else _encoded(coder, spool)
    order = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)

    def features(places: Ints) -> Features:
        ids = order[places]
        found, is_old = np.empty((len(ids), contents.n_features), np.float16), ids < len(kept)
        if old is not None and is_old.any():
            found[is_old] = old.features(kept[ids[is_old]])
        if spool is not None and not is_old.all():
            found[~is_old] = spool.features(ids[~is_old] - len(kept))
        return found

    contents = replace(contents, names=tuple(names[i] for i in order))
    coded = np.concatenate(parts)[order] if parts else None
    write(path, contents, np.array(labels, np.int64)[order], None if bare else features, coder, coded)


def _encoded(coder: Coder, spool: Spool) -> list[Codes]:
    n = len(spool.names)
    return [coder.encode(spool.features(np.arange(at, min(at + ENCODED, n)))) for at in range(0, n, ENCODED)]


@contextmanager
def _spool(path: Path, n_features: int) -> Iterator[Spool]:
    place = path.with_name(f".{path.name}.features")
    with ExitStack() as stack:
        with atomic.disk_errors(place):
            atomic.make_folder(path.parent)
            place.unlink(missing_ok=True)
            file = stack.enter_context(open(place, "x+b"))
            place.unlink()
        yield Spool(file, place, n_features, [], [])
