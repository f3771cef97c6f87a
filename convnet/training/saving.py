"""How does a checkpoint reach the disk while the net goes on learning? It is copied, and a thread writes the copy.

Whatever happens meanwhile, each file is whole at every moment (io/atomic.py). What was learned since the last save that
has reached the disk is learned again, the same to the bit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import TracebackType

import torch
from torch import Tensor

from convnet import checkpoint, hardware
from convnet.checkpoint import LAST, Checkpoint, Position

SHARE = 0.5  # of the free memory, that a copy may take: a step may need some of it too


class Saving:
    """A run's saves, of which each is on the disk before the next one begins. Leaving its block waits for the last."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self._position: Position | None = None  # of what is on the disk, or will be when the thread ends

    def save(self, out: Path, kept: Checkpoint, also: Sequence[str] = (), beside: bool = False) -> None:
        """last.ckpt in the folder `out`, the one before it kept; before that the files `also`, with the net alone.

        beside: a copy is written, where there is memory for it, while the caller goes on and changes the tensors. What
        this run has saved at its position already isn't written again: whoever stops it shall not wait for that.

        Raises: DiskError, of this save or of the one before, if that was written beside the training.
        """
        self.wait()
        if kept.position == self._position and not also:
            return
        copied = _copied(kept) if beside else None
        if copied is None:
            _write(out, kept, also)
            self._position = kept.position
            return
        self._position = kept.position
        thread = Thread(target=self._write, args=(out, copied, also), name="save")
        thread.start()
        self._thread = thread

    def wait(self) -> None:
        """Waits until all is on the disk. Raises: what a write beside the training has raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises: what a write beside the training has raised so far, once."""
        if self._error is not None:
            error, self._error, self._position = self._error, None, None
            raise error

    def _write(self, out: Path, kept: Checkpoint, also: Sequence[str]) -> None:
        try:
            _write(out, kept, also)
        except BaseException as error:  # whatever it is, the thread that trains must stop by it
            self._error = error

    def __enter__(self) -> "Saving":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.wait()


def is_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether each number is finite: then their sum is too, unless it is too large. Waits for the device."""
    tensors = [tensor.detach() for tensor in tensors]
    if bool(torch.isfinite(torch.stack([tensor.sum() for tensor in tensors])).all()):
        return True
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _write(out: Path, kept: Checkpoint, also: Sequence[str]) -> None:
    net = replace(kept, velocity=None, unaveraged=None, record=None)
    for name in also:
        checkpoint.save(out / name, net)
    checkpoint.save(out / LAST, kept, keep_previous=True)  # last: a run that is killed before it does all this again


def _copied(kept: Checkpoint) -> Checkpoint | None:
    """The checkpoint with tensors and record of its own, on the host; None where the memory is short of room for it."""
    parts = [part for part in (kept.weights, kept.velocity, kept.unaveraged) if part is not None]
    free = hardware.memory().free
    if free is None or sum(tensor.nbytes for part in parts for tensor in part.values()) > SHARE * free:
        return None
    try:
        weights, velocity, unaveraged = map(_copies, (kept.weights, kept.velocity, kept.unaveraged))
    except RuntimeError:  # torch's word for no memory, as where the process may have less than the system
        return None
    record = None if kept.record is None else bytes(kept.record)
    return replace(kept, weights=weights or {}, velocity=velocity, unaveraged=unaveraged, record=record)


def _copies(tensors: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """As they are written: on the host, and contiguous."""
    if tensors is None:
        return None
    return {name: torch.empty(x.shape, dtype=x.dtype).copy_(x.detach()) for name, x in tensors.items()}
