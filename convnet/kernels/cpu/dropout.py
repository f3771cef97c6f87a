"""Dropout from a counter on the CPU, in C (dropout.c). The plain form is `plain_dropout` of dropout.py."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from convnet.kernels.cpu.compiled import in_parts, library, watched
from convnet.kernels.dropout import scale, threshold


def available(x: Tensor) -> bool:
    """Whether `dropout` takes this tensor."""
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    return fits and not watched(x) and library()[0] is not None


def dropout(x: Tensor, p: float, state: int, first: int = 0) -> Tensor:
    """`plain_dropout`, contiguous, of what `available` says yes to. state: an int64's value."""
    y: Tensor = _Dropout.apply(x, p, state, first)  # type: ignore[no-untyped-call]
    return y


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, state: int, first: int) -> Tensor:
        ctx.drawn = p, state, first
        return _dropped(x, p, state, first)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return dropout(grads[0], *ctx.drawn), None, None, None  # which has a gradient too


def _dropped(x: Tensor, p: float, state: int, first: int) -> Tensor:
    loaded = library()[0]
    assert loaded is not None
    x = x.contiguous()
    y = torch.empty_like(x)
    source, target, size = x.data_ptr(), y.data_ptr(), x.element_size()
    constants = (ctypes.c_uint64(threshold(p)), ctypes.c_float(scale(p)), ctypes.c_int32(x.dtype == torch.bfloat16))

    def part(begin: int, end: int) -> None:
        places = (ctypes.c_void_p(source + begin * size), ctypes.c_void_p(target + begin * size))
        drawn = (ctypes.c_uint64(state & (2**64 - 1)), ctypes.c_uint64(first + begin))
        loaded.drop(*places, ctypes.c_int64(end - begin), *drawn, *constants)

    in_parts(x.numel(), part)
    return y
