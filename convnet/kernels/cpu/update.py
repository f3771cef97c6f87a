"""The papers' update rule in one pass on the CPU, in C (update.c). The plain form is `Momentum` of optim.py.

Traffic: with a bfloat16 gradient and copy 20 bytes a parameter.
"""

import ctypes

import torch
from torch import Tensor

from convnet.kernels.cpu import compiled
from convnet.kernels.cpu.compiled import function, in_parts


def available(weight: Tensor, velocity: Tensor, gradient: Tensor | None, copy: Tensor | None) -> bool:
    """Whether `update` takes these: dense and alike in shape and layout; the gradient in the copy's dtype."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not compiled.available():
        return False
    if copy is not None and copy.dtype != torch.bfloat16:
        return False
    narrow = torch.float32 if copy is None else torch.bfloat16
    if gradient is not None and gradient.dtype != narrow:
        return False
    layouts = {(each.shape, each.stride()) for each in (weight, velocity, gradient, copy) if each is not None}
    dense = weight.is_contiguous() or (weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last))
    return len(layouts) == 1 and dense


def update(
    weight: Tensor,
    velocity: Tensor,
    gradient: Tensor | None,
    copy: Tensor | None,
    *,
    rate: float,
    momentum: float,
    decay: float,
) -> None:
    """Moves a weight once, in place, with its velocity and its copy; a missing gradient is 0."""
    move = function("update")
    constants = (ctypes.c_float(momentum), ctypes.c_float(-decay * rate), ctypes.c_float(-rate))
    places = [None if each is None else (each.data_ptr(), each.element_size())
              for each in (weight, velocity, gradient, copy)]  # fmt: skip

    def part(first: int, last: int) -> None:
        at = (ctypes.c_void_p(None if place is None else place[0] + first * place[1]) for place in places)
        move(*at, ctypes.c_int64(last - first), *constants)

    if weight.numel() < SMALL:
        part(0, weight.numel())
    else:
        in_parts(weight.numel(), part)


SMALL = 2**14  # elements: fewer are not worth a second thread
