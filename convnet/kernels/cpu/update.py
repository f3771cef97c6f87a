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


class Update:
    """Moves weights in C, step after step. What C is told of small ones is kept until a weight or its velocity lies
    elsewhere, or a rate is another: to work it out takes longer than to move LeNet-5's."""

    def __init__(self) -> None:
        self._told: list[object] = []  # what the array was made of
        self._array: ctypes.Array[_Move] | None = None

    def __reduce__(self) -> tuple[type["Update"], tuple[()]]:
        """A copy begins anew: its weights lie elsewhere."""
        return Update, ()

    def __call__(self, moves: Sequence[Move]) -> list[Move]:
        """Moves each weight once: the small ones by one call, a large one by all threads. What C doesn't take is left
        as it is, and given back."""
        n_threads = torch.get_num_threads()
        told = [n_threads, *map(_told, moves)]
        if self._array is not None and told == self._told:
            for known, move in zip(self._array, moves, strict=True):
                known.gradient = None if move.gradient is None else move.gradient.data_ptr()
            _call(self._array)
            return []
        small, others = [], []
        for move in moves:
            n = move.weight.numel()
            if not available(move):
                others.append(move)
            elif n < SMALL or n_threads == 1:
                small.append(_part(move, 0, n))
            else:
                in_parts(n, lambda first, last, move=move: _call(_array([_part(move, first, last)])))  # type: ignore[misc]
        array = _array(small)
        if small:
            _call(array)
        self._told, self._array = told, array if len(small) == len(moves) else None
        return others


def _told(move: Move) -> tuple[object, ...]:
    """What C is told of a move, but for the gradient's place; its shape and dtype are the weight's: torch takes no
    other."""
    weight, velocity, gradient, copy, *numbers = move
    places = weight.data_ptr(), velocity.data_ptr(), None if copy is None else copy.data_ptr()
    strides = weight.stride(), velocity.stride(), None if gradient is None else gradient.stride()
    return weight.shape, weight.dtype, *places, *strides, *numbers


def _part(move: Move, first: int, last: int) -> tuple[int | float | None, ...]:
    """The elements from `first` to before `last`, as C takes them."""
    places = (None if each is None else each.data_ptr() + first * each.element_size() for each in move[:4])
    return *places, last - first, move.momentum, -move.decay * move.rate, -move.rate


def _array(parts: list[tuple[int | float | None, ...]]) -> "ctypes.Array[_Move]":
    return (_Move * len(parts))(*(_Move(*part) for part in parts))


def _call(array: "ctypes.Array[_Move]") -> None:
    function("updates")(array, ctypes.c_int64(len(array)))
