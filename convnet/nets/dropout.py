"""Dropout whose draws are counted: who stays is a function of (seed, step, layer, the picture's place, the unit).

So a step does the same whether a batch goes through the net at once or piece by piece, whatever was drawn before.

Paper: Krizhevsky, Sutskever and Hinton 2012, section 4.2. Differs: what stays is divided by 1 - p in training, where
the paper multiplies by 1 - p in testing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convnet import draws
from convnet.kernels import dropout as triton_form
from convnet.kernels import dropout_cpu as c_form

STREAM = draws.stream("dropout")


@dataclass
class _Place:
    """Where in the training the net is: the batch's first picture here is picture `first` of its step."""

    seed: int
    step: int
    first: int
    layer: int = 0


_place: ContextVar[_Place | None] = ContextVar("place", default=None)


@contextmanager
def counted(seed: int, step: int, first: int = 0) -> Iterator[None]:
    """Within it `dropout` draws by (seed, step), for the pictures from the step's `first` on; one forward pass."""
    token = _place.set(_Place(seed, step, first))
    try:
        yield
    finally:
        _place.reset(token)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`x`, (N, D) or (N, C, H, W), with each element 0 with probability p, and otherwise divided by 1 - p.

    Each layer of a forward pass draws for itself, in `counted`; outside of it, and compiled, torch draws. Not in training it's `x`.
    """
    if not training or p == 0:
        return x
    place = None if torch.compiler.is_compiling() else _place.get()
    if place is None:
        return F.dropout(x, p, training)
    state = triton_form.state(place.seed, STREAM, place.step, place.layer)
    place.layer += 1
    first = place.first * x[:1].numel()
    rows = x if x.ndim == 2 else x.movedim(1, -1)  # the order in which channels-last maps lie in memory
    if c_form.available(rows):
        y = c_form.dropout(rows, p, state, first)
    else:
        on_device = torch.tensor(state, device=x.device)
        form = triton_form.dropout if triton_form.available(rows) else triton_form.plain_dropout
        y = form(rows, p, on_device, first)
    return y if x.ndim == 2 else y.movedim(-1, 1)
