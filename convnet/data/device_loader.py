"""The data loader of a CUDA device: training pictures lie in its memory, or are copied there a batch ahead.

Gathering, crop, mirror, colour and mean are one kernel on the device (kernels/cuda/augment.py), which makes the batches
that the loader would, with its order and its random numbers. It runs beside the step before, as copies do.

A set that doesn't fit as it is may fit as 4:2:0 planes, half its bytes (kernels/planes.py). That changes pixels, so it
is done only where it is asked for. The validation and test pictures stay as they are.

Where a recipe scales its crops, each is resized by the loader's threads before it is copied, as on the CPU.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.data import augment, boxes
from convnet.data.loader import AHEAD, Batch, Loader
from convnet.errors import UsageError
from convnet.io.prefetch import in_order
from convnet.kernels import planes
from convnet.kernels.cuda import available as on_cuda
from convnet.progress import Progress
from convnet.recipe import Recipe

Resident = Literal["auto", "raw", "420", "no"]
Step = tuple[NDArray[np.int64], augment.Augmentation, Tensor | None]
RESERVE = 2 << 30  # bytes of the device that stay free: libraries' own buffers, testing
STEPS = 2  # the memory that a step takes is there twice: in the graph's own pool, and for an epoch's last batch
SCALED = "the recipe's crops are scaled, each before it is copied"
PORTION = 256  # pictures that go to the device at once


class DeviceLoader:
    """The batches of `loader`, made on its device.

    pictures: those of loader.ids on the device, uint8 (M, S, S, 3) or packed (`planes.pack`), or None: then a batch's
    are read by the loader's threads into pinned memory, and copied while the step before runs.
    """

    def __init__(self, loader: Loader, pictures: Tensor | None = None) -> None:
        self.loader, self.pictures = loader, pictures
        self.split, self.ids = loader.split, loader.ids
        device, mean = loader.device, loader.preprocessing.mean
        self.rows = np.zeros(0 if pictures is None else self.split.n, np.int64)  # where picture i lies among `pictures`
        if pictures is not None:
            self.rows[self.ids[:]] = np.arange(len(self.ids))
        self.mean = None if mean is None else torch.from_numpy(mean).to(device)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(device))  # which brings what lies on the device

    def __len__(self) -> int:
        """Steps in an epoch; the last may be smaller."""
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (0 is the first), from step `start` on; each is begun before the last is used."""
        ahead: deque[tuple[Batch, torch.cuda.Event | None]] = deque()
        for ids, sampled, pictures in self._read(epoch, start):
            ahead.append(self._start(ids, sampled, pictures))
            if len(ahead) > 1:
                yield self._ready(*ahead.popleft())
        for batch, event in ahead:
            yield self._ready(batch, event)

    def _read(self, epoch: int, start: int) -> Iterator[Step]:
        """Each step's ids, augmentation, and pictures in pinned memory where they don't lie on the device."""
        own, steps = self.loader, self.loader.steps(epoch, start)
        if self.pictures is None:
            steps = self.split.ahead(steps)
        sampled = (
            (ids, augment.sample(own.recipe, own.statistics, epoch, own.counters(number, ids)))
            for number, ids in enumerate(steps, start)
        )
        if self.pictures is not None:
            yield from ((*step, None) for step in sampled)
            return
        n_workers = max(1, own.workers)
        yield from in_order(lambda step: (*step, squares(own, step[0], step[1].boxes)), sampled,
                            lambda step: self.split.describe(step[0]), n_threads=n_workers,
                            window=AHEAD * n_workers, stop=own.stop)  # fmt: skip

    def _start(
        self, ids: NDArray[np.int64], sampled: augment.Augmentation, pictures: Tensor | None
    ) -> tuple[Batch, torch.cuda.Event | None]:
        """A batch that the device is making, and the event that it is made."""
        from convnet.kernels.cuda import augment as augmentation  # which loads Triton

        of = self.loader
        rows = np.arange(len(ids)) if pictures is not None else self.rows[ids]
        with torch.cuda.stream(self.stream):
            source = self.pictures if pictures is None else pictures.to(of.device, non_blocking=True)
            assert source is not None
            form = augmentation.augment if augmentation.available(source, of.device) else augmentation.plain_augment
            arrays = (rows, sampled.corners, sampled.mirrored, sampled.colour)
            at, corners, mirrored, colour = (_to_device(values, of.device) for values in arrays)
            own = of.preprocessing
            images = form(source, at, corners, mirrored, colour, self.mean,
                          crop=own.crop, scale=own.scale, offset=own.offset, dtype=of.dtype)  # fmt: skip
            labels = _to_device(self.split.labels[ids], of.device)
            return Batch(images, labels, ids), None if self.stream is None else self.stream.record_event()

    def _ready(self, batch: Batch, event: torch.cuda.Event | None) -> Batch:
        """The batch, for whatever its user begins from now on."""
        if event is not None:
            stream = torch.cuda.current_stream(self.loader.device)
            stream.wait_event(event)
            for tensor in (batch.images, batch.labels):
                tensor.record_stream(stream)  # its memory is another batch's only when this stream is done with it
        return batch


Feed = Loader | DeviceLoader


def pixels(resident: Resident) -> str:
    """What the net sees of the training pictures, for the run's record."""
    return "4:2:0 planes" if resident == "420" else "as stored"


def check(resident: Resident, device: torch.device, recipe: Recipe) -> str:
    """Why a recipe's pictures can't be made on the device; "" where they can.

    Raises: UsageError when they can't and are asked for all the same, and for another word than `Resident`'s.
    """
    if resident not in get_args(Resident):
        raise UsageError(f"--resident {resident}: it must be auto, raw, 420 or no")
    why_not = "" if on_cuda.serve(device) else f"it needs a CUDA device with Triton, this is {device}"
    why_not = why_not if recipe.channels == "rgb" else "it is for pictures in colour"
    scaled = SCALED if boxes.are_scaled(recipe) else ""
    if (why_not or scaled) and resident in ("raw", "420"):
        raise UsageError(f"--resident {resident}: {why_not or scaled}; leave it out")
    return why_not


def choose(loader: Loader, resident: Resident, step_bytes: Callable[[], int], progress: Progress) -> Feed:
    """How a loader's pictures reach its device, told to `progress`.

    resident: "auto" keeps them there as they are if they fit; "raw" and "420" want them there, as they are or as 4:2:0
    planes; "no" copies each batch. step_bytes: tells what a training step takes on the device.

    Raises: UsageError when what is asked for can't be.
    """
    if check(resident, loader.device, loader.recipe):
        return loader
    size, n = loader.split.store.size, len(loader.ids)
    need = n * (planes.n_bytes(size) if resident == "420" else size * size * 3)
    step = 0 if resident == "no" else step_bytes()
    room = max(0, free(loader.device) - STEPS * step - RESERVE)
    fits = f"{need / 2**30:.1f} GiB of {room / 2**30:.1f} GiB that training leaves"
    scaled = boxes.are_scaled(loader.recipe)
    if resident == "no" or scaled or (resident == "auto" and need > room):
        why = SCALED if scaled else "as asked" if resident == "no" else f"the training pictures would take {fits}"
        progress.note(f"pictures go to the device a batch ahead: {why}")
        return DeviceLoader(loader)
    if need > room:
        hint = "--resident 420 takes half, or leave it out" if resident == "raw" else "leave it out"
        raise UsageError(f"--resident {resident}: the training pictures would take {fits}; {hint}")
    pictures = load(loader, resident == "420", progress)
    form = "as 4:2:0 planes, which changes their colours a little" if resident == "420" else "as they are"
    progress.note(f"the training pictures lie on the device {form}: {fits}")
    return DeviceLoader(loader, pictures)


def load(loader: Loader, packed: bool, progress: Progress) -> Tensor:
    """The pictures loader.ids on its device, in that order: uint8 (M, S, S, 3) or (M, 3 S^2 / 2)."""
    size, n = loader.split.store.size, len(loader.ids)
    shape = (n, planes.n_bytes(size)) if packed else (n, size, size, 3)
    loaded = torch.empty(shape, dtype=torch.uint8, device=loader.device)
    progress.start("pictures to the device", n)
    parts = (loader.ids[first : first + PORTION] for first in range(0, n, PORTION))
    n_workers, done = max(2, loader.workers), 0
    window = n_workers - 1  # so many portions are in memory at once
    for read in in_order(lambda ids: squares(loader, ids), loader.split.ahead(parts), loader.split.describe,
                         n_threads=n_workers, window=window, stop=loader.stop):  # fmt: skip
        pictures = read.to(loader.device, non_blocking=True)
        loaded[done : done + len(read)] = planes.pack(pictures) if packed else pictures
        done += len(read)
        progress.update(done)
    progress.finish()
    return loaded


def squares(loader: Loader, ids: NDArray[np.int64], scaled: boxes.Boxes | None = None) -> Tensor:
    """uint8 (N, S, S, 3): the stored squares of pictures, or the boxes of them that are scaled to crops, in memory from
    which a CUDA device copies by itself."""
    size = loader.split.store.size if scaled is None else loader.recipe.crop
    pixels = torch.empty((len(ids), size, size, 3), dtype=torch.uint8, pin_memory=loader.device.type == "cuda")
    out = pixels.numpy()
    for k in range(len(ids)):
        one = slice(k, k + 1)
        out[one] = augment.stored(loader.split, ids[one], None if scaled is None else scaled[one], size)
    return pixels


def free(device: torch.device) -> int:
    """Bytes that are free on the device; on the CPU, where kernels are only interpreted, none are said to be."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _to_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """A few numbers to the device, without waiting."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
