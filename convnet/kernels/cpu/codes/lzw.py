"""The symbols that LZW data stands for, counted in C (lzw.c), in a fiftieth of the time of lzw.py, the plain form."""

import ctypes

from convnet.kernels.cpu.compiled import available as available
from convnet.kernels.cpu.compiled import function


def symbols(data: bytes, bits: int, high_first: bool, most: int) -> tuple[int, bool]:
    """As `lzw.plain_symbols`."""
    count = function("lzw_symbols")
    count.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
                      ctypes.POINTER(ctypes.c_int))  # fmt: skip
    count.restype = ctypes.c_int64
    ended = ctypes.c_int(0)
    n: int = count(data, len(data), bits, high_first, most, ctypes.byref(ended))
    return n, bool(ended.value)
