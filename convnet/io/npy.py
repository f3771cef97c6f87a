"""The header of a .npy file: written, and read by a pattern and not as Python, as its writer may be a stranger."""

import math
import re
from typing import IO

import numpy as np

from convnet.errors import DataError

MAX_HEADER = 10_000  # bytes
HEADER_BYTES = 128  # of those that are written
HEADER = re.compile(
    r"\{'descr': '([<|])([fiu])([1248])', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\),? *\} *\n?"
)


def header(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> bytes:
    """The HEADER_BYTES before the numbers of an array whose rows come first."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}".ljust(HEADER_BYTES - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little") + text.encode()


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic], bool]:
    """(shape, dtype, whether columns come first) of an array's file. Only numbers in little-endian order are read.

    Raises: DataError.
    """
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise DataError("not a numpy array")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    header = file.read(min(length, MAX_HEADER + 1)).decode("latin-1")
    if not (match := HEADER.fullmatch(header)):
        raise DataError(f"an array of this kind isn't read, only little-endian numbers: {header.strip()[:80]!r}")
    order, kind, width, fortran, sides = match.groups()
    if (kind, width) == ("f", "1") or (order == "|") != (width == "1"):
        raise DataError(f"an array of type {order}{kind}{width}")
    shape = tuple(int(side) for side in sides.replace(",", " ").split()) if len(sides) < 200 else ()
    if len(shape) > 8 or math.prod(shape) > 1 << 40:
        raise DataError(f"an array of shape {shape}")
    return shape, np.dtype(f"{order}{kind}{width}"), fortran == "True"
