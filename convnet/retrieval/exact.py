"""The pictures whose features are nearest: exactly, of features that may be far larger than the memory.

A block's distances are first taken by one product of matrices in float32. What could be among the nearest, whatever the
rounding of that product, is measured again in float64, difference by difference, so that the answer is the one of
the plain way and a picture's distance to itself is 0.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convnet.errors import UsageError

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Measure = Literal["euclidean", "cosine"]
ROUNDING = 2.0**-24  # of one operation in float32, relative


def nearest(
    queries: Floats, blocks: Iterable[Floats], k: int, measure: Measure = "euclidean"
) -> tuple[Ints, NDArray[np.float64]]:
    """(positions, distances), (Q, min(k, n)) each: the k rows nearest to each query (Q, D), nearest first.

    blocks: the n rows (m, D) in their order, some at a time. Ties: the first one. cosine: 1 minus the cosine of the
    angle, which is half the squared distance of the rows at length 1; a row of zeros stays one, 1/2 from all others.
    Raises: UsageError when queries and rows have different D.
    """
    asked = _prepared(queries, measure)
    best = [(np.empty(0, np.int64), np.empty(0)) for _ in asked]
    first = 0
    for block in blocks:
        if block.shape[1] != queries.shape[1]:
            raise UsageError(f"a query has {queries.shape[1]} features, and what is searched has {block.shape[1]}")
        low, high = _bounds(asked, block, measure)
        for q, query in enumerate(asked):
            places, squares = best[q]
            least = min(_kth(squares, k), _kth(high[q], k))
            (rows,) = np.nonzero(low[q] <= least)
            difference = _prepared(block[rows], measure) - query
            squares = np.append(squares, np.square(difference, out=difference).sum(1))
            order = np.argsort(squares, kind="stable")[:k]
            best[q] = np.append(places, rows + first)[order], squares[order]
        first += len(block)
    shape = len(asked), min(k, first)
    positions = np.array([each for each, _ in best], np.int64).reshape(shape)
    nearest_squares = np.array([each for _, each in best]).reshape(shape)
    return positions, nearest_squares / 2 if measure == "cosine" else np.sqrt(nearest_squares)


def _prepared(given: Floats, measure: Measure) -> NDArray[np.float64]:
    """float64, and for the cosine at length 1."""
    rows = given.astype(np.float64)
    if measure == "cosine":
        lengths = np.sqrt(np.square(rows).sum(1, keepdims=True))
        rows /= np.where(lengths > 0, lengths, 1)
    return rows


def _bounds(asked: NDArray[np.float64], block: Floats, measure: Measure) -> tuple[Floats, Floats]:
    """(Q, m) each: between which the squared distances are. A sum of D products in float32, taken in any order, is
    within D roundings of the product of the lengths."""
    rows = block.astype(np.float32) if measure == "euclidean" else _prepared(block, measure).astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    own = np.sqrt(np.square(asked).sum(1, keepdims=True))
    products = (asked.astype(np.float32) @ rows.T).astype(np.float64)
    squares = np.square(own) + np.square(lengths) - 2 * products
    error = 2 * (block.shape[1] + 8) * ROUNDING * (own + lengths) ** 2 + 1e-30
    return squares - error, squares + error


def _kth(values: Floats, k: int) -> float:
    return float(np.partition(values, k - 1)[k - 1]) if len(values) >= k else np.inf
