"""Dropout from a counter: whether a number stays is a function of (seed, where, its position), so no mask is kept.

    state = draws.bits(seed, where...)                        drawn once a step and layer, on the host
    u_i   = draws.uniform(seed, where..., i)                  53 bits by splitmix64
    y_i   = x_i / (1 - p) where u_i >= p, else 0              dx_i the same of g_i

This is the plain form, in torch's integers: dropout_cpu.py and dropout_cuda.py equal it to the bit.
"""

import math

import torch
from torch import Tensor

from convnet.errors import UsageError
from convnet.io import rng

FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64's factors


def state(seed: int, *where: int) -> int:
    """What dropout is to be told of where it is, such as (seed, draws.stream("dropout"), step, layer): an int64."""
    bits = int(rng.bits(seed, *where))
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


def threshold(p: float) -> int:
    """What the 53 bits that u is 2^-53 of must reach, for u >= p. Raises: UsageError when p isn't in [0, 1)."""
    if not 0 <= p < 1:
        raise UsageError(f"dropout with p = {p}: it must be at least 0 and below 1")
    return math.ceil(p * 2**53)


def scale(p: float) -> float:
    """By which what stays is multiplied."""
    return 1 / (1 - p)


def _mix(x: Tensor) -> Tensor:
    """splitmix64 (see io/rng.py) on int64, whose arithmetic is modulo 2^64 as well."""
    x = x + _signed(rng.GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(SECOND)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, n: int) -> Tensor:
    """The bits n places to the right, with zeros before them."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _signed(x: int) -> int:
    return x - 2**64
