"""How good is a net on pictures it has not seen? Top-1 and top-5 error, per class, and the confusion matrix.

The paper (section 2): the top-1 error is the share of pictures whose most probable class is wrong; the top-5 error the
share whose class isn't among the five most probable. Probabilities are softmax outputs averaged over a picture's views.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import comb, sqrt

import numpy as np
from numpy.typing import NDArray

from convnet.io.strict_json import Json

MATRIX = 2000  # classes: of more a matrix of all pairs is mostly zeros, and larger than what it was counted from
TOP = 5  # classes that are kept of each picture
Z = 1.959964  # of the normal distribution: 95 % lie within


@dataclass(frozen=True)
class Scores:
    """The result of a test of n pictures over K classes.

    ids            int64 (n,), the pictures' positions in the split; labels: int64 (n,), their classes
    top            int64 (n, m), the m = min(5, K) most probable classes, best first; of equals the lower index
    probabilities  float64 (n, m), theirs, 0 to 1; of_label: float64 (n,), that of the true class
    ranks          int64 (n,), the place of the true class, 0 is the best; with K <= 5 there is no top-5 error
    """

    views: str
    split: str
    classes: tuple[str, ...]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    top: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    of_label: NDArray[np.float64]
    ranks: NDArray[np.int64]

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """int64 (n,): the most probable class."""
        return self.top[:, 0]

    @property
    def loss(self) -> float:
        """The mean of -log probability of the true class, nats."""
        return float(-np.log(np.maximum(self.of_label, 1e-300)).mean())

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

    def per_class(self) -> list[Json]:
        """For each class its name, n, and its top-1 and top-5 error (None where n is 0)."""
        k = len(self.classes)
        counts, *wrong = (np.bincount(self.labels[self.ranks >= place], minlength=k).tolist() for place in (0, 1, 5))
        rows = []
        for name, n, *errors in zip(self.classes, counts, *wrong, strict=True):
            top1, top5 = (each / n if n else None for each in errors)
            rows.append({"class": name, "n": n, "top1_error": top1, "top5_error": top5})
        return rows

    def figures(self) -> Json:
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

    def to_dict(self) -> Json:
        """As JSON can hold it; of more than MATRIX classes the entries of the confusion matrix that are not 0."""
        names = {"split": self.split, "views": self.views}
        if len(self.classes) > MATRIX:
            confusion: Json = {"confused": self.confused().tolist()}
        else:
            confusion = {"confusion": self.confusion.tolist()}
        return names | self.figures() | {"per_class": self.per_class()} | confusion

    def mistakes(self) -> NDArray[np.int64]:
        """int64: the rows of pictures whose most probable class is wrong, the net's most confident first."""
        wrong = np.flatnonzero(self.ranks >= 1)
        return np.asarray(wrong[np.argsort(-self.probabilities[wrong, 0], kind="stable")], np.int64)


def concatenated(parts: Sequence[Scores]) -> Scores:
    """The scores of a test whose pictures were shared out: of all parts, in their order."""
    return replace(
        parts[0],
        ids=np.concatenate([part.ids for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        top=np.concatenate([part.top for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        of_label=np.concatenate([part.of_label for part in parts]),
        ranks=np.concatenate([part.ranks for part in parts]),
    )


class Tally:
    """Counts the probabilities of pictures as they come; a few numbers of each are kept.

    labels: int64 (n,), of the pictures `ids` of a split (None: all of it).
    """

    def __init__(
        self, views: str, split: str, classes: tuple[str, ...], labels: NDArray[np.int64], ids: NDArray[np.int64]
    ) -> None:
        n, m = len(labels), min(TOP, len(classes))
        top, ranks = np.empty((n, m), np.int64), np.empty(n, np.int64)
        self.n = 0
        self._scores = Scores(views, split, classes, ids, labels, top, np.empty((n, m)), np.empty(n), ranks)

    def add(self, probabilities: NDArray[np.float64]) -> None:
        """Takes the probabilities (m, K) of the next m pictures."""
        kept, at = self._scores, slice(self.n, self.n + len(probabilities))
        labels = kept.labels[at]
        kept.top[at] = most_probable(probabilities, kept.top.shape[1])
        kept.probabilities[at] = np.take_along_axis(probabilities, kept.top[at], 1)
        kept.of_label[at] = probabilities[np.arange(len(labels)), labels]
        kept.ranks[at] = rank(probabilities, labels)
        self.n += len(probabilities)

    def scores(self) -> Scores:
        """The scores of all pictures. Every one must have been counted."""
        assert self.n == self._scores.n
        return self._scores


def most_probable(probabilities: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """int64 (N, n): the n most probable of K classes, best first; among equals the lower index comes first.

    >>> most_probable(np.array([[0.2, 0.5, 0.2, 0.1]]), 3).tolist()
    [[1, 0, 2]]
    """
    rest, rows = probabilities.copy(), np.arange(len(probabilities))
    best = np.empty((len(rest), min(n, rest.shape[1])), np.int64)
    for place in range(best.shape[1]):  # 5 of 21,841 classes, 64 pictures: 31 ms; sorting them takes 850
        best[:, place] = rest.argmax(1)
        rest[rows, best[:, place]] = -np.inf
    return best


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


def rank(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 (N,): how many classes come before the true one; among equals the lower index comes first.

    >>> rank(np.array([[0.2, 0.5, 0.2, 0.1]]), np.array([2])).tolist()
    [2]
    """
    truth = np.take_along_axis(probabilities, labels[:, None], 1)
    before = (probabilities > truth) | (
        (probabilities == truth) & (np.arange(probabilities.shape[1]) < labels[:, None])
    )
    return np.asarray(before.sum(1), np.int64)
