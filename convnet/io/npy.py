"""The header of a .npy file, read by a pattern and not as Python: its writer may be a stranger."""

import math
import re
from typing import IO

import numpy as np

from convnet.errors import DataError

MAX_HEADER = 10_000  # bytes
HEADER = re.compile(
    r"\{'descr': '([<|])([fiu])([1248])', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\),? *\} *\n?"
)


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
