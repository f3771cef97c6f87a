"""The data loader: batches whose content is a function of (seed, epoch, step) alone.

Threads work ahead of the net; they hold no state, so their number can't change a batch. On the CPU, where there is a C
compiler, one pass makes a net's input of the stored pictures (kernels/cpu/augment.py); it and decoding release the
interpreter lock. Otherwise the threads read and crop, and torch does the rest on the net's device: the plain form.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, tee
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.data import augment
from convnet.data.index import Numbers
from convnet.data.preprocess import Preprocessing
from convnet.data.statistics import Statistics
from convnet.data.store import Pixels, Split
from convnet.io import rng
from convnet.io.prefetch import in_order
from convnet.io.processes import ALONE, Processes
from convnet.io.signals import Stop
from convnet.kernels.cpu import augment as augment_cpu
from convnet.recipe import Recipe

AHEAD = 2  # batches read ahead by each worker
PIECE = 1 << 20  # bytes of float32 images that are made at once; a batch is never cut
Read = Tensor | tuple[Pixels, augment.Augmentation]  # the images, or what the plain form makes them of


class Piece(NamedTuple):
    """steps: of each the pictures, this process's of them, and its number in the epoch. room: for their images."""

    steps: list[tuple[NDArray[np.int64], NDArray[np.int64], int]]
    room: Tensor | None


@dataclass(frozen=True)
class Batch:
    """images: (N, C, H, W), the loader's dtype, channels-last. labels: int64 (N,). ids: int64, in the split.

    The images are those of `ids`, or of this process's part of them, from position `first` on; it may be empty.
    """

    images: Tensor
    labels: Tensor
    ids: NDArray[np.int64]
    first: int = 0


@dataclass(frozen=True)
class Loader:
    """Training batches of the pictures `ids` of a split, augmented by the recipe, on `device`.

    workers: threads that read ahead; 0 reads when a batch is asked for, and waits for it without a limit. dtype: of the
    images, float32 or bfloat16; an autocast net makes the same of both. stop: whoever asks is heard while a batch is
    waited for. processes: with which this one shares each batch.
    """

    split: Split
    statistics: Statistics
    ids: Numbers
    recipe: Recipe
    preprocessing: Preprocessing
    device: torch.device
    workers: int = 1
    dtype: torch.dtype = torch.float32
    stop: Stop | None = None
    processes: Processes = ALONE

    def __len__(self) -> int:
        """Steps in an epoch; the last may be smaller."""
        return -(-len(self.ids) // self.recipe.batch)

    def steps(self, epoch: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
        """The pictures of each batch of an epoch, from step `start` on: in a whole epoch each exactly once, or
        each class equally often (`_balanced`)."""
        n, size = len(self.ids), self.recipe.batch
        order = rng.order(n, self.recipe.seed, rng.stream("order"), epoch)
        if self.recipe.balance == "order":
            ids = self._balanced(self.ids[order[:]], epoch)
            return (ids[i : i + size] for i in range(start * size, n, size))
        return (self.ids[order[i : i + size]] for i in range(start * size, n, size))

    def _balanced(self, ids: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """As many pictures as `ids`, of each class that they have equally many but for one: of a large class as many in
        the order of `ids`, of a small one all, again and again."""
        labels = self.split.labels[ids]
        counts = np.bincount(labels)
        present = np.flatnonzero(counts)
        first, by_class = np.cumsum(counts) - counts, ids[np.argsort(labels, kind="stable")]
        turn, place = np.divmod(rng.permutation(len(ids), self.recipe.seed, rng.stream("balance"), epoch), len(present))
        chosen = present[place]
        return np.asarray(by_class[first[chosen] + turn % counts[chosen]])

    def counters(self, step: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """What counts the random numbers of a step's pictures: themselves, or, where an epoch may have one twice, their
        places in the epoch."""
        return step * self.recipe.batch + np.arange(len(ids)) if self.recipe.balance == "order" else ids

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (0 is the first), from step `start` on. Small ones are made several at once: to a
        thread a handover costs as much as some of them."""
        steps, coming = tee(self.steps(epoch, start))
        parts = self.split.ahead(ids[self.processes.part(len(ids))] for ids in coming)

        def read(piece: Piece) -> tuple[Piece, Read]:
            own = np.concatenate([own for _, own, _ in piece.steps])
            counters = [self.counters(number, ids)[self.processes.part(len(ids))] for ids, _, number in piece.steps]
            sampled = augment.sample(self.recipe, self.statistics, epoch, np.concatenate(counters))
            return piece, self._read(own, sampled, piece.room)

        numbered = ((ids, own, number) for number, (ids, own) in enumerate(zip(steps, parts, strict=True), start))
        pieces = (Piece(some, self._empty_images(sum(len(own) for _, own, _ in some)))
                  for some in iter(lambda: list(islice(numbered, self._at_once())), []))  # fmt: skip
        if not self.workers:
            for piece in pieces:
                yield from self._batches(*read(piece))
            return

        def describe(piece: Piece) -> str:
            return self.split.describe(np.concatenate([own for _, own, _ in piece.steps]))

        for made in in_order(read, pieces, describe, n_threads=self.workers, window=AHEAD * self.workers,
                             stop=self.stop):  # fmt: skip
            yield from self._batches(*made)

    def _at_once(self) -> int:
        """Batches that are made at once; one of a store behind a URL, whose pictures come one by one."""
        if self.split.store.remote is not None:
            return 1
        channels = 1 if self.preprocessing.channels == "grey" else 3
        part = -(-self.recipe.batch // self.processes.n)
        return max(1, PIECE // (part * channels * self.recipe.crop**2 * 4))

    def _empty_images(self, n: int) -> Tensor | None:
        """Memory for n images, where one pass fills it. The caller's thread takes it: what it frees it can reuse."""
        if not augment_cpu.available(self.device, self.dtype):
            return None
        return augment.empty_images(n, self.recipe.crop, self.recipe.crop, self.preprocessing, self.dtype)

    def _read(self, ids: NDArray[np.int64], sampled: augment.Augmentation, images: Tensor | None) -> Read:
        self.split.check_lengths()
        if images is None:
            return self._crops(ids, sampled), sampled
        augment.fill(images, self.split, ids, sampled, self.preprocessing)
        return images

    def _crops(self, ids: NDArray[np.int64], sampled: augment.Augmentation) -> Pixels:
        crop = self.recipe.crop
        if sampled.boxes is None:
            return self.split.crops(ids, sampled.tops, sampled.lefts, crop)
        crops = augment.stored(self.split, ids, sampled.boxes, crop)
        return np.stack(crops) if crops else np.empty((0, crop, crop, 3), np.uint8)

    def _batches(self, piece: Piece, read: Read) -> Iterator[Batch]:
        if not isinstance(read, Tensor):
            read = augment.to_input(*read, self.preprocessing, self.device, self.dtype)
        sizes = [len(own) for _, own, _ in piece.steps]
        labels = torch.from_numpy(self.split.labels[np.concatenate([own for _, own, _ in piece.steps])])
        parts = zip(read.split(sizes), labels.to(self.device).split(sizes), strict=True)
        for (ids, _, _), (images, of_images) in zip(piece.steps, parts, strict=True):
            yield Batch(images, of_images, ids, self.processes.part(len(ids)).start)
