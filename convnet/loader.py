"""How do stored pictures reach the net? In batches whose content is a function of (seed, epoch, step) alone.

Threads read and crop ahead of the net (copying and decoding release the interpreter lock); they hold no state, so their
number can't change a batch.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet import augment, draws
from convnet.preprocess import Preprocessing
from convnet.recipe import Recipe
from convnet.store import Pixels, Split, Statistics

AHEAD = 2  # batches read ahead by each worker


@dataclass(frozen=True)
class Batch:
    """images: float32 (N, C, H, W). labels: int64 (N,). ids: int64 (N,), positions in the split."""

    images: Tensor
    labels: Tensor
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Loader:
    """Training batches of the pictures `ids` of a split, augmented by the recipe, on `device`.

    workers: threads that read ahead; 0 reads when a batch is asked for.
    """

    split: Split
    statistics: Statistics
    ids: NDArray[np.int64]
    recipe: Recipe
    preprocessing: Preprocessing
    device: torch.device
    workers: int = 1

    def __len__(self) -> int:
        """Steps in an epoch; the last may be smaller."""
        return -(-len(self.ids) // self.recipe.batch)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The order of the pictures in an epoch: each exactly once."""
        return self.ids[draws.permutation(len(self.ids), self.recipe.seed, draws.stream("order"), epoch)]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (0 is the first), from step `start` on."""
        order, size = self.order(epoch), self.recipe.batch
        steps = [order[i : i + size] for i in range(start * size, len(order), size)]
        if not self.workers:
            for ids in steps:
                yield self._batch(ids, *self._read(epoch, ids))
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="loader") as pool:
            ahead: deque[tuple[NDArray[np.int64], Future[tuple[Pixels, augment.Augmentation]]]] = deque()
            try:
                for ids in steps:
                    ahead.append((ids, pool.submit(self._read, epoch, ids)))
                    if len(ahead) > AHEAD * self.workers:
                        first, read = ahead.popleft()
                        yield self._batch(first, *read.result())
                while ahead:
                    first, read = ahead.popleft()
                    yield self._batch(first, *read.result())
            finally:
                for _, read in ahead:
                    read.cancel()

    def _read(self, epoch: int, ids: NDArray[np.int64]) -> tuple[Pixels, augment.Augmentation]:
        how = augment.draw(self.recipe, self.statistics, epoch, ids)
        return self.split.crops(ids, how.tops, how.lefts, self.recipe.crop), how

    def _batch(self, ids: NDArray[np.int64], crops: Pixels, how: augment.Augmentation) -> Batch:
        images = augment.to_input(crops, how, self.preprocessing, self.device)
        return Batch(images, torch.from_numpy(self.split.labels[ids]).to(self.device), ids)
