"""What a picture adds to the sums of a data set, in C (sums.c). Plain: in `Sums.count` of data/statistics.py."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from convnet.kernels.cpu.compiled import available as available
from convnet.kernels.cpu.compiled import function

UPPER = np.triu_indices(3)  # the order of sums.c's products


def count(square: NDArray[np.uint8], pixels: NDArray[np.int64] | NDArray[np.uint16]) -> NDArray[np.int64]:
    """Adds the bytes of `square` to `pixels`, uint16 (H, W, 3); (3, 3): its sums of products of channels."""
    square, products = np.ascontiguousarray(square), np.zeros(6, np.int64)
    assert square.dtype == np.uint8
    assert pixels.dtype == np.uint16
    assert square.shape == pixels.shape == (*square.shape[:2], 3)
    assert pixels.flags.c_contiguous
    places = (ctypes.c_void_p(each.ctypes.data) for each in (pixels, products))
    n_pixels = ctypes.c_int64(square.size // 3)
    function("picture_sums")(ctypes.c_void_p(square.ctypes.data), n_pixels, *places)
    out = np.zeros((3, 3), np.int64)
    out[UPPER] = products
    return np.maximum(out, out.T)
