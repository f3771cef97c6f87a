# mypy: disable-error-code="no-untyped-def"
"""The papers' update rule over one flat buffer, in one pass, with the copy that the net computes with.

    v <- momentum v - decay lr w - lr gradient
    w <- w + v                                                    float32
    copy <- w, rounded to bfloat16

A flat buffer holds all weights of a net and after them all its biases, whose rate is bias_lr_factor x lr and whose
decay is bias_decay (optim.py).

Plain form: `plain_step`.

Traffic: reads w, v and the gradient, writes w, v and the copy: 20 bytes a parameter with a bfloat16 gradient. AlexNet's
60,965,224 parameters take 0.28 ms at 4.3 TB/s (computed). The rate is read from memory, so that a captured CUDA graph
takes a new one.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from convnet.kernels.cuda import is_float, jit, launch, runs_on, tl

BLOCK = 1024  # elements of a program
ALIGNMENT = 64  # elements: where a parameter may begin, so that it can be read 16 bytes at a time


def available(weights: Tensor) -> bool:
    """Whether `step` takes this flat buffer."""
    return runs_on(weights.device) and weights.dtype == torch.float32


def places(parameters: Mapping[str, Tensor]) -> tuple[dict[str, int], int, int]:
    """Where each parameter begins in a flat buffer, where the biases begin, and the buffer's length.

    A parameter is a bias when its name ends in `bias`.
    """
    found: dict[str, int] = {}
    end = 0
    biases = [name for name in parameters if name.rpartition(".")[2] == "bias"]
    weights = [name for name in parameters if name not in biases]
    for name in weights:
        found[name] = end
        end += -(-parameters[name].numel() // ALIGNMENT) * ALIGNMENT
    first_bias = end
    for name in biases:
        found[name] = end
        end += -(-parameters[name].numel() // ALIGNMENT) * ALIGNMENT
    return found, first_bias, end


def view(flat: Tensor, place: int, like: Tensor) -> Tensor:
    """The part of a flat buffer from `place` on, with the shape and the memory layout of a dense tensor."""
    return flat.as_strided(like.shape, like.stride(), flat.storage_offset() + place)


def plain_step(
    weights: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    copy: Tensor | None,
    lr: Tensor,
    *,
    first_bias: int,
    momentum: float = 0.9,
    decay: float = 0.0005,
    bias_lr_factor: float = 1.0,
    bias_decay: float = 0.0005,
) -> None:
    """Moves all weights once; `weights`, `velocity` and `copy` change in place.

    weights, velocity: float32 (P,). gradient: (P,), any float. copy: (P,) in the net's dtype, or None. lr: float32, one
    element, on the same device. first_bias: where the biases begin; P if there are none.
    """
    rate = lr.view(())
    kinds = ((slice(0, first_bias), rate, decay), (slice(first_bias, None), rate * bias_lr_factor, bias_decay))
    for part, own_rate, own_decay in kinds:
        w, v = weights[part], velocity[part]
        v.mul_(momentum).sub_(own_decay * own_rate * w).sub_(own_rate * gradient[part].float())
        w.add_(v)
    if copy is not None:
        copy.copy_(weights)


def step(
    weights: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    copy: Tensor | None,
    lr: Tensor,
    *,
    first_bias: int,
    momentum: float = 0.9,
    decay: float = 0.0005,
    bias_lr_factor: float = 1.0,
    bias_decay: float = 0.0005,
) -> None:
    """`plain_step` for contiguous buffers that `available` says yes to."""
    n = weights.numel()
    for each in (weights, velocity, gradient, copy):
        assert each is None or (each.shape == (n,) and each.is_contiguous() and is_float(each))
    if n:
        constants = (momentum, decay, bias_lr_factor, bias_decay)
        buffers = (weights, velocity, gradient, copy, lr)
        launch(_step, (-(-n // BLOCK),), weights.device, *buffers, n, first_bias, *constants, BLOCK)


@jit
def _step(
    weights,
    velocity,
    gradient,
    copy,
    lr,
    n,
    first_bias,
    momentum,
    decay,
    bias_lr_factor,
    bias_decay,
    block: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < n
    is_bias = place >= first_bias
    rate = tl.load(lr) * tl.where(is_bias, bias_lr_factor, 1.0)
    own_decay = tl.where(is_bias, bias_decay, decay)
    w = tl.load(weights + place, mask=inside)
    v = tl.load(velocity + place, mask=inside)
    g = tl.load(gradient + place, mask=inside).to(tl.float32)
    v = momentum * v - own_decay * rate * w - rate * g
    w = w + v
    tl.store(velocity + place, v, mask=inside)
    tl.store(weights + place, w, mask=inside)
    if copy is not None:
        tl.store(copy + place, w, mask=inside)
