"""A fully connected layer on the CPU as the library multiplies it that is faster on this processor, and in its order.

In bfloat16: with few pictures and many weights, weights times pictures is faster than pictures times weights, and the
weights' gradient wants the other factor's columns side by side. AlexNet's three at 64 pictures on one core of an Intel
Xeon with AMX: forward 10 instead of 16 ms, backward 38 instead of 45 ms.

In float32: forward by oneDNN where F.linear asks MKL, which is slower on processors that aren't Intel's. AlexNet's fc6
on one core of an AMD EPYC with AVX-512, ms with and without: 4 pictures 16 and 31, 32 33 and 64, 128 96 and 145; with
AVX2 alone 14 and 25, 35 and 55, 110 and 142. Its gradients aren't faster that way.

Plain form: F.linear.
"""

from collections.abc import Callable
from functools import cache as once

import torch
from torch import Tensor

from convnet import hardware
from convnet.kernels.cpu import compiled
from convnet.kernels.plain import Context

FEW = 256  # pictures
BY_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # where torch is built with it


def available(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` takes these: features (N, D) of few pictures on the CPU, and weights of the same dtype."""
    fits = x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype
    if not fits or x.ndim != 2 or not 1 < len(x) <= FEW:
        return False
    if x.dtype == torch.bfloat16:
        return True
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return not (torch.compiler.is_compiling() or torch._C._is_tracing()) and _onednn_is_faster()


@once
def _onednn_is_faster() -> bool:
    """Whether oneDNN multiplies in float32 faster than MKL."""
    if BY_ONEDNN is None or compiled.plain_is_asked() or not torch.backends.mkl.is_available():
        return False
    vendor = hardware.processor().vendor
    return bool(vendor) and vendor != "GenuineIntel" and torch.backends.cpu.get_cpu_capability() != "DEFAULT"


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, D) times (D', D) and plus (D',) -> (N, D'), of what `available` says yes to."""
    return _apply(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        if x.dtype == torch.bfloat16:
            return torch.addmm(bias[:, None], weight, x.t()).t().contiguous()
        assert BY_ONEDNN is not None
        y: Tensor = BY_ONEDNN(x, weight, bias, "none", [], "")
        return y

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (g,), (x, weight) = grads, ctx.saved_tensors
        dx = g @ weight if ctx.needs_input_grad[0] else None
        turned = g.t().contiguous() if x.dtype == torch.bfloat16 else g.t()
        return dx, turned @ x, g.sum(0)


_apply: Callable[..., Tensor] = _Linear.apply
