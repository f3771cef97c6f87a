"""The codes nearest to a code: in how many bits do they differ?

A search is one pass of exclusive or and `bitwise_count` over the codes, a block at a time. Of a block only those are
looked at that are nearer than the k nearest before: a few hundred in all of a million codes of 128 bits. Queries are
shared out to threads. faiss, where it is installed (by_faiss.py), gives the same answer sooner.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from convnet import threads
from convnet.errors import UsageError
from convnet.retrieval import by_faiss

Codes = NDArray[np.uint8]  # (n, bytes): a row a picture; eight bits a byte, the first one its highest
Words = NDArray[np.unsignedinteger]  # (words, n): the same bytes, so that each pass reads one piece of memory
Ints = NDArray[np.int64]
BLOCK = 1 << 15  # codes at a time: what is counted of them stays in a core's cache
WORDS = (np.uint64, np.uint32, np.uint16, np.uint8)


def by_words(codes: Codes) -> Words:
    """The codes as `nearest` searches them, in the widest words of which each has a whole number."""
    return np.ascontiguousarray(_rows_of_words(codes).T)


def by_rows(words: Words) -> Codes:
    """The codes again."""
    return np.ascontiguousarray(words.T).view(np.uint8)


def nearest(queries: Codes, searched: Words, k: int) -> tuple[Ints, Ints]:
    """(positions, distances), int64 (Q, min(k, n)) each: the k codes nearest to each query, nearest first.

    Ties: the first one. Beside the codes it takes less than 1 MB a thread, however many there are; with faiss another
    time the codes. Raises: UsageError when a query has more or fewer bytes.
    """
    n_bytes, n = len(searched) * searched.itemsize, searched.shape[1]
    if queries.shape[1] != n_bytes:
        raise UsageError(f"a query has {queries.shape[1]} bytes, and the codes that are searched have {n_bytes}")
    k = min(k, n)
    if by_faiss.serves(len(queries), n, k):
        return by_faiss.nearest(queries, by_rows(searched), k)
    found = np.empty((2, len(queries), k), np.int64)
    rows = _rows_of_words(queries)

    def search(row: int) -> None:
        blocks = (distances(rows[row], searched[:, at : at + BLOCK]) for at in range(0, n, BLOCK))
        found[:, row] = smallest(blocks, k)

    n_threads = min(threads.most(), len(queries))
    if n_threads < 2 or n <= BLOCK:  # threads cost more than they save
        for row in range(len(queries)):
            search(row)
    else:
        with ThreadPoolExecutor(n_threads) as pool:  # numpy computes outside the interpreter's lock
            list(pool.map(search, range(len(queries))))
    return found[0], found[1]


def distances(query: Words, codes: Words) -> NDArray[np.unsignedinteger]:
    """(n,): in how many bits each of the codes (words, n) differs from a query (words,)."""
    total: NDArray[np.unsignedinteger] = np.bitwise_count(codes[0] ^ query[0])
    if len(codes) * codes.itemsize * 8 > 255:  # more than its uint8 counts
        total = total.astype(np.uint16)
    for row, word in zip(codes[1:], query[1:], strict=True):
        total += np.bitwise_count(row ^ word)
    return total


def smallest(blocks: Iterable[NDArray[np.generic]], k: int) -> tuple[Ints, NDArray[np.generic]]:
    """(positions, values), (min(k, n),) each: the k smallest of n values, in blocks (m,). Ties: the first one."""
    positions, best, first = np.empty(0, np.int64), np.empty(0, np.int64), 0
    for block in blocks if k else ():
        if len(best) < k:
            better = np.argsort(block, kind="stable")[:k]
        else:  # one that is as far as the last comes after it
            better = np.flatnonzero(block < best[-1])
        positions, best = np.append(positions, better + first), np.append(best, block[better])
        order = np.argsort(best, kind="stable")[:k]
        positions, best, first = positions[order], best[order], first + len(block)
    return positions, best


def _rows_of_words(codes: Codes) -> Words:
    word = next(each for each in WORDS if codes.shape[1] % np.dtype(each).itemsize == 0)
    return np.ascontiguousarray(codes).view(word)
