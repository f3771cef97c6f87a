# mypy: disable-error-code="no-untyped-def"
"""The papers' update rule on CUDA, in Triton: one pass for each parameter, with the copy that the net computes with.

    v <- momentum v - decay lr w - lr gradient
    w <- w + v                                                    float32
    copy <- w, rounded to bfloat16

Plain form: `plain_step`.

Traffic: reads w, v and the gradient, writes w, v and the copy: 20 bytes a parameter with a bfloat16 gradient. AlexNet's
60,965,224 parameters take 0.28 ms at 4.3 TB/s (computed). One launch for each of a net's parameters (AlexNet has 16),
rather than one for a buffer of all: backward then leaves its gradients where it likes, where a buffer would cost a pass
that clears it and one that adds to it, and in a CUDA graph a launch costs next to nothing.

The rate is read from memory, so that a captured CUDA graph takes a new one, and so is whether anything may move.
"""

import torch
from torch import Tensor

from convnet.kernels.cuda.triton import is_float, jit, launch, runs_on, tl

BLOCK = 1024  # elements of a program


def available(weight: Tensor, velocity: Tensor, gradient: Tensor | None, copy: Tensor | None) -> bool:
    """Whether `step` takes these: a dense float32 weight, and the rest in its layout; a gradient may have another."""
    fits = runs_on(weight.device) and weight.dtype == velocity.dtype == torch.float32
    dense = bool(torch.ops.aten.is_non_overlapping_and_dense(weight))
    alike = all(each is None or each.stride() == weight.stride() for each in (velocity, copy))
    return fits and dense and alike and all(each is None or is_float(each) for each in (gradient, copy))


def plain_step(
    weight: Tensor,
    velocity: Tensor,
    gradient: Tensor | None,
    copy: Tensor | None,
    lr: Tensor,
    skip_update: Tensor | None = None,
    *,
    momentum: float = 0.9,
    decay: float = 0.0005,
    factor: float = 1.0,
) -> None:
    """Moves a weight once; `weight`, `velocity` and `copy` change in place.

    weight, velocity: float32, of one shape. gradient: any float; None is 0. copy: in the net's dtype. lr, skip_update:
    float32, one element each, on the same device; where `skip_update` isn't 0, and NaN isn't, nothing moves. factor:
    what lr is multiplied by.
    """
    rate = lr.view(()) * factor
    moved = momentum * velocity - decay * rate * weight
    if gradient is not None:
        moved = moved - rate * gradient.float()
    moves = torch.ones_like(rate, dtype=torch.bool) if skip_update is None else skip_update.view(()) == 0
    velocity.copy_(torch.where(moves, moved, velocity))
    weight.copy_(torch.where(moves, weight + velocity, weight))
    if copy is not None:
        copy.copy_(weight)


def step(
    weight: Tensor,
    velocity: Tensor,
    gradient: Tensor | None,
    copy: Tensor | None,
    lr: Tensor,
    skip_update: Tensor | None = None,
    *,
    momentum: float = 0.9,
    decay: float = 0.0005,
    factor: float = 1.0,
) -> None:
    """`plain_step` of what `available` says yes to."""
    if gradient is not None and gradient.stride() != weight.stride():
        gradient = torch.empty_like(weight, dtype=gradient.dtype).copy_(gradient)
    n = weight.numel()
    if n:
        buffers = (weight, velocity, gradient, copy, lr, skip_update)
        launch(_step, (-(-n // BLOCK),), weight.device, *buffers, n, momentum, decay, factor, BLOCK)


@jit
def _step(weight, velocity, gradient, copy, lr, skip_update, n, momentum, decay, factor, block: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    if skip_update is not None:
        n = tl.where(tl.load(skip_update) == 0, n, 0)
    moves = place < n
    rate = tl.load(lr) * factor
    w = tl.load(weight + place, mask=moves)
    v = momentum * tl.load(velocity + place, mask=moves) - decay * rate * w
    if gradient is not None:
        v -= rate * tl.load(gradient + place, mask=moves).to(tl.float32)
    w = w + v
    tl.store(velocity + place, v, mask=moves)
    tl.store(weight + place, w, mask=moves)
    if copy is not None:
        tl.store(copy + place, w, mask=moves)
