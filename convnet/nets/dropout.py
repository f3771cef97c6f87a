"""Dropout whose draws are counted: who stays is a function of (seed, step, layer, the picture's place, the unit).

So a step does the same whether a batch goes through the net at once or piece by piece, whatever was drawn before.

Paper: Krizhevsky, Sutskever and Hinton 2012, section 4.2. Differs: what stays is divided by 1 - p in training, where
the paper multiplies by 1 - p in testing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convnet.errors import UsageError
from convnet.io import rng
from convnet.io.processes import ALONE, Processes
from convnet.kernels import dropout as kernel
from convnet.kernels import ops

STREAM = rng.stream("dropout")
LAYERS = 16  # of dropout in a net, at most


@dataclass
class _Place:
    """Where in the training the net is: the batch's first picture here is picture `first` of its step, and the units
    are those of one column; or, once `units` are told, of the pictures of all processes those from a first unit on, of
    so many."""

    seed: int
    step: int
    first: int
    states: Tensor | None
    columns: Processes
    pictures: Sequence[range] = ()
    units: tuple[int, int] | None = None
    layer: int = 0


_place: ContextVar[_Place | None] = ContextVar("place", default=None)


def states(seed: int, step: int) -> Tensor:
    """int64 (LAYERS,): what each layer of a net draws from in a step."""
    found: NDArray[np.uint64] = rng.bits(seed, STREAM, step, np.arange(LAYERS))
    return torch.from_numpy(found.view(np.int64))


@contextmanager
def counted(
    seed: int,
    step: int,
    first: int = 0,
    on_device: Tensor | None = None,
    columns: Processes = ALONE,
    pictures: Sequence[range] = (),
) -> Iterator[None]:
    """Within it `dropout` draws by (seed, step), for the pictures from the step's `first` on; one forward pass.

    columns: the processes of a net that each hold a column: this one draws for the units of its own. pictures: those
    of the step that each process has in this pass, where they meet in fully connected layers.

    on_device: the step's `states`, in the memory of the net's device: a CUDA graph then draws anew at each replay.
    """
    token = _place.set(_Place(seed, step, first, on_device, columns, pictures))
    try:
        yield
    finally:
        _place.reset(token)


def pictures_of_all() -> list[int]:
    """How many pictures each process has in this pass; only `counted` knows."""
    place = _place.get()
    assert place is not None
    return [len(own) for own in place.pictures]


def now_of_units(first: int, n: int) -> None:
    """From here on in the pass: the pictures of all processes, and of n units those from the `first` on."""
    place = _place.get()
    assert place is not None
    place.units = first, n


def checked_rate(p: object) -> float:
    """The option `dropout` of a net: the share of its units that are dropped in training; 0 switches dropout off.

    Raises: UsageError for what is no number from 0 to below 1.
    """
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
        raise UsageError(f"dropout is {p!r}; it must be a number from 0, which switches it off, to below 1")
    return float(p)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`x`, (N, D) or (N, C, H, W), with each element 0 with probability p, and otherwise divided by 1 - p.

    Each layer of a forward pass draws for itself, in `counted`; outside of it, and compiled, torch draws. Not in
    training it's `x`.
    """
    if not training or p == 0:
        return x
    place = None if torch.compiler.is_compiling() else _place.get()
    if place is None:
        return F.dropout(x, p, training)
    rows = x if x.ndim == 2 else x.movedim(1, -1)  # the order in which channels-last maps lie in memory
    if place.states is None:
        state = torch.tensor(kernel.state(place.seed, STREAM, place.step, place.layer), device=x.device)
    else:
        state = place.states[place.layer]
    place.layer += 1
    n = rows.shape[-1]
    before, total = place.units or (place.columns.rank * n, place.columns.n * n)  # among the units of all
    among, a_picture = F.pad(rows, (before, total - before - n)) if total > n else rows, x[:1].numel() // n * total
    if place.units is None:
        y = ops.dropout(among, p, state, place.first * a_picture)
    else:
        pieces = zip(among.split(pictures_of_all()), place.pictures, strict=True)
        y = torch.cat([ops.dropout(each, p, state, own.start * a_picture) for each, own in pieces if own])
    y = y[..., before : before + n]
    return y if x.ndim == 2 else y.movedim(-1, 1)
