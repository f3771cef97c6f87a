"""Stored pictures to the net's input in one pass on the CPU (augment.c): crop, grey, mean, colour, mirror, scale, cast.

The plain form is `augment.plain_input`; values are equal to the bit. Nothing is copied before: the pass reads the
pictures where they lie, mapped from the store or decoded.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.kernels.cpu import compiled


class _Settings(ctypes.Structure):
    """`How` of augment.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("height", "width", "out_height", "out_width", "mean_size")),
        *((name, ctypes.c_int32) for name in ("grey", "bf16")),
        *((name, ctypes.c_float) for name in ("scale", "offset")),
    )


class Squares(NamedTuple):
    """Pictures (side, side, 3), each in one piece. addresses: int64 (N,), of their first pixels in `memory`."""

    addresses: NDArray[np.int64]
    side: int
    memory: Sequence[NDArray[np.uint8]]


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `augment` writes such numbers there: float32 or bfloat16 on the CPU, and a compiler was at hand."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and compiled.available()


def augment(
    pictures: Sequence[NDArray[np.uint8]] | Squares,
    corners: NDArray[np.int64],
    mirrored: NDArray[np.bool_],
    colour: NDArray[np.float32],
    mean: NDArray[np.float32] | None,
    out: Tensor,
    *,
    mean_corners: NDArray[np.int64] | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
) -> None:
    """Fills `out` (N, C, h, w), channels-last, with crops of N pictures, each uint8 (H, W, 3) with its pixels in a row
    side by side. C is 3, or 1: of grey pictures.

    corners: (N, 2), each crop's first row and column; outside of its picture a crop is black. mirrored: (N,). colour:
    (N, C), grey levels that are added. mean: (C,) or (S, S, C), grey levels that are subtracted; of a mean picture from
    `mean_corners` on (None: `corners`), and 0 outside.
    """
    n, channels, out_height, out_width = out.shape
    assert out.is_contiguous(memory_format=torch.channels_last)
    if not out.numel():
        return
    mean = np.zeros(channels, np.float32) if mean is None else np.ascontiguousarray(mean, np.float32)
    assert mean.shape in ((channels,), (len(mean), len(mean), channels))
    colour = np.ascontiguousarray(colour, np.float32)
    assert colour.shape == (n, channels)
    table = np.empty((n, 7), np.int64)  # `Picture` of augment.c
    if isinstance(pictures, Squares):
        height = width = pictures.side
        table[:, 0], table[:, 1] = pictures.addresses, 3 * width
    else:
        height, width, _ = pictures[0].shape
        assert all(each.shape == (height, width, 3) and each.strides[1:] == (3, 1) for each in pictures)
        table[:, 0] = [each.__array_interface__["data"][0] for each in pictures]
        table[:, 1] = [each.strides[0] for each in pictures]
    table[:, 2:4] = corners
    table[:, 4:6] = corners if mean_corners is None else mean_corners
    table[:, 6] = mirrored
    sizes = (height, width, out_height, out_width, len(mean) if mean.ndim == 3 else 0)
    flags = (channels == 1, out.dtype == torch.bfloat16)
    settings = _Settings(*sizes, *flags, scale, offset or -0.0)  # x + -0.0 is x, also for -0.0
    arrays = (ctypes.c_void_p(each.ctypes.data) for each in (table, colour, mean))
    if compiled.function("augment")(
        ctypes.byref(settings), *arrays, ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(n)
    ):
        raise MemoryError("no memory for a few rows of a picture")
