"""Which pictures of an index are nearest to these features?"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from convnet.errors import UsageError, unknown
from convnet.retrieval import exact, hamming
from convnet.retrieval.exact import Measure
from convnet.retrieval.index import Index, Ints

By = Literal["features", "codes", "both"]
CANDIDATES = 50  # for each picture that is wanted: how many codes are nearest before features decide


def search(
    index: Index, queries: NDArray[np.floating], top: int, by: By | None = None, measure: Measure = "euclidean"
) -> tuple[Ints, NDArray[np.float64]]:
    """(positions, distances), (Q, min(top, n)) each: the nearest pictures, nearest first; ties: by name.

    queries: (Q, D), features of the index's net and stage. by: features, exactly (None: where the index has them);
    codes, whose distance is the number of bits that differ; or both, features among the pictures with the nearest
    codes. measure: of features. Raises: UsageError; DataError for damage.
    """
    by = by or ("features" if index.has_features else "codes")
    if by not in get_args(By):
        raise UsageError(unknown("way to search", by, get_args(By)))
    if top < 1:
        raise UsageError(f"--top {top}: at least 1")
    rounded = queries.astype(np.float16)  # as the index has them, so that a picture's distance to itself is 0
    if by == "features":
        return exact.nearest(rounded, index.blocks(), top, measure)
    if index.coder is None or index.words is None:
        raise UsageError(f"{index.path} has no codes; search by features, or index again with --codes BITS")
    found, bits = hamming.nearest(index.coder.encode(rounded), index.words, top * (CANDIDATES if by == "both" else 1))
    if by == "codes":
        return found, bits.astype(np.float64)
    answers = []
    for query, places in zip(rounded, np.sort(found, 1), strict=True):  # in order: ties are the first one here too
        best, distances = exact.nearest(query[None], [index.features(places)], top, measure)
        answers.append((places[best[0]], distances[0]))
    return np.array([places for places, _ in answers]), np.array([distances for _, distances in answers])
