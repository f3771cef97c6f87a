# mypy: disable-error-code="no-untyped-def"
"""Dropout from a counter: whether a number stays is a function of (seed, where, its position), so no mask is kept.

    state = draws.bits(seed, where...)                        drawn once a step and layer, on the host
    u_i   = draws.uniform(seed, where..., i)                  53 bits by splitmix64
    y_i   = x_i / (1 - p) where u_i >= p, else 0              dx_i the same of g_i

Plain form: `plain_dropout`, with the same bits in torch's integers: the two are equal to the bit.

Traffic: forward reads x and writes y, backward reads g and writes dx: in bf16 4 bytes an element each way, which is 4
microseconds for AlexNet's fc6 at 1024 pictures and 4.3 TB/s (computed). Torch's own keeps a byte an element besides.
The state is read from memory, so that a captured CUDA graph draws anew at each step.
"""

import math
from typing import Any

import torch
from torch import Tensor

from convnet import draws
from convnet.errors import UsageError
from convnet.kernels.cuda import is_float, jit, launch, runs_on, tl

BLOCK = 1024  # elements of a program
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64's factors


def available(x: Tensor) -> bool:
    """Whether `dropout` takes this tensor."""
    return runs_on(x.device) and is_float(x)


def state(seed: int, *where: int) -> int:
    """What `dropout` is to be told of where it is, such as (seed, draws.stream("dropout"), step, layer): an int64."""
    bits = int(draws.bits(seed, *where))
    return bits - 2**64 if bits >= 2**63 else bits


def plain_dropout(x: Tensor, p: float, state: Tensor, first: int = 0) -> Tensor:
    """`x` with each element 0 with probability p, and otherwise divided by 1 - p; the dtype stays.

    state: int64, one element, on `x`'s device. The positions are those of `x` in row-major order, from `first` on.

    Raises: UsageError when p isn't in [0, 1).
    """
    positions = torch.arange(first, first + x.numel(), device=x.device).view(x.shape)
    bits = _mix(state.view(()) ^ _mix(positions + 1))
    keep = _shifted(bits, 11) >= threshold(p)
    return torch.where(keep, (x * scale(p)).to(x.dtype), 0)


def dropout(x: Tensor, p: float, state: Tensor, first: int = 0) -> Tensor:
    """`plain_dropout`, contiguous, of what `available` says yes to."""
    y: Tensor = _dropped(x, p, state, first)
    return y


def threshold(p: float) -> int:
    """What the 53 bits that u is 2^-53 of must reach, for u >= p. Raises: UsageError when p isn't in [0, 1)."""
    if not 0 <= p < 1:
        raise UsageError(f"dropout with p = {p}: it must be at least 0 and below 1")
    return math.ceil(p * 2**53)


def scale(p: float) -> float:
    """By which what stays is multiplied."""
    return 1 / (1 - p)


def _mix(x: Tensor) -> Tensor:
    """splitmix64 (see draws.py) on int64, whose arithmetic is modulo 2^64 as well."""
    x = x + _signed(draws.GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(SECOND)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, n: int) -> Tensor:
    """The bits n places to the right, with zeros before them."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _signed(x: int) -> int:
    return x - 2**64


# torch


@torch.library.custom_op("convnet::dropout", mutates_args=())
def _dropped(x: Tensor, p: float, state: Tensor, first: int) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        grid = (-(-x.numel() // BLOCK),)
        launch(_dropout, grid, x.device, x, y, state, x.numel(), first, threshold(p), scale(p), BLOCK)
    return y


@_dropped.register_fake
def _like(x: Tensor, p: float, state: Tensor, first: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])
    ctx.p, ctx.first = inputs[1], inputs[3]


def _backpropagate(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    return _dropped(g, ctx.p, ctx.saved_tensors[0], ctx.first), None, None, None


_dropped.register_autograd(_backpropagate, setup_context=_keep)


# Triton


@jit
def _dropout(x, y, state, n, first, threshold, scale, block: tl.constexpr):
    position = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = position < n
    bits = _mixed(tl.load(state).to(tl.uint64) ^ _mixed((position + first).to(tl.uint64) + 1))
    keep = (bits >> 11) >= threshold
    value = tl.load(x + position, mask=inside, other=0).to(tl.float32) * scale
    tl.store(y + position, tl.where(keep, value, 0.0), mask=inside)


@jit
def _mixed(x):
    """splitmix64; the numbers are GOLDEN, FIRST and SECOND."""
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
