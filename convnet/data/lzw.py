"""Is LZW data (GIF's and TIFF's) whole? Its codes are walked, and the symbols counted that they stand for.

A code of LZW has no check of its own: after damage the rest mostly stands for more or fewer symbols than the picture
has, or a code comes before it is defined. Decoders fill up or cut off; here it shows.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from convnet.kernels.cpu import lzw as lzw_cpu

LARGEST = 12  # bits of a code
CHUNK = 1 << 12  # codes read at a time


def lzw_damage(data: bytes, n_symbols: int, bits: int = 8, *, high_first: bool = False) -> str | None:
    """What is wrong with LZW data that stands for `n_symbols` symbols of `bits` bits; None when nothing is.

    high_first: TIFF's order of bits, where codes also grow one entry early; otherwise GIF's.
    """
    count = lzw_cpu.symbols if lzw_cpu.available() else plain_symbols
    done, ended = count(data, bits, high_first, n_symbols)
    if done < 0:
        return "an LZW code that isn't defined"
    if done == n_symbols:
        return None
    if done > n_symbols:
        return "LZW codes for more than there is"
    return f"LZW codes {'end' if ended else 'break off'} after {done:,} of {n_symbols:,}"


def plain_symbols(data: bytes, bits: int, high_first: bool, most: int) -> tuple[int, bool]:
    """The symbols that the codes stand for (-1: one isn't defined), counted to just above `most`; was there an end?"""
    clear, done, before = 1 << bits, 0, 0
    lengths: list[int] = []  # of what each code stands for
    for codes, after_clear in _runs(data, bits, high_first):
        if after_clear:
            lengths, before = [1] * clear + [0, 0], 0  # the first code after a clear adds no entry
        for code in codes.tolist():
            if code == clear + 1:
                return done, True
            if code > len(lengths) - (not before) or (code == len(lengths) and len(lengths) >= 1 << LARGEST):
                return -1, False
            if before and len(lengths) < 1 << LARGEST:
                lengths.append(before + 1)
            before = lengths[code]
            done += before
            if done > most:
                return done, False
    return done, False


def _runs(data: bytes, bits: int, high_first: bool) -> Iterator[tuple[NDArray[np.int64], bool]]:
    """Codes, and whether they follow a clear. A code's width depends on nothing but its number after a clear."""
    clear, place, number, fresh = 1 << bits, 0, 0, True
    padded = np.frombuffer(data + bytes(4), np.uint8)
    while place + bits < 8 * len(data):
        widths = _widths(number, bits, high_first)
        starts = place + np.append(0, np.cumsum(widths)[:-1])
        inside = starts + widths <= 8 * len(data)
        codes = _codes(padded, starts[inside], widths[inside], high_first)
        if not len(codes):
            return
        cleared = np.flatnonzero(codes == clear)
        n = int(cleared[0]) if len(cleared) else len(codes)
        yield codes[:n], fresh
        fresh = bool(len(cleared))
        last = n if fresh else n - 1
        place, number = int(starts[last] + widths[last]), 0 if fresh else number + n


def _codes(
    data: NDArray[np.uint8], starts: NDArray[np.int64], widths: NDArray[np.int64], high_first: bool
) -> NDArray[np.int64]:
    first, second, third = (data[(starts >> 3) + k].astype(np.int64) for k in range(3))
    if high_first:
        shifted = (first << 16 | second << 8 | third) >> (24 - (starts & 7) - widths)
    else:
        shifted = (first | second << 8 | third << 16) >> (starts & 7)
    codes: NDArray[np.int64] = shifted & ((1 << widths) - 1)
    return codes


def _widths(number: int, bits: int, high_first: bool) -> NDArray[np.int64]:
    """Of the codes from the number-th after a clear on: the k-th is read when k - 1 entries have been added."""
    n_entries = (1 << bits) + 2 + np.maximum(np.arange(number, number + CHUNK) - 1, 0) + high_first
    widths: NDArray[np.int64] = np.minimum(np.log2(n_entries).astype(np.int64) + 1, LARGEST)
    return widths
