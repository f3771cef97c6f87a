"""Which pictures are copies of one another: cut, labelled, mirrored, resized or saved anew?

A net proposes and pixels decide. Of each picture the NEAREST others are looked at, by the cosine of a stage's maps
averaged over their places, so that it doesn't matter where in a picture something stands. Of all windows of the one
picture, on a grid of 32 x 32 and with sides of at least 26 / 32, that is taken whose small grey picture correlates most
with the whole other one. These two are compared block by block, less each block's means of its rows and columns, which
horizons and borders have in common: the likeness is the median of the correlations of 16 blocks, of those in which
something is left. A copy agrees in each block but those under a label. A net that proposes worse finds fewer; whether
a pair is one, no net says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnet.data.check import Report, by_harm, duplicate
from convnet.data.fitness import Problem
from convnet.data.sources import Entry, Source
from convnet.data.sources.listing import IN_MEMORY
from convnet.data.store import Pixels, Store
from convnet.errors import UsageError
from convnet.evaluation.trained_net import TrainedNet
from convnet.progress import SILENT, Progress
from convnet.retrieval.activations import activations, shapes_of
from convnet.retrieval.codes import unit
from convnet.retrieval.pictures import Part, Pictures, of_source, of_split

NEAREST = 10  # others that are looked at, of each picture
LIKE = 0.85  # least likeness of copies: of 3,300 photos no two have more than 0.756
SIDE = 64  # pixels of the grey pictures in which windows are looked for
GRID, LEAST = 32, 26  # places of a window's edges along a side; the fewest that lie between them
SMALL, BLOCKS = 24, 4  # pixels of a side that are compared; blocks along it
FLAT = 2.0  # grey levels: a block in which less is left in both pictures says nothing
FEWEST = 4  # blocks that must say something
HELD = 1 << 24  # cosines at a time
Floats = NDArray[np.float32]
Grey = NDArray[np.uint8]  # (SIDE, SIDE)
Greys = NDArray[np.uint8]  # (n, SIDE, SIDE)


class Copy(NamedTuple):
    """Two pictures, by position, the earlier one first, and their likeness, at most 1."""

    first: int
    second: int
    likeness: float


def near_copies(
    net: TrainedNet, several: Sequence[Pictures], least: float = LIKE, progress: Progress = SILENT
) -> list[Copy]:
    """All pairs that are alike by `least` or more, in order; positions count all pictures, source after source.

    What can't be read is left out. A picture takes 4 KB, and the time grows with the square of their number.
    Raises: UsageError for a net without maps; DataError for a damaged store.
    """
    stage, ids, greys, means = _last_maps(net), list[int](), list[Grey](), list[Floats]()
    first = 0
    for pictures in several:
        for part in activations(net, _tapped(pictures, first, ids, greys), [stage], progress=progress):
            means.append(part.stages[stage].mean((2, 3)))
        first += pictures.n
    if len(ids) < 2:
        return []
    pairs = _proposed(unit(np.concatenate(means)))
    return _compared(np.stack(greys), np.array(ids), pairs, least, progress)


def with_copies(
    report: Report, net: TrainedNet, source: Source | Path, max_pixels: int, progress: Progress = SILENT
) -> Report:
    """The report on a source, or on the store in a folder, with a warning for each new group of near-copies.

    Raises: UsageError for a net without maps, or another one than the store is for.
    """
    if isinstance(source, Path) and not report.ok:
        return replace(report, notes=(*report.notes, "near-copies were not looked for, as the store is damaged"))
    if isinstance(source, Path):
        store = Store(source)
        classes, splits = store.classes, [store.split(name) for name in store.splits if store.split(name).n]
        several = [of_split(split) for split in splits]
        entries = [
            Entry(key, split.name, int(label), IN_MEMORY, "")
            for split in splits
            for key, label in zip(split.keys, split.labels[:], strict=True)
        ]
    else:
        classes, several, entries = source.classes, [of_source(source, max_pixels)], list(source.entries)
    copies = near_copies(net, several, progress=progress)
    problems = _problems(classes, entries, copies, [set(problem.keys) for problem in report.problems])
    counts = report.counts | {"near_pairs": len(copies)}
    return replace(report, counts=counts, problems=[*report.problems, *problems])


def _problems(
    classes: Sequence[str], entries: Sequence[Entry], copies: Sequence[Copy], known: Sequence[set[str]]
) -> list[Problem]:
    """One for each group of pictures that are joined by pairs, but those whose pictures one group of `known` has."""
    groups: dict[int, set[int]] = {}
    for first, second, _ in copies:
        joined = groups.get(first, {first}) | groups.get(second, {second})
        groups |= dict.fromkeys(joined, joined)
    found = []
    for least, group in sorted(groups.items()):
        if least == min(group) and not any({entries[i].key for i in group} <= keys for keys in known):
            same = duplicate(classes, [entries[i] for i in sorted(group)], "nearly the same picture")
            found.append(replace(same, severity="warning"))
    return by_harm(found)


def likeness(grey: Grey, others: Greys) -> NDArray[np.float64]:
    """(k,): how alike each of `others` (k, SIDE, SIDE), or its mirror image, and some window of `grey` are."""
    windows, side = _windows(grey), _intervals()[0]
    whole = side @ np.concatenate([others, others[:, :, ::-1]]).astype(np.float32) @ side.T
    best = (_normal(windows) @ _normal(whole).T).argmax(0)
    plain, mirrored = np.split(_alike(windows[best], whole), 2)
    return np.where(plain > mirrored, plain, mirrored)


def _last_maps(net: TrainedNet) -> str:
    """The last stage that has maps, pool5 in AlexNet. Raises: UsageError."""
    maps = [stage for stage, shape in shapes_of(net, None).items() if len(shape) == 3 and shape[1] > 1]
    if not maps:
        raise UsageError(f"{net.name} has no stage with maps, by which pictures could be compared; choose another net")
    return maps[-1]


def _tapped(pictures: Pictures, first: int, ids: list[int], greys: list[Grey]) -> Pictures:
    """The same pictures; of what is read of them the positions, from `first`, and small grey pictures are kept."""

    def read(*how: Any) -> Iterator[Part]:
        for part in pictures.read(*how):
            ids.extend((first + part.ids).tolist())
            greys.extend(_grey(pixels) for picture in part.pictures for pixels in picture.values())
            yield part

    return replace(pictures, read=read)


def _grey(pixels: Pixels) -> Grey:
    return np.asarray(Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def _proposed(rows: Floats) -> NDArray[np.int64]:
    """(m, 2): each row (n, C) with those NEAREST to it, and they with it, in order."""
    n, k, pairs = len(rows), min(NEAREST, len(rows) - 1), list[NDArray[np.int64]]()
    step = max(1, HELD // max(n, 1))
    for top in range(0, n if k else 0, step):
        near = rows[top : top + step] @ rows.T
        own = np.arange(top, top + len(near))
        near[own - top, own] = -np.inf
        others = np.argpartition(-near, k - 1, 1)[:, :k]
        pairs.append(np.stack([own.repeat(k), others.reshape(-1)], 1))
    both = np.concatenate([each for part in pairs for each in (part, part[:, ::-1])]) if pairs else np.empty((0, 2))
    return np.unique(both, axis=0).astype(np.int64)


def _compared(
    greys: Greys, ids: NDArray[np.int64], pairs: NDArray[np.int64], least: float, progress: Progress
) -> list[Copy]:
    found: dict[tuple[int, int], float] = {}
    every, begins = np.unique(pairs[:, 0], return_index=True)
    progress.start("comparing pictures", len(every))
    for done, (i, others) in enumerate(zip(every, np.split(pairs[:, 1], begins[1:]), strict=True), 1):
        for j, value in zip(others.tolist(), likeness(greys[i], greys[others]).tolist(), strict=True):
            if value >= least:
                first, second = sorted((int(ids[i]), int(ids[j])))
                found[first, second] = max(value, found.get((first, second), value))
        progress.update(done)
    progress.finish()
    return [Copy(*pair, value) for pair, value in sorted(found.items())]


@cache
def _intervals() -> Floats:
    """(I, SMALL, SIDE): what averages a side's pixels within a window to SMALL numbers; first of the whole side."""
    found = []
    for n in range(GRID, LEAST - 1, -1):
        for begin in range(GRID - n + 1):
            edges = (begin + np.arange(SMALL + 1)[:, None] * n / SMALL) * SIDE / GRID
            shared = np.minimum(edges[1:], np.arange(1, SIDE + 1)) - np.maximum(edges[:-1], np.arange(SIDE))
            found.append(shared.clip(0) / np.diff(edges, axis=0))
    return np.array(found, np.float32)


def _windows(grey: Grey) -> Floats:
    """(I * I, SMALL, SMALL): every window of a picture."""
    n, flat = len(_intervals()), _intervals().reshape(-1, SIDE)
    every = (flat @ grey.astype(np.float32) @ flat.T).reshape(n, SMALL, n, SMALL)
    return every.swapaxes(1, 2).reshape(n * n, SMALL, SMALL)


def _normal(pictures: Floats) -> Floats:
    """(n, SMALL * SMALL): of mean 0 and length 1, so that products are correlations; flat ones 0."""
    flat = pictures.reshape(len(pictures), -1)
    return unit(flat - flat.mean(1, keepdims=True))


def _alike(first: Floats, second: Floats) -> NDArray[np.float64]:
    """(n,): the median of the correlations of blocks, of those that say something; 0 where these are too few."""
    (a, b), found = (_blocks(each) for each in (first, second)), np.zeros(len(first))
    squares, products = (np.square(a).mean(2), np.square(b).mean(2)), (a * b).mean(2)
    told = np.maximum(*squares) >= FLAT**2
    correlations = products / np.sqrt(np.maximum(squares[0] * squares[1], 1e-6))
    for i in np.flatnonzero(told.sum(1) >= FEWEST):
        found[i] = np.median(correlations[i, told[i]])
    return found


def _blocks(pictures: Floats) -> Floats:
    """(n, blocks, pixels), whose rows and columns have the mean 0."""
    side = SMALL // BLOCKS
    blocks: Floats = pictures.reshape(-1, BLOCKS, side, BLOCKS, side).swapaxes(2, 3)
    for axis in (3, 4):
        blocks = blocks - blocks.mean(axis, keepdims=True)
    return blocks.reshape(len(pictures), BLOCKS**2, -1)
