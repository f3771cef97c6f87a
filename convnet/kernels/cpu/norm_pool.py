"""ReLU, response normalisation and overlapping max-pooling in one pass on the CPU (norm_pool.c), with its gradient.

Plain form: `plain_norm_pool` of plain.py. Forward and backward of AlexNet's first
such block at (32, 96, 55, 55) bfloat16 on one core of an Intel Xeon: 43 ms, plain blocked form 125 ms.
"""

import ctypes

import torch
from torch import Tensor

from convnet.kernels.cpu import compiled
from convnet.kernels.cpu.compiled import function
from convnet.kernels.cpu.parts import in_parts
from convnet.kernels.plain import Block

LIMIT = 2**31  # more than these elements are left to the plain form
SIZE = 15  # and larger windows: a place in one is a byte, and 255 stands for none


class _Shape(ctypes.Structure):
    """`Shape` of norm_pool.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("height", "width", "maps", "out_height", "out_width")),
        *((name, ctypes.c_int64) for name in ("size", "stride", "groups", "half")),
        *((name, ctypes.c_int32) for name in ("bf16", "relu_before", "relu_after")),
        *((name, ctypes.c_float) for name in ("k", "alpha", "beta")),
        ("whole", ctypes.c_int32),
    )


def available(x: Tensor, block: Block) -> bool:
    """Whether `forward` takes `x`: float32 or bfloat16 (N, C, H, W) on the CPU, and a compiler was at hand."""
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.ndim == 4
    if not fits or not block.size <= min(*x.shape[2:], SIZE):
        return False
    return 0 < x.numel() < LIMIT and compiled.available()


def forward(x: Tensor, block: Block, keep: bool) -> tuple[Tensor, Tensor]:
    """(N, C, H, W), channels-last -> (N, C, H', W') alike, in `x`'s dtype; the sums are float32. With `keep` also uint8
    of its shape: where in its window each value comes from; else an empty tensor."""
    shape = _shape(x, block)
    pixels = x.new_empty(len(x), shape.out_height, shape.out_width, x.shape[1])
    places = torch.empty_like(pixels, dtype=torch.uint8) if keep else None
    _run("forward", shape, x, pixels, places)
    none = x.new_empty(0, dtype=torch.uint8)
    return pixels.permute(0, 3, 1, 2), none if places is None else places.permute(0, 3, 1, 2)


def backward(x: Tensor, places: Tensor, g: Tensor, block: Block) -> Tensor:
    """The gradient of x from that of the result."""
    g = g.to(x.dtype).contiguous(memory_format=torch.channels_last)
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    _run("backward", _shape(x, block), x, places, g, dx)
    return dx


def _shape(x: Tensor, block: Block) -> _Shape:
    _, maps, height, width = x.shape
    sides = (height, width, maps, block.pooled(height), block.pooled(width))
    windows = (block.size, block.stride, block.groups, block.n // 2 if block.n else -1)
    flags = (x.dtype == torch.bfloat16, block.relu_before, block.relu_after)
    return _Shape(*sides, *windows, *flags, block.k, block.alpha, block.beta)


def _run(name: str, shape: _Shape, x: Tensor, *others: Tensor | None) -> None:
    """Each thread takes its part of the pictures."""
    kernel = function(name)

    def part(first: int, last: int) -> None:
        at = (None if t is None else t.data_ptr() + first * t[0].numel() * t.element_size() for t in (x, *others))
        if kernel(ctypes.byref(shape), *map(ctypes.c_void_p, at), ctypes.c_int64(last - first)):
            raise MemoryError("no memory for a few rows of a picture")

    in_parts(len(x), part)
