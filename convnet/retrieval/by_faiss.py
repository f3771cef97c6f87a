"""The codes nearest to a code by faiss, where it is installed: the same ones in the same order as hamming.py finds.

faiss leaves open which of equally near codes come first, and which of them are among the k. So more than k are asked
for: when the last one is farther than the kth, all that are as near as the kth are there, and are put in order.
"""

import importlib
import sys
import warnings
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
Ints = NDArray[np.int64]
WORTH = 1 << 26  # comparisons of codes, from which on loading it (0.1 to 0.3 s) pays
SPARE = 100  # more than 2 k that are asked for first


@cache
def library() -> Any:
    """The module, or None where it isn't installed. Not on macOS: its OpenMP beside torch's may end the process."""
    if sys.platform == "darwin":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its wrapper's types, on Python 3.12 and later
            return importlib.import_module("faiss")
    except ImportError:
        return None


def serves(n_queries: int, n: int, k: int) -> bool:
    """Whether it is there, and sooner done than numpy."""
    return 0 < k < n and n_queries * n >= WORTH and library() is not None


def nearest(queries: Codes, codes: Codes, k: int) -> tuple[Ints, Ints]:
    """(positions, distances), int64 (Q, k) each, of codes (n, bytes); k < n. Ties: the first one."""
    found = np.empty((2, len(queries), k), np.int64)
    left, n_asked = np.arange(len(queries)), 2 * k + SPARE
    while len(left):
        n_asked = min(n_asked, len(codes))
        distances, positions = library().knn_hamming(np.ascontiguousarray(queries[left]), codes, n_asked, variant="mc")
        order = np.lexsort((positions, distances), 1)[:, :k]
        found[0, left], found[1, left] = (np.take_along_axis(each, order, 1) for each in (positions, distances))
        whole = (n_asked == len(codes)) | (distances.max(1) > found[1, left, -1])
        left, n_asked = left[~whole], 4 * n_asked
    return found[0], found[1]
