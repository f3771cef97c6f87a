"""The papers' update rule in one pass on the CPU, in C (update.c). The plain form is `Momentum` of optim.py.

Traffic: with a bfloat16 gradient and copy 20 bytes a parameter.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from convnet.kernels.cpu import compiled
from convnet.kernels.cpu.compiled import function
from convnet.kernels.cpu.parts import in_parts

SMALL = 2**14  # elements: fewer are not worth a second thread


class Move(NamedTuple):
    """A weight's step, in place, with its velocity and its copy in bfloat16, if it has one; a missing gradient is 0."""

    weight: Tensor
    velocity: Tensor
    gradient: Tensor | None
    copy: Tensor | None
    rate: float
    momentum: float
    decay: float


class _Move(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "velocity", "gradient", "copy")),
        ("n", ctypes.c_int64),
        *((name, ctypes.c_float) for name in ("momentum", "decayed", "negative")),
    )


def available(move: Move) -> bool:
    """Whether `update` takes it: dense and alike in shape and layout; the gradient in the copy's dtype."""
    weight, velocity, gradient, copy = move[:4]
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not compiled.available():
        return False
    if copy is not None and copy.dtype != torch.bfloat16:
        return False
    if gradient is not None and gradient.dtype != (torch.float32 if copy is None else torch.bfloat16):
        return False
    shape, stride = weight.shape, weight.stride()
    for other in (velocity, gradient, copy):
        if other is not None and (other.shape != shape or other.stride() != stride):
            return False
    return weight.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense(weight))


def update(moves: Sequence[Move]) -> None:
    """Moves each weight once: the small ones by one call, a large one by all threads."""
    small = []
    for move in moves:
        n = move.weight.numel()
        if n < SMALL:
            small.append(_part(move, 0, n))
        else:
            in_parts(n, lambda first, last, move=move: _call([_part(move, first, last)]))  # type: ignore[misc]
    _call(small)


def _part(move: Move, first: int, last: int) -> tuple[int | float | None, ...]:
    """The elements from `first` to before `last`, as C takes them."""
    places = (None if each is None else each.data_ptr() + first * each.element_size() for each in move[:4])
    return *places, last - first, move.momentum, -move.decay * move.rate, -move.rate


def _call(parts: list[tuple[int | float | None, ...]]) -> None:
    function("updates")((_Move * len(parts))(*(_Move(*part) for part in parts)), ctypes.c_int64(len(parts)))
