"""ReLU, response normalisation and overlapping max-pooling in one pass on the CPU (norm_pool.c), with its gradient.

Plain form: `plain_norm_pool` of plain.py. Forward and backward of AlexNet's first
such block at (32, 96, 55, 55) bfloat16 on one core of an Intel Xeon: 43 ms, plain blocked form 125 ms.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from convnet.kernels.cpu.compiled import in_parts, library, watched
from convnet.kernels.plain import Block, plain_norm_pool

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
    """Whether `norm_pool` takes `x`: float32 or bfloat16 (N, C, H, W) on the CPU, and a compiler was at hand.

    Not where torch traces the net, or someone looks at its layers one by one.
    """
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.ndim == 4
    if not fits or watched(x) or not block.size <= min(*x.shape[2:], SIZE):
        return False
    return 0 < x.numel() < LIMIT and library()[0] is not None


def norm_pool(x: Tensor, block: Block) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W') in channels-last layout and `x`'s dtype; the sums are float32."""
    result: Tensor = _NormPool.apply(x.contiguous(memory_format=torch.channels_last), block)  # type: ignore[no-untyped-call]
    return result


class _NormPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Block) -> Tensor:
        shape = _shape(x, block)
        pixels = x.new_empty(len(x), shape.out_height, shape.out_width, x.shape[1])
        where = torch.empty_like(pixels, dtype=torch.uint8) if ctx.needs_input_grad[0] else None
        _run("forward", shape, x, pixels, where)
        ctx.save_for_backward(x, where)
        ctx.shape, ctx.block = shape, block
        return pixels.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, where = ctx.saved_tensors
        if torch.is_grad_enabled():  # someone will differentiate the gradient
            return torch.autograd.grad(plain_norm_pool(x, ctx.block), x, grads[0], create_graph=True)[0], None
        g = grads[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        _run("backward", ctx.shape, x, where, g, dx)
        return dx, None


def _shape(x: Tensor, block: Block) -> _Shape:
    _, maps, height, width = x.shape
    out = [_pooled(side, block) for side in (height, width)]
    flags = (x.dtype == torch.bfloat16, block.relu_before, block.relu_after)
    constants = (block.k, block.alpha, block.beta)
    return _Shape(
        height,
        width,
        maps,
        *out,
        block.size,
        block.stride,
        block.groups,
        block.n // 2 if block.n else -1,
        *flags,
        *constants,
    )


def _pooled(side: int, block: Block) -> int:
    """As torch: with ceil a last partial window counts if it begins inside."""
    room = side - block.size
    n = (-(-room // block.stride) if block.ceil else room // block.stride) + 1
    return n - 1 if block.ceil and (n - 1) * block.stride >= side else n


def _run(name: str, shape: _Shape, x: Tensor, *others: Tensor | None) -> None:
    """Each thread takes its part of the pictures."""
    loaded = library()[0]
    assert loaded is not None
    function = getattr(loaded, name)

    def part(first: int, last: int) -> None:
        at = (None if t is None else t.data_ptr() + first * t[0].numel() * t.element_size() for t in (x, *others))
        if function(ctypes.byref(shape), *map(ctypes.c_void_p, at), ctypes.c_int64(last - first)):
            raise MemoryError("no memory for a few rows of a picture")

    in_parts(len(x), part)
