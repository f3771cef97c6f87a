"""One pass over a split: its pictures a few at a time, and the best of them so far."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from convnet.data.preprocess import Preprocessing
from convnet.data.store import Split
from convnet.evaluation.seen import Seen, in_parts
from convnet.progress import Progress

Ints = NDArray[np.int64]
BATCH = 16  # pictures at a time; their activations in the stages that are searched are held


def batches(
    split: Split, ids: Ints | None, preprocessing: Preprocessing, progress: Progress, after: int = 0
) -> Iterator[tuple[Ints, list[Seen]]]:
    """The pictures `ids` of a split (None: all), BATCH at a time, with their ids.

    after: pictures that later searches will read, for the time left. Raises: UsageError for a store that doesn't fit.
    """
    ids = np.arange(split.n) if ids is None else ids
    done = 0
    progress.start(f"searching ({split.name})", len(ids), after=after)
    for part, pictures in in_parts(split, ids, preprocessing, BATCH):
        yield part, pictures
        done += len(part)
        progress.update(done)
    progress.finish()


class Smallest:
    """Of each of R rows the n smallest values so far, ascending, and their numbers; ties: the earliest.

    values: float64 (R, <= n). numbers: int64 (R, <= n).
    """

    def __init__(self, rows: int, n: int) -> None:
        self.n = n
        self.values: NDArray[np.float64] = np.empty((rows, 0))
        self.numbers: Ints = np.empty((rows, 0), np.int64)

    def add(self, values: NDArray[np.float64], numbers: Ints) -> None:
        """Takes more values (R, N) into account, and their numbers (R, N) or (N,)."""
        values = np.concatenate([self.values, values], 1)
        numbers = np.concatenate([self.numbers, np.broadcast_to(numbers, (len(values), numbers.shape[-1]))], 1)
        order = np.argsort(values, axis=1, kind="stable")[:, : self.n]
        self.values, self.numbers = np.take_along_axis(values, order, 1), np.take_along_axis(numbers, order, 1)
