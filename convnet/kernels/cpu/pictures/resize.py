"""Bicubic resizing of RGB pictures in C (resize.c): Pillow's pixels; in which part of its time, says docs/log.md.

Plain form: `Image.resize` by `Resampling.BICUBIC`. The filter is Keys's (1981) with a = -1/2, as wide as a pixel of the
smaller picture. Its weights are worked out here in float64, step by step as Pillow does, because a compiler may round
them otherwise.
"""

import ctypes
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convnet.kernels.cpu.compiled import available as available
from convnet.kernels.cpu.compiled import function

SUPPORT = 2.0  # pixels on either side that the filter reaches
BITS = 22  # of a weight, after the point


class Weights(NamedTuple):
    """Of each pixel of a result where its sum begins, of how many pixels it is, and their weights (n, most)."""

    begins: NDArray[np.int64]
    counts: NDArray[np.int64]
    weights: NDArray[np.int32]

    @property
    def most(self) -> int:
        """The weights that each has room for."""
        return int(self.weights.shape[1])

    @property
    def places(self) -> list[int]:
        """Where C finds them."""
        return [array.ctypes.data for array in self]


def resize(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) -> (height, width, 3)."""
    out = np.empty((height, width, 3), np.uint8)
    resize_part(pixels, height, width, (0, 0), out)
    return out


def resize_part(
    pixels: NDArray[np.uint8], height: int, width: int, corner: tuple[int, int], out: NDArray[np.uint8]
) -> None:
    """Fills `out`, uint8 (h, w, 3), C-contiguous, with the part of (height, width, 3) that begins at row and column
    `corner`; nothing else is worked out."""
    x, (n_rows, n_columns, _) = np.ascontiguousarray(pixels), out.shape
    assert out.flags.c_contiguous
    assert out.dtype == np.uint8
    rows = _weights(x.shape[0], height, corner[0], n_rows) if x.shape[0] != height else None
    columns = _weights(x.shape[1], width, corner[1], n_columns) if x.shape[1] != width else None
    if rows is None:
        x = np.ascontiguousarray(x[corner[0] : corner[0] + n_rows])
    if columns is None:
        x = np.ascontiguousarray(x[:, corner[1] : corner[1] + n_columns])
    if rows is None and columns is None:
        out[:] = x
        return
    most, places = [], list[int | None]()
    for axis in (rows, columns):
        most.append(0 if axis is None else axis.most)
        places += [None] * 3 if axis is None else axis.places
    shape = (ctypes.c_int64 * 6)(*x.shape[:2], n_rows, n_columns, *most)
    if function("resize")(shape, *map(ctypes.c_void_p, (x.ctypes.data, out.ctypes.data, *places))):
        raise MemoryError("no memory for a resized picture")


@lru_cache(512)
def _weights(size: int, out: int, first: int, n: int) -> Weights:
    """Which of `size` pixels each of n of `out` pixels is a sum of, and their weights, times 2 to the power of BITS."""
    scale = size / out
    wide = max(scale, 1.0)
    centres = (np.arange(first, first + n) + 0.5) * scale
    begin = np.maximum((centres - SUPPORT * wide + 0.5).astype(np.int64), 0)
    count = np.minimum((centres + SUPPORT * wide + 0.5).astype(np.int64), size) - begin
    places = np.arange(count.max())
    weights = _bicubic((places + begin[:, None] - centres[:, None] + 0.5) * (1.0 / wide))
    weights[places >= count[:, None]] = 0
    total = np.zeros(n)
    for column in weights.T:  # one after the other, as sums round
        total += column
    weights /= np.where(total == 0, 1, total)[:, None]
    return Weights(begin, count, (weights * (1 << BITS) + np.where(weights < 0, -0.5, 0.5)).astype(np.int32))


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x, a = np.abs(x), -0.5
    near, far = ((a + 2.0) * x - (a + 3.0)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
