"""An index is made; pictures are added and removed: features are extracted, a coder fitted, the file written.

Features are extracted into .INDEX.work beside the index, from which a stopped command goes on.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convnet.data.sources.listing import shown
from convnet.data.store import Store, is_store
from convnet.errors import DataError, UsageError
from convnet.evaluation.trained_net import TrainedNet
from convnet.io import atomic, strict_json
from convnet.io.signals import Stop
from convnet.progress import SILENT, Progress
from convnet.retrieval import codes
from convnet.retrieval.activations import before_classes, shapes_of
from convnet.retrieval.codes import Coder
from convnet.retrieval.extract import extract
from convnet.retrieval.features import LEFT_OUT
from convnet.retrieval.hamming import Codes
from convnet.retrieval.index import Contents, Features, Index, Ints, load, write
from convnet.retrieval.pictures import Odd, Pictures, of_split, pictures_at

FITTED = 1 << 28  # numbers of features on which a coder is fitted, at most: 1 GiB in float32
ENCODED = 1024  # pictures at a time


@dataclass(frozen=True)
class Changed:
    """What became of an index: how many pictures it has, how many of them are new (or now gone), how many of those that
    were to be added were there already; and those that could not be read, each with the reason."""

    n: int
    changed: int
    there: int = 0
    failed: tuple[Odd, ...] = ()


class Rows(NamedTuple):
    """Some pictures: their names, labels (-1 where nobody knows), features by position."""

    names: list[str]
    labels: list[int]
    features: Callable[[Ints], Features]
    codes: Codes | None = None  # of an index; new pictures get theirs when the index is written


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
    stop: Stop | None = None,
) -> Changed:
    """Writes an index of the pictures at a place by a stage's activations, with codes where a kind of coder is named.

    stage: None is the one before the classes. Raises: UsageError when there is another index; DataError when no picture
    can be read; DiskError; Interrupted.
    """
    stage = stage or before_classes(net)
    n_features = int(np.prod(shapes_of(net, [stage])[stage]))
    several, above = sources([place], split)
    if kind:
        codes.check(kind, n_bits, sum(pictures.n for pictures in several), n_features)
    sha256, classes = atomic.sha256_file(checkpoint), several[0].classes
    asked = [sha256, stage, kind, n_bits, codes_only, above, *(pictures.identity for pictures in several)]
    made = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    contents = Contents(str(checkpoint), sha256, stage, n_features, (), classes, kind, made)
    with atomic.lock(path, "indexing", is_folder=False):
        if path.exists():
            if (there := load(path).contents).made != made:
                raise UsageError(f"{path} exists; --add adds pictures to it, or choose another name")
            _forget(path)
            return Changed(there.n, 0, there.n)
        parts, failed = _extracted(path, net, contents, several, above, progress, stop)
        coder, n = None, sum(len(part.names) for part in parts)
        if kind:
            chosen = np.unique(np.linspace(0, n - 1, min(n, FITTED // n_features)).astype(np.int64))
            coder = codes.fit(kind, _features(parts, n_features, chosen), n_bits, progress=progress)
        _write(path, contents, coder, parts, codes_only)
        _forget(path)
    return Changed(n, n, 0, failed)


def add(
    path: Path,
    net: TrainedNet,
    checkpoint: Path,
    place: Path,
    *,
    split: str | None = None,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> Changed:
    """Adds the pictures whose names the index lacks, by its own stage and coder.

    Raises: UsageError for another checkpoint, or a class that the index lacks; DataError; DiskError; Interrupted.
    """
    with atomic.lock(path, "indexing", is_folder=False):
        index = load(path)
        index.check_checkpoint(checkpoint)
        several, above = sources([place], split)
        known, n_there = set(index.contents.names), 0
        for i, pictures in enumerate(several):
            if new := sorted(set(pictures.classes) - set(index.contents.classes)):
                raise UsageError(f"{shown(place)} has the class {new[0]!r}, which {path} lacks; make another index")
            ids = np.array([k for k, key in enumerate(pictures.keys) if above + key not in known], np.int64)
            several[i], n_there = pictures.some(ids), n_there + pictures.n - len(ids)
        several = [pictures for pictures in several if pictures.n]
        if not several:
            _forget(path)
            return Changed(index.contents.n, 0, n_there)
        parts, failed = _extracted(path, net, index.contents, several, above, progress, stop)
        old, n_new = _kept(index, np.arange(index.contents.n)), sum(len(part.names) for part in parts)
        _write(path, replace(index.contents, made=""), index.coder, [old, *parts], not index.has_features)
        _forget(path)
    return Changed(index.contents.n + n_new, n_new, n_there, failed)


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
        _write(
            path, replace(index.contents, made=""), index.coder, [_kept(index, np.array(kept))], not index.has_features
        )
    return Changed(len(kept), len(names) - len(kept))


def _work(path: Path) -> Path:
    return path.with_name(f".{path.name}.work")


def _forget(path: Path) -> None:
    """Removes what the index was made from. Raises: DiskError."""
    with atomic.disk_errors(_work(path)):
        if _work(path).exists():
            shutil.rmtree(_work(path))


def _forget_empty(path: Path) -> None:
    """Removes what holds nothing that the same command could go on with."""
    for folder in (*_work(path).glob("*"), _work(path)):
        with suppress(OSError):  # it is none, or something lies in it
            folder.rmdir()


def _extracted(
    path: Path,
    net: TrainedNet,
    contents: Contents,
    several: Sequence[Pictures],
    above: str,
    progress: Progress,
    stop: Stop | None,
) -> tuple[list[Rows], tuple[Odd, ...]]:
    """Pictures with their features, labelled by the index's classes; and those that could not be read."""
    found, failed = list[Rows](), list[Odd]()
    for pictures in several:
        asked = f"{contents.sha256} {contents.stage} {pictures.identity}"
        folder = _work(path) / hashlib.sha256(asked.encode()).hexdigest()[:16]
        try:
            features = extract(net, contents.sha256, pictures, folder, [contents.stage], dtype="float16",
                               progress=progress, stop=stop)  # fmt: skip
        except DataError:
            _forget_empty(path)
            raise
        array = features.array(contents.stage).reshape(len(features.keys), contents.n_features)
        places = [contents.classes.index(name) for name in features.classes]
        labels = [-1] * len(array) if features.labels is None else [places[label] for label in features.labels]
        found.append(Rows([above + key for key in features.keys], labels, array.__getitem__))
        odd = map(strict_json.parse, (folder / LEFT_OUT).read_bytes().splitlines())
        failed += [each for each in odd if each["status"] == "failed"]
    return found, tuple(failed)


def _kept(index: Index, ids: Ints) -> Rows:
    """Those pictures of an index."""
    names, coded = [index.contents.names[i] for i in ids], index.codes
    own = None if coded is None else coded[ids]
    return Rows(names, index.labels[ids].tolist(), lambda places: index.features(ids[places]), own)


def _write(path: Path, contents: Contents, coder: Coder | None, parts: Sequence[Rows], bare: bool) -> None:
    """An index of all parts' pictures, in the order of their names. bare: without features."""
    names, labels = [name for part in parts for name in part.names], [each for part in parts for each in part.labels]
    order = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    coded = None
    if coder is not None:
        coded = np.concatenate([_encoded(coder, part) if part.codes is None else part.codes for part in parts])[order]

    def features(places: Ints) -> Features:
        return _features(parts, contents.n_features, order[places])

    contents = replace(contents, names=tuple(names[i] for i in order))
    write(path, contents, np.array(labels, np.int64)[order], None if bare else features, coder, coded)


def _encoded(coder: Coder, part: Rows) -> Codes:
    n = len(part.names)
    return np.concatenate(
        [coder.encode(part.features(np.arange(at, min(at + ENCODED, n)))) for at in range(0, n, ENCODED)]
    )


def _features(parts: Sequence[Rows], n_features: int, ids: Ints) -> Features:
    """Features of pictures by their position in all parts, one after the other."""
    found, first = np.empty((len(ids), n_features), np.float16), 0
    for part in parts:
        own = (ids >= first) & (ids < first + len(part.names))
        if own.any():
            found[own] = part.features(ids[own] - first)
        first += len(part.names)
    return found
