"""LeNet-5's scaled tanh, sub-sampling and scaled tanh in one pass on the CPU (tanh_pool.c), with its gradients.

Plain form: `plain_tanh_pool` of plain.py. The C alone at (16, 6, 28, 28) on one core of a busy AMD EPYC (AVX2): forward
0.09 ms, backward 0.07 ms. Of a step: docs/log.md.
"""

import ctypes

import torch
from torch import Tensor

from convnet.kernels.cpu import compiled
from convnet.kernels.cpu.compiled import function, in_parts


def available(*tensors: Tensor) -> bool:
    """Whether `forward` takes (N, C, H, W), weight and bias: float32 on the CPU, and a compiler was at hand."""
    fits = all(each.device.type == "cpu" and each.dtype == torch.float32 and each.numel() for each in tensors)
    return fits and tensors[0].ndim == 4 and min(tensors[0].shape[2:]) > 1 and compiled.available()


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """`plain_tanh_pool` of (N, C, H, W), weight (C,) and bias (C,): tanh's error is at most 2 roundings of float32."""
    n, maps, height, width = x.shape
    x, c, s = x.contiguous(), x.new_empty(x.shape), x.new_empty(n, maps, height // 2, width // 2)
    _run("tanh_pool_forward", x.shape, x, weight.contiguous(), bias.contiguous(), c, s)
    return c, s


def backward(c: Tensor, s: Tensor, weight: Tensor, g_c: Tensor | None, g_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias from those of `forward`'s results, which come too."""
    g_c = None if g_c is None else g_c.contiguous()
    dx, sums = torch.empty_like(c), c.new_empty(2, *c.shape[:2])
    _run("tanh_pool_backward", c.shape, c, s, weight.contiguous(), g_c, g_s.contiguous(), dx, *sums)
    return dx, sums[0].sum(0), sums[1].sum(0)


def _run(name: str, shape: torch.Size, *tensors: Tensor | None) -> None:
    """Each thread takes its part of the pictures."""
    kernel, plane = function(name), (ctypes.c_int64 * 3)(*shape[1:])
    # of each tensor where it begins, and the bytes of a picture; all pictures share the weight and the bias
    places = [None if t is None else (t.data_ptr(), 0 if t.ndim == 1 else t.nbytes // shape[0]) for t in tensors]

    def part(first: int, last: int) -> None:
        at = (ctypes.c_void_p(None if place is None else place[0] + first * place[1]) for place in places)
        if kernel(plane, *at, ctypes.c_int64((last - first) * shape[1])):
            raise MemoryError("no memory for a plane")

    in_parts(shape[0], part)
