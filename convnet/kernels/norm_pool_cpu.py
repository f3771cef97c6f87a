"""ReLU, response normalisation and overlapping max-pooling in one pass on the CPU (norm_pool.c), with its gradient.

The plain form is relu, `plain_response_norm` and `max_pool` of nets/layers.py. Forward and backward of AlexNet's first
such block at (32, 96, 55, 55) bfloat16 on one core of an Intel Xeon: 43 ms, plain blocked form 125 ms.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convnet.kernels.compiled import in_parts, library, watched

LIMIT = 2**31  # more than these elements are left to the plain form


class _Shape(ctypes.Structure):
    """`Shape` of norm_pool.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("height", "width", "maps", "out_height", "out_width")),
        *((name, ctypes.c_int64) for name in ("size", "stride", "groups", "half")),
        *((name, ctypes.c_int32) for name in ("bf16", "relu_before", "relu_after")),
        *((name, ctypes.c_float) for name in ("k", "alpha", "beta")),
        ("whole", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Block:
    """What is done: [ReLU,] response norm (n, k, alpha times the plain sum, beta; in `groups` equal parts of the maps),
    max-pooling of size x size with `stride` (1, 1: none; ceil: partial windows are kept) [, ReLU]."""

    n: int
    k: float
    alpha: float
    beta: float
    groups: int = 1
    size: int = 1
    stride: int = 1
    ceil: bool = False
    relu_before: bool = False
    relu_after: bool = False


def available(x: Tensor) -> bool:
    """Whether `norm_pool` takes `x`: float32 or bfloat16 (N, C, H, W) on the CPU, and a compiler was at hand.

    Not where torch traces the net, or someone looks at its layers one by one.
    """
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.ndim == 4
    return fits and not watched(x) and 0 < x.numel() < LIMIT and library()[0] is not None


def norm_pool(x: Tensor, block: Block) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W') in channels-last layout and `x`'s dtype; the sums are float32."""
    result: Tensor = _NormPool.apply(x, block)  # type: ignore[no-untyped-call]
    return result


class _NormPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Block) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        shape = _shape(x, block)
        pixels = x.new_empty(len(x), shape.out_height, shape.out_width, x.shape[1])
        _run("forward", shape, x, pixels)
        ctx.save_for_backward(x)
        ctx.shape = shape
        return pixels.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        g = grads[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        _run("backward", ctx.shape, x, g, dx)
        return dx, None


def _shape(x: Tensor, block: Block) -> _Shape:
    _, maps, height, width = x.shape
    out = [_pooled(side, block) for side in (height, width)]
    flags = (x.dtype == torch.bfloat16, block.relu_before, block.relu_after)
    constants = (block.k, block.alpha, block.beta)
    return _Shape(height, width, maps, *out, block.size, block.stride, block.groups, block.n // 2, *flags, *constants)


def _pooled(side: int, block: Block) -> int:
    """As torch: with ceil a last partial window counts if it begins inside."""
    room = side - block.size
    n = (-(-room // block.stride) if block.ceil else room // block.stride) + 1
    return n - 1 if block.ceil and (n - 1) * block.stride >= side else n


def _run(name: str, shape: _Shape, *tensors: Tensor) -> None:
    """Each thread takes its part of the pictures."""
    loaded = library()[0]
    assert loaded is not None
    function = getattr(loaded, name)

    def part(first: int, last: int) -> None:
        at = (t.data_ptr() + first * t[0].numel() * t.element_size() for t in tensors)
        if function(ctypes.byref(shape), *map(ctypes.c_void_p, at), ctypes.c_int64(last - first)):
            raise MemoryError("no memory for a few rows of a picture")

    in_parts(len(tensors[0]), part)
