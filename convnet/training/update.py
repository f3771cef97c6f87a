"""One update after the other: when is a step's loss known? At once; on a CUDA device a few steps later.

A loss that isn't finite must stop a run before its update. On the CPU the loss is looked at in between. On a CUDA
device the host would have to wait for it, and the device then for the host: there the device itself leaves out that
update and all later ones (graph.py), the loss comes to the host by a copy that nobody waits for, and the run ends a few
steps late, with the weights as they were before the step.
"""

import math
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.data.loader import Batch
from convnet.kernels.cuda import available as on_cuda
from convnet.training.graph import Whole
from convnet.training.step import Step

LATE = 4  # steps that the host is ahead, at most


class Done(NamedTuple):
    """A step that is done: ids of its pictures; the mean loss, nats; how many pictures were wrong.

    Where the loss isn't finite its update was left out.
    """

    ids: NDArray[np.int64]
    loss: float
    wrong: int


class Updates(Protocol):
    """Updates one after the other."""

    @property
    def waiting(self) -> int:
        """How many of them are not told yet."""

    def take(self, batch: Batch, number: int, lr: float) -> list[Done]:
        """Does a step, and gives those that are done since, in order. number: of the step, the first is 0."""

    def rest(self) -> list[Done]:
        """Waits for all that are still to be told."""


Cuttable = Callable[[], AbstractContextManager[None]]  # within it the process may end: nothing that counts has moved


def updates(step: Step, note: Callable[[str], None], cuttable: Cuttable = nullcontext) -> Updates:
    """Those for the step's device; `note` is told what is worth a line."""
    if on_cuda.serve(step.where.device):
        return Late(Whole(step, step.recipe.batch, note))
    return Prompt(step, cuttable)


class Prompt:
    """Updates whose loss is looked at before the weights move."""

    waiting = 0

    def __init__(self, step: Step, cuttable: Cuttable = nullcontext) -> None:
        self.step, self.cuttable = step, cuttable

    def take(self, batch: Batch, number: int, lr: float) -> list[Done]:
        with self.cuttable():  # the longest part of a step by far
            loss, wrong = self.step.gradients(batch.images, batch.labels, number)
            value = (
                loss.item()
            )  # a device synchronisation: a loss that isn't finite must stop the run before the update
        if math.isfinite(value):
            self.step.rule.step(lr)
        return [Done(batch.ids, value, int(wrong.item()))]

    def rest(self) -> list[Done]:
        return []


class Late:
    """Updates whose loss the host learns of at most `LATE` steps later."""

    def __init__(self, whole: Whole) -> None:
        self.whole = whole
        self.queue: deque[tuple[NDArray[np.int64], Tensor, torch.cuda.Event | None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self.queue)

    def take(self, batch: Batch, number: int, lr: float) -> list[Done]:
        outcome = self.whole(batch.images, batch.labels, number, lr)
        on_device = outcome.device.type == "cuda"
        told = torch.empty(2, dtype=torch.float64, pin_memory=on_device).copy_(outcome, non_blocking=True)
        event = torch.cuda.Event() if on_device else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record(torch.cuda.current_stream(outcome.device))
        self.queue.append((batch.ids, told, event))
        return self._told(LATE)

    def rest(self) -> list[Done]:
        return self._told(0)

    def _told(self, most: int) -> list[Done]:
        """Those that have arrived, and as many more that at most so many are waited for."""
        found = []
        while self.queue and (len(self.queue) > most or self._arrived()):
            ids, told, event = self.queue.popleft()
            if event is not None:
                event.synchronize()  # a device synchronisation, with a step that began LATE steps ago, or at the end
            loss, wrong = told.tolist()
            found.append(Done(ids, loss, int(wrong)))
        return found

    def _arrived(self) -> bool:
        event = self.queue[0][2]
        return event is not None and bool(event.query())  # type: ignore[no-untyped-call]
