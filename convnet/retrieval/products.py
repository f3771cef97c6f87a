"""Product quantisation (Jegou, Douze and Schmid 2011): a row is cut into parts, of each its nearest centre is kept.

A part has 256 centres and takes a byte. They are kept as layers, one a part: the centre c nearest to x is the one with
the largest x . c - |c|^2 / 2, so weights are the centres and biases -|c|^2 / 2. A query stays as it is ("asymmetric
distances"): a table has its squared distances to all centres of all parts, and a picture's distance is a sum of one
number a part. Differs: parts are cut from the features as they stand, not turned first.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from convnet.progress import Progress
from convnet.retrieval.hamming import Codes, Ints, smallest

Floats = NDArray[np.float32]
Layer = tuple[Floats, Floats]  # weights (features of the part, centres), biases (centres,)
CENTRES = 256
ROUNDS = 20  # of k-means
BLOCK = 1 << 14  # codes at a time


def fit(rows: Floats, n_bits: int, generator: np.random.Generator, progress: Progress) -> list[Layer]:
    """A layer for each of the n_bits / 8 parts of rows (n, D), with min(256, n) centres, by k-means."""
    layers = []
    progress.start("learning codes", n_bits // 8)
    for done, part in enumerate(np.array_split(rows, n_bits // 8, 1), 1):
        layers.append(_layer(_centres(np.ascontiguousarray(part), generator)))
        progress.update(done)
    progress.finish()
    return layers


def encode(layers: tuple[Layer, ...], rows: Floats) -> Codes:
    """uint8 (n, parts)."""
    return np.stack([_places(part, layer) for part, layer in zip(_parts(layers, rows), layers, strict=True)], 1)


def nearest(layers: tuple[Layer, ...], queries: Floats, codes: Codes, k: int) -> tuple[Ints, NDArray[np.float64]]:
    """(positions, distances), (Q, min(k, n)) each: Euclidean, queries (Q, D) to what codes stand for. Ties: the first.

    Sums are taken part by part in float64, so that equal codes are equally far.
    """
    k = min(k, len(codes))
    positions, squares = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    for row, table in enumerate(_tables(layers, queries)):
        blocks = (_sums(table, codes[at : at + BLOCK]) for at in range(0, len(codes), BLOCK))
        positions[row], squares[row] = smallest(blocks, k)
    return positions, np.sqrt(squares.clip(0))


def distances(layers: tuple[Layer, ...], queries: Floats, codes: Codes) -> NDArray[np.float64]:
    """(Q, n), squared."""
    return np.stack([_sums(table, codes) for table in _tables(layers, queries)])


def _tables(layers: tuple[Layer, ...], queries: Floats) -> Iterator[NDArray[np.float64]]:
    """Of each query (parts, centres): squared distances."""
    for query in queries.astype(np.float64):
        parts = zip(_parts(layers, query[None]), layers, strict=True)
        found = [np.square(part).sum() - 2 * (part[0] @ weights + biases) for part, (weights, biases) in parts]
        yield np.stack(found)


def _sums(table: NDArray[np.float64], codes: Codes) -> NDArray[np.float64]:
    total: NDArray[np.float64] = table[0][codes[:, 0]]
    for part in range(1, len(table)):
        total += table[part][codes[:, part]]
    return total


def _parts(layers: tuple[Layer, ...], rows: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    return np.split(rows, np.cumsum([len(weights) for weights, _ in layers])[:-1], 1)


def _layer(centres: Floats) -> Layer:
    lengths = np.square(centres, dtype=np.float64).sum(1)
    return np.ascontiguousarray(centres.T), (-lengths / 2).astype(np.float32)


def _places(part: NDArray[np.floating], layer: Layer) -> Codes:
    """uint8 (n,): the nearest centre of each."""
    weights, biases = layer
    places: Codes = (part @ weights + biases).argmax(1).astype(np.uint8)
    return places


def _centres(rows: Floats, generator: np.random.Generator) -> Floats:
    """(min(256, n), d), beginning with some of the rows; a centre that is nobody's nearest stays where it was."""
    n = min(CENTRES, len(rows))
    centres = rows[np.sort(generator.choice(len(rows), n, replace=False))]
    for _ in range(ROUNDS):
        places = _places(rows, _layer(centres))
        order, counts = np.argsort(places, kind="stable"), np.bincount(places, minlength=n)
        taken = counts > 0
        begins = (np.cumsum(counts) - counts)[taken]
        centres[taken] = np.add.reduceat(rows[order], begins, 0) / counts[taken, None]
    return centres
