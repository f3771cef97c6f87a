"""Does a baseline JPEG's scan say exactly what its header promises? In C (jpeg_scan.c); plain: libjpeg's word.

libjpeg speaks up when a scan is too short, too long or has a code that isn't in its table. Here, in addition: blocks of
more than 64 coefficients, coefficients that no picture has, leftover bits. Nothing is transformed.
"""

import ctypes

from convnet.kernels.cpu.compiled import available as available
from convnet.kernels.cpu.compiled import function

FINE, UNKNOWN = 0, 1
REASONS = {  # of jpeg_scan.c's numbers
    2: "its scan breaks off",
    3: "its scan has a code that means nothing",
    4: "a block of its scan has more than 64 coefficients",
    5: "its scan has a coefficient that no picture has",
    6: "its scan has bytes left over",
    7: "its scan ends in other bits than it should",
    8: "a restart marker of its scan is missing",
    9: "its scan has a hole",
}


def scan_damage(data: bytes) -> str | None:
    """What is wrong with a baseline JPEG's scans, and where; None when nothing is, or when it is of another kind."""
    scan = function("jpeg_scan")
    scan.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64))
    scan.restype = ctypes.c_int
    row = ctypes.c_int64(-1)
    verdict = scan(data, len(data), ctypes.byref(row))
    if verdict in (FINE, UNKNOWN):
        return None
    return f"{REASONS[verdict]} (row {row.value + 1} of its blocks)" if row.value >= 0 else REASONS[verdict]
