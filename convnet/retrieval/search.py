"""Which pictures of an index are nearest to these features?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from convnet.errors import UsageError, unknown
from convnet.evaluation.trained_net import TrainedNet
from convnet.progress import SILENT, Progress
from convnet.retrieval import exact
from convnet.retrieval.activations import activations
from convnet.retrieval.codes import PQ
from convnet.retrieval.exact import Measure
from convnet.retrieval.index import Index, Ints
from convnet.retrieval.pictures import Pictures

By = Literal["features", "codes", "both"]
CANDIDATES = 50  # for each picture that is wanted: how many codes are nearest before features decide


def search(
    index: Index, queries: NDArray[np.floating], top: int, by: str | None = None, measure: Measure = "euclidean"
) -> tuple[Ints, NDArray[np.float64]]:
    """(positions, distances), (Q, min(top, n)) each: the nearest pictures, nearest first; ties: by name.

    queries: (Q, D), features of the index's net and stage. by: features, exactly (None: where the index has them);
    codes, whose distance is the number of bits that differ (of pq Euclidean); or both, features among the pictures
    with the nearest codes. measure: of features. Raises: UsageError; DataError for damage.
    """
    by = check_search(index, top, by)
    rounded = queries.astype(np.float16)  # as the index has them, so that a picture's distance to itself is 0
    if by == "features":
        return exact.nearest(rounded, index.blocks(), top, measure)
    assert index.coder is not None
    assert index.words is not None
    found, apart = index.coder.nearest(rounded, index.words, top * (CANDIDATES if by == "both" else 1))
    if by == "codes":
        return found, apart
    nearest = []
    for query, places in zip(rounded, np.sort(found, 1), strict=True):  # in order: ties are the first one here too
        best, distances = exact.nearest(query[None], [index.features(places)], top, measure)
        nearest.append((places[best[0]], distances[0]))
    return np.array([places for places, _ in nearest]), np.array([distances for _, distances in nearest])


def check_search(index: Index, top: int, by: str | None = None) -> By:
    """By what is searched; None: features where the index has them, or else codes. Raises: UsageError."""
    if top < 1:
        raise UsageError(f"--top {top}: at least 1")
    for each in get_args(By):
        if each == (by or ("features" if index.has_features else "codes")):
            if each != "features" and index.coder is None:
                raise UsageError(f"{index.path} has no codes; search by features, or index again with --codes BITS")
            if each != "codes" and not index.has_features:
                raise UsageError(f"{index.path} has codes only; search by codes, or index again without --codes-only")
            return cast(By, each)
    raise UsageError(unknown("way to search", str(by), get_args(By)))


@dataclass(frozen=True)
class Neighbour:
    """A picture that was found: its name, its class if that is known, and how far it is."""

    name: str
    label: str
    distance: float
    text: str  # the distance, with as many digits as say something, or in bits


@dataclass(frozen=True)
class Answer:
    """What was found for a picture, nearest first; or why it could not be read."""

    name: str
    nearest: tuple[Neighbour, ...] = ()
    failed: str | None = None


def answers(
    index: Index,
    net: TrainedNet,
    several: Sequence[Pictures],
    above: str,
    top: int,
    by: str | None = None,
    measure: Measure = "euclidean",
    progress: Progress = SILENT,
) -> Iterator[Answer]:
    """The `top` pictures of an index nearest to each picture; some may not be readable. above: as `sources` gives it.

    Raises: UsageError; DataError for damage.
    """
    how, stage, names = check_search(index, top, by), index.contents.stage, index.contents.names
    bits = how == "codes" and index.contents.coder != PQ
    for pictures in several:
        yield from (Answer(above + odd["key"], failed=odd["reason"]) for odd in pictures.odd)
        for part in activations(net, pictures, [stage], progress=progress):
            features = part.stages[stage].reshape(len(part.keys), index.contents.n_features)
            found = search(index, features, top, how, measure)
            for key, places, distances in zip(part.keys, *found, strict=True):
                nearest = zip(places.tolist(), distances.tolist(), strict=True)
                rows = (Neighbour(names[i], index.label(i), distance, _text(distance, bits)) for i, distance in nearest)
                yield Answer(above + key, tuple(rows))
            failed = (odd for odd in part.odd if odd["status"] == "failed")
            yield from (Answer(above + odd["key"], failed=odd["reason"]) for odd in failed)


def _text(distance: float, bits: bool) -> str:
    if bits:
        return f"{distance:.0f} bits"
    return f"{distance:,.0f}" if distance >= 100 else f"{distance:.4f}"
