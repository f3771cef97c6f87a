"""Stored squares to the net's input in one pass on the CPU (augment.c): crop, grey, mean, colour, mirror, scale, cast.

The plain form is `Split.crops` and `augment.to_input`; values are equal to the bit. Nothing is copied before: the pass
reads the pictures where they lie, mapped from the store or decoded.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.kernels.compiled import library


class _How(ctypes.Structure):
    """`How` of augment.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("size", "crop")),
        *((name, ctypes.c_int32) for name in ("grey", "bf16", "mean_picture")),
        *((name, ctypes.c_float) for name in ("scale", "offset")),
    )


def available(place: torch.device, dtype: torch.dtype) -> bool:
    """Whether `augment` writes such numbers there: float32 or bfloat16 on the CPU, and a compiler was at hand."""
    return place.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and library()[0] is not None


def augment(
    squares: Sequence[NDArray[np.uint8]],
    tops: NDArray[np.int64],
    lefts: NDArray[np.int64],
    mirrored: NDArray[np.bool_],
    colour: NDArray[np.float32],
    mean: NDArray[np.float32] | None,
    out: Tensor,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
) -> None:
    """Fills `out` (N, C, crop, crop), channels-last, with crops of the N squares, each uint8 (S, S, 3).

    C is 3, or 1: of grey pictures. The squares' pixels lie side by side; their rows need not.

    tops, lefts: (N,), each crop's first row and column; outside of its square a crop is black. mirrored: (N,). colour:
    (N, C), grey levels that are added. mean: (C,) or (S, S, C), grey levels that are subtracted; a mean picture is 0
    outside.
    """
    n, channels, crop, _ = out.shape
    loaded = library()[0]
    assert loaded is not None
    if not n:
        return
    size = len(squares[0])
    assert all(each.shape == (size, size, 3) and each.strides[1:] == (3, 1) for each in squares)
    assert out.is_contiguous(memory_format=torch.channels_last)
    mean = np.zeros(channels, np.float32) if mean is None else np.ascontiguousarray(mean, np.float32)
    assert mean.shape in ((channels,), (size, size, channels))
    assert len(squares) == len(tops) == len(lefts) == len(mirrored) == len(colour) == n
    grey, bf16 = channels == 1, out.dtype == torch.bfloat16
    how = _How(size, crop, grey, bf16, mean.ndim == 3, scale, offset or -0.0)  # x + -0.0 is x, also where x is -0.0
    places = np.array([each.__array_interface__["data"][0] for each in squares], np.int64)
    strides = np.array([each.strides[0] for each in squares], np.int64)
    corners = (np.ascontiguousarray(each, np.int64) for each in (tops, lefts))
    turned, added = np.ascontiguousarray(mirrored, np.uint8), np.ascontiguousarray(colour, np.float32)
    assert added.shape == (n, channels)
    arrays: list[NDArray[Any]] = [places, strides, *corners, turned, added, mean]
    pointers = [ctypes.c_void_p(each.ctypes.data) for each in arrays]
    code = loaded.augment(ctypes.byref(how), *pointers, ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(n))
    if code:
        raise MemoryError("no memory for a few rows of a picture")
