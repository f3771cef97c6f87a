"""Dropout from a counter on the CPU, in C (dropout.c). The plain form is `plain_dropout` of dropout.py."""

import ctypes

import torch
from torch import Tensor

from convnet.kernels.cpu import compiled
from convnet.kernels.cpu.compiled import function
from convnet.kernels.cpu.parts import in_parts
from convnet.kernels.dropout import scale, threshold


def available(x: Tensor) -> bool:
    """Whether `forward` takes this tensor."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and compiled.available()


def forward(x: Tensor, p: float, state: Tensor, first: int) -> Tensor:
    """`plain_dropout`, contiguous, of what `available` says yes to."""
    drop = function("drop")
    x = x.contiguous()
    y = torch.empty_like(x)
    source, target, size = x.data_ptr(), y.data_ptr(), x.element_size()
    bits = int(state) & (2**64 - 1)
    constants = (ctypes.c_uint64(threshold(p)), ctypes.c_float(scale(p)), ctypes.c_int32(x.dtype == torch.bfloat16))

    def part(begin: int, end: int) -> None:
        places = (ctypes.c_void_p(source + begin * size), ctypes.c_void_p(target + begin * size))
        drawn = (ctypes.c_uint64(bits), ctypes.c_uint64(first + begin))
        drop(*places, ctypes.c_int64(end - begin), *drawn, *constants)

    in_parts(x.numel(), part)
    return y
