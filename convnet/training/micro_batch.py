"""The micro-batch: how many pictures fit into memory at once? Of a larger batch step.py accumulates gradients.

On the CPU by an account of what one picture more makes the forward pass keep; on CUDA devices by trying.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from convnet import hardware
from convnet.errors import UsageError
from convnet.nets.batch_norm import has_batch_norm
from convnet.progress import Progress
from convnet.training.step import EagerSteps

MicroBatch = int | Literal["auto"]
MARGIN = 0.85  # of the free memory: oneDNN's own buffers, the loader's pictures, other programs


def choose(step: EagerSteps, shape: tuple[int, int, int], size: MicroBatch | None, progress: Progress) -> int:
    """The micro-batch: `size` pictures, or the recipe's whole batch where that is None or larger.

    shape: (C, H, W) of a picture. "auto": the least number of equal micro-batches that fit into the free memory.

    Raises: UsageError when not even one picture fits, or less than one is asked for.
    """
    batch = step.recipe.batch
    if size is None:
        return batch
    if size == "auto":
        size = _by_trying(step, shape) if step.device.device.type == "cuda" else _by_account(step, shape)
    elif size < 1:
        raise UsageError(f"{size} pictures at once: it must be auto, or at least 1")
    if size < batch:
        n = -(-batch // size)
        progress.note(
            f"{size:,} pictures at once: gradients are accumulated over {n} micro-batches of a step's {batch:,}"
        )
        if has_batch_norm(step.net):
            progress.warn(
                "batch norm sees the mean and variance of each micro-batch: that is another step than the whole batch's"
            )
    return min(size, batch)


def micro_batch_size(batch: int, most: int) -> int:
    """The size of equal micro-batches, as few as may be, of at most `most` pictures.

    >>> [micro_batch_size(128, most) for most in (500, 127, 60)]
    [128, 64, 43]
    """
    n = -(-batch // max(1, min(most, batch)))
    return -(-batch // n)


def bytes_a_picture(step: EagerSteps, shape: tuple[int, int, int]) -> int:
    """What one picture more takes in a step: what its forward pass keeps, and twice the largest of it in the backward
    pass, for a gradient on its way in and out."""
    one, _ = _saved_bytes(step, shape, 1)
    two, largest = _saved_bytes(step, shape, 2)
    return two - one + 2 * -(-largest // 2)


def bytes_besides(step: EagerSteps) -> int:
    """What a step takes for the gradients of the weights, and for their sums over micro-batches."""
    return sum(4 * weight.numel() + step.rule.computed(name).nbytes for name, weight in step.rule.parameters.items())


def peak_bytes(step: EagerSteps, shape: tuple[int, int, int]) -> int:
    """Bytes that a step takes at its peak on its CUDA device, beside what lies there already: found by trying."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(step.device.device)
    before = torch.cuda.memory_allocated(step.device.device)
    _try(step, shape, step.recipe.batch)
    most = torch.cuda.max_memory_allocated(step.device.device)
    torch.cuda.empty_cache()
    return most - before


def _by_account(step: EagerSteps, shape: tuple[int, int, int]) -> int:
    free = hardware.memory().free
    if free is None:
        raise UsageError(
            f"the free memory is not known here; say how many pictures fit: --batch {step.recipe.batch // 2}"
        )
    room, per_picture = MARGIN * free - bytes_besides(step), bytes_a_picture(step, shape)
    if room < per_picture:
        need = (bytes_besides(step) + per_picture) / MARGIN
        raise UsageError(f"a step with one picture needs {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")
    return micro_batch_size(step.recipe.batch, int(room // per_picture))


def _by_trying(step: EagerSteps, shape: tuple[int, int, int]) -> int:
    """The largest micro-batch with which a whole batch's gradients don't run out of memory."""
    batch, n = step.recipe.batch, 1
    while True:
        step.micro_batch = -(-batch // n)
        try:
            _try(step, shape, batch)
            return step.micro_batch
        except torch.OutOfMemoryError as error:
            if step.micro_batch == 1:
                raise UsageError(f"not even one picture fits on {step.device.device}: {error}") from error
            n = min(batch, n + max(1, n // 4))
        finally:
            torch.cuda.empty_cache()


def _try(step: EagerSteps, shape: tuple[int, int, int], n: int) -> None:
    """The gradients of n black pictures; nothing of it stays."""
    labels = torch.zeros(n, dtype=torch.int64, device=step.device.device)
    with training(step.net):
        try:
            step.gradients(_black(step, shape, n), labels, 0)
        finally:
            step.rule.zero_grad()


@contextmanager
def training(net: nn.Module) -> Iterator[None]:
    """Training mode, in which batch norm changes its buffers: afterwards they are as before."""
    former = [buffer.clone() for buffer in net.buffers()]
    net.train()
    try:
        yield
    finally:
        for buffer, value in zip(net.buffers(), former, strict=True):
            buffer.copy_(value)


def _black(step: EagerSteps, shape: tuple[int, int, int], n: int) -> Tensor:
    images = torch.zeros(n, *shape, dtype=step.input_dtype, device=step.device.device)
    return images.to(memory_format=step.device.memory_format)


def _saved_bytes(step: EagerSteps, shape: tuple[int, int, int], n: int) -> tuple[int, int]:
    """Bytes that the forward pass of n pictures keeps for the backward pass, weights apart; and the largest of it."""
    storages: dict[int, tuple[int, Tensor]] = {}  # with the tensors, so that no storage's address comes twice
    weights = {weight.untyped_storage().data_ptr() for weight in (*step.net.parameters(), *step.net.buffers())}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = (storage.nbytes(), x)
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with training(step.net), hooks, step.device.autocast():
        step.net.heads(_black(step, shape, n))
    sizes = [size for size, _ in storages.values()]
    return sum(sizes), max(sizes, default=0)
