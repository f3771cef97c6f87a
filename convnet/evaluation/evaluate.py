"""How good is a net on pictures it has not seen? Top-1 and top-5 error, per class, and the confusion matrix.

The paper (section 2): the top-1 error is the share of pictures whose most probable class is wrong; the top-5 error the
share whose class isn't among the five most probable. Posteriors are softmax outputs averaged over a picture's views.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from convnet.data.preprocess import Preprocessing
from convnet.data.store import Split, Store
from convnet.device import Device
from convnet.errors import DataError, Interrupted, UsageError
from convnet.evaluation.inference import BATCH, Picture, at_scales, posteriors
from convnet.evaluation.views import IN_SQUARE, Look, protocol, square_at
from convnet.io.prefetch import in_order
from convnet.io.signals import Stop
from convnet.progress import SILENT, Progress

PICTURES = 64  # read at a time
MATRIX = 2000  # classes: of more a matrix of all pairs is mostly zeros, and larger than what it was counted from
Z = 1.959964  # of the normal distribution: 95 % lie within


class NotFinite(DataError):  # noqa: N818 - the state of the net
    """The net's output for a picture is NaN or infinite."""


@dataclass(frozen=True)
class Scores:
    """The result of a test of n pictures over K classes.

    ranks: int64 (n,), the place of the true class among the posteriors, 0 is the best. Of classes that are equally
    probable, the one with the lower index comes first. With K <= 5 classes no picture can be a top-5 error.
    predicted, labels: int64 (n,). loss: the mean of -log posterior of the true class, nats.
    """

    views: str
    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    ranks: NDArray[np.int64]
    loss: float

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def top1(self) -> float:
        """Share of wrong pictures, 0 to 1."""
        return float((self.ranks >= 1).mean())

    @property
    def top5(self) -> float:
        return float((self.ranks >= 5).mean())

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """(K, K): entry [i, j] counts pictures of class i that were taken for class j: 3.8 GB for 21,841 classes."""
        k = len(self.classes)
        return np.bincount(self.labels * k + self.predicted, minlength=k * k).reshape(k, k)

    def confused(self) -> NDArray[np.int64]:
        """(m, 3): what is not 0 in `confusion`, row by row, as (i, j, pictures); never more than n."""
        k = len(self.classes)
        entries, counts = np.unique(self.labels * k + self.predicted, return_counts=True)
        return np.stack([entries // k, entries % k, counts], 1)

    def per_class(self) -> list[dict[str, Any]]:
        """For each class its name, n, and its top-1 and top-5 error (None where n is 0)."""
        k = len(self.classes)
        counts, *wrong = (np.bincount(self.labels[self.ranks >= place], minlength=k).tolist() for place in (0, 1, 5))
        rows = []
        for name, n, *errors in zip(self.classes, counts, *wrong, strict=True):
            top1, top5 = (each / n if n else None for each in errors)
            rows.append({"class": name, "n": n, "top1_error": top1, "top5_error": top5})
        return rows

    def figures(self) -> dict[str, Any]:
        """Both error rates with n, their 95 % intervals, and the accuracies."""
        return {
            "n": self.n,
            "top1_error": self.top1,
            "top1_interval": list(interval(self.top1, self.n)),
            "top5_error": self.top5,
            "top5_interval": list(interval(self.top5, self.n)),
            "top1_accuracy": 1 - self.top1,
            "top5_accuracy": 1 - self.top5,
            "loss": self.loss,
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; of more than MATRIX classes the entries of the confusion matrix that are not 0."""
        names = {"split": self.split, "views": self.views}
        if len(self.classes) > MATRIX:
            confusion: dict[str, Any] = {"confused": self.confused().tolist()}
        else:
            confusion = {"confusion": self.confusion.tolist()}
        return names | self.figures() | {"per_class": self.per_class()} | confusion


class Tally:
    """Counts the posteriors of pictures with these labels, int64 (n,), as they come: three numbers of each are kept."""

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.labels, self.n = labels, 0
        self.predicted, self.ranks = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64)
        self.of_label = np.empty(len(labels))

    def add(self, posteriors: NDArray[np.float64]) -> None:
        """Takes the posteriors (m, K) of the next m pictures."""
        at = slice(self.n, self.n + len(posteriors))
        labels = self.labels[at]
        self.predicted[at], self.ranks[at] = posteriors.argmax(1), rank(posteriors, labels)
        self.of_label[at] = posteriors[np.arange(len(labels)), labels]
        self.n += len(posteriors)

    def scores(self, views: str, split: str, classes: tuple[str, ...]) -> Scores:
        """The scores of all pictures. Every one must have been counted."""
        assert self.n == len(self.labels)
        loss = float(-np.log(np.maximum(self.of_label, 1e-300)).mean())
        return Scores(views, split, classes, self.labels, self.predicted, self.ranks, loss)


def interval(rate: float, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a rate that was measured on n independent pictures, by Wilson's formula (1927).

    >>> "%.4f %.4f" % interval(0.1, 1000)
    '0.0829 0.1202'
    """
    centre, half = rate + Z * Z / (2 * n), Z * sqrt(rate * (1 - rate) / n + (Z / (2 * n)) ** 2)
    return max(0.0, (centre - half) / (1 + Z * Z / n)), min(1.0, (centre + half) / (1 + Z * Z / n))


def sign_test(one: Scores, other: Scores) -> tuple[int, int, float]:
    """Is the top-1 error of `other` another than that of `one` on the same pictures? Paired and exact (McNemar 1947).

    How many pictures only `one` gets wrong, how many only `other` does, and the probability that equally good nets
    differ by as much: of n coins, that so few or fewer fall on one side, whichever it is.
    """
    wrong, wrong_too = one.ranks >= 1, other.ranks >= 1
    mended, broken = int((wrong & ~wrong_too).sum()), int((~wrong & wrong_too).sum())
    n = mended + broken
    tail = sum(comb(n, k) for k in range(min(mended, broken) + 1))
    return mended, broken, min(1.0, 2 * tail / 2**n)


def evaluate(
    net: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    device: Device,
    *,
    views_name: str = "single",
    scales: str | None = None,
    ids: NDArray[np.int64] | None = None,
    batch: int = BATCH,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> Scores:
    """Tests `net` on a split of a store (or on its pictures `ids`). The net is in eval mode meanwhile.

    views_name, scales: as `views.protocol` knows them. batch: crops in a forward pass, which bounds memory.

    Raises: NotFinite when the net's outputs aren't finite, naming the picture; UsageError when classes, sizes or views
    don't fit; Interrupted when `stop` is asked for.
    """
    asked = protocol(views_name, preprocessing, scales)
    check_gives(split, asked.looks, preprocessing)
    chosen = np.arange(split.n) if ids is None else ids
    tally = Tally(split.labels[chosen])
    progress.start(f"testing ({split.name}, {views_name})", len(chosen))
    training = net.training
    computing, _ = device.narrowed(net.eval())
    try:
        for part, pictures in read(split, chosen, asked.looks, stop):
            found = posteriors(computing, pictures, asked.looks, preprocessing, device, batch)
            tally.add(asked.mean(finite(split, part, found)))
            progress.update(tally.n)
    finally:
        net.train(training)
    progress.finish()
    return tally.scores(views_name, split.name, split.store.classes)


def rank(posteriors: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 (N,): how many classes come before the true one; among equals the lower index comes first.

    >>> rank(np.array([[0.2, 0.5, 0.2, 0.1]]), np.array([2])).tolist()
    [2]
    """
    truth = np.take_along_axis(posteriors, labels[:, None], 1)
    before = (posteriors > truth) | ((posteriors == truth) & (np.arange(posteriors.shape[1]) < labels[:, None]))
    return np.asarray(before.sum(1), np.int64)


def split_to_test(store: Store, name: str | None = None) -> Split:
    """The split that was asked for by name, or the first of test, val and train that has pictures.

    Raises: UsageError when the store has no such split.
    """
    filled = (each for each in ("test", "val", "train") if each in store.splits and store.split(each).n)
    return store.split(name or next(filled, "test"))


def check_gives(split: Split, looks: Sequence[Look], preprocessing: Preprocessing) -> None:
    """Raises: UsageError naming the preparation that would do, when the store can't give what is to be looked at."""
    store, size = split.store, preprocessing.size
    if split.n == 0:
        raise UsageError(f"{store.path} has no pictures in its split {split.name}; choose another with --split")
    if store.fit != preprocessing.fit:
        raise UsageError(
            f"{store.path} holds pictures fitted by {store.fit}, and the net knows them by {preprocessing.fit}: "
            f"prepare the source with --fit {preprocessing.fit}"
        )
    largest = max(look.scale for look in looks)
    for look in looks:
        square = square_at(preprocessing, look.scale)
        if store.encoding == "raw" and (look.scale, square) != (store.shorter_side, store.size):
            needed = f"--size {size} --shorter-side {preprocessing.shorter_side}"
            if look.scale != preprocessing.shorter_side:
                needed = f"--encoding jpeg --size {size} --shorter-side {largest}"
            raise UsageError(
                f"{store.path} holds pictures of {store.size} pixels in a shorter side of {store.shorter_side}, and "
                f"{look} needs {square} in {look.scale}: prepare the source with {needed}"
            )
        if look.scale > store.shorter_side:
            raise UsageError(
                f"{store.path} holds pictures with a shorter side of {store.shorter_side} pixels, too small for "
                f"{look}: prepare the source with --encoding jpeg --size {size} --shorter-side {largest}"
            )


def seen(split: Split, looks: Sequence[Look]) -> str | None:
    """What a user should know of the pictures that this store gives, if anything."""
    store, scales = split.store, sorted({look.scale for look in looks})
    if store.encoding == "raw" and any(look.name not in IN_SQUARE for look in looks):
        return f"{store.path} holds central squares only: no view sees what was cut off (--encoding jpeg keeps all)"
    if store.encoding == "jpeg" and scales != [store.shorter_side]:
        text = ", ".join(str(scale) for scale in scales if scale != store.shorter_side)
        return f"pictures are resized from the store's shorter side of {store.shorter_side} pixels to {text}"
    return None


def read(
    split: Split, chosen: NDArray[np.int64], looks: Sequence[Look], stop: Stop | None = None
) -> Iterator[tuple[NDArray[np.int64], list[Picture]]]:
    """The pictures `chosen` at the looks' scales, some at a time and with their ids; a thread reads the next ones.

    Raises: Interrupted when `stop` is asked for.
    """
    parts = [chosen[first : first + PICTURES] for first in range(0, len(chosen), PICTURES)]
    pictures = in_order(lambda part: _pictures(split, part, looks), parts, split.told, stop=stop)
    for part, some in zip(parts, pictures, strict=True):
        yield part, some
        if stop:
            raise Interrupted(f"stopped while testing on {split.name}")


def _pictures(split: Split, ids: NDArray[np.int64], looks: Sequence[Look]) -> list[Picture]:
    split.check_lengths()
    return [at_scales(split.picture(i), split.store.shorter_side, looks) for i in ids.tolist()]


def finite(
    split: Split, ids: NDArray[np.int64], found: dict[Look, NDArray[np.float64]]
) -> dict[Look, NDArray[np.float64]]:
    """`found` itself. Raises: NotFinite with the first picture whose posteriors aren't."""
    for rows in found.values():
        if not np.isfinite(rows).all():
            bad = ids[~np.isfinite(rows).all(1)][0]
            raise NotFinite(f"the net's output for {split.keys[bad]!r} is not finite; its weights may be damaged")
    return found
