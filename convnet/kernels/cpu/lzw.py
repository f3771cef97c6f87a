"""The symbols that LZW data stands for, counted in C (lzw.c), in a fiftieth of the time of lzw.py, the plain form."""

import ctypes
from functools import cache

from convnet.kernels.cpu.compiled import library


def available() -> bool:
    """Whether there was a compiler."""
    return library()[0] is not None


def symbols(data: bytes, bits: int, high_first: bool, most: int) -> tuple[int, bool]:
    """As `lzw.plain_symbols`."""
    ended = ctypes.c_int(0)
    n: int = _counting()(data, len(data), bits, high_first, most, ctypes.byref(ended))
    return n, bool(ended.value)


@cache
def _counting() -> "ctypes._NamedFuncPointer":
    loaded = library()[0]
    assert loaded is not None
    count = loaded.lzw_symbols
    count.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
                      ctypes.POINTER(ctypes.c_int))  # fmt: skip
    count.restype = ctypes.c_int64
    return count
