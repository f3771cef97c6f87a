"""Which classes does a net get wrong, what does it take them for, and where may the labels be to blame?

From the `guesses` about a split: errors class by class, the most confused pairs, the most confident mistakes, and
pictures whose label is in doubt. Doubt is a hint, no verdict: the net gives another class at least 90 % and the label
at most 1 %; a net can be sure and wrong. Pictures that are in the training split too are found by `duplicates`.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnet.evaluate import interval
from convnet.look.duplicates import Twin
from convnet.look.guesses import Guesses, mistakes
from convnet.runlog import inert

SURE, UNLIKELY = 0.9, 0.01  # of another class and of the label: the label is in doubt
DOUBT = f"the net gives another class at least {SURE:.0%} and the label at most {UNLIKELY:.0%}; a hint, no verdict"


@dataclass(frozen=True)
class Row:
    """A class k: how many pictures it has, its errors (None where it has none), the 95 % interval of the first.

    taken_for: the wrong class that was said most often, and how often; None when all are right.
    """

    k: int
    n: int
    top1: float | None
    interval: tuple[float, float] | None
    top5: float | None
    taken_for: tuple[int, int] | None


@dataclass(frozen=True)
class Pair:
    """`count` of the `n` pictures of class `label` were taken for `said`. rows: theirs in the guesses, surest first."""

    label: int
    said: int
    count: int
    n: int
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Classes:
    """What a test says of the classes. mistakes, doubts: int64, rows of `found`, the net's most confident first.

    rows: the K classes in order. pairs: the most frequent first. twins: pictures of `found`'s split (first) that are in
    the training split (second) too; None where nobody looked.
    """

    found: Guesses
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    mistakes: NDArray[np.int64]
    doubts: NDArray[np.int64]
    twins: tuple[Twin, ...] | None


def classes(found: Guesses, twins: Sequence[Twin] | None = None, pairs: int = 20) -> Classes:
    """What guesses say of the classes; of the pairs of classes so many."""
    return Classes(
        found,
        class_rows(found),
        confused_pairs(found, pairs),
        mistakes(found),
        label_doubts(found),
        None if twins is None else tuple(twins),
    )


def class_rows(found: Guesses) -> tuple[Row, ...]:
    """A row for each class, in order."""
    taken_for: dict[int, tuple[int, int]] = {}
    for label, said, n in found.scores.confused().tolist():  # of equals the first
        if label != said and n > taken_for.get(label, (0, 0))[1]:
            taken_for[label] = said, n
    rows = []
    for k, each in enumerate(found.scores.per_class()):
        error = each["top1_error"]
        rows.append(
            Row(
                k,
                each["n"],
                error,
                None if error is None else interval(error, each["n"]),
                each["top5_error"],
                taken_for.get(k),
            )
        )
    return tuple(rows)


def confused_pairs(found: Guesses, most: int) -> tuple[Pair, ...]:
    """The pairs (true class, another that was said) with the most pictures; of equals the larger share of the class."""
    entries = found.scores.confused()
    labels, said, counts = entries[entries[:, 0] != entries[:, 1]].T
    sizes = np.bincount(found.scores.labels)
    order = np.lexsort((said, labels, -counts / sizes[labels], -counts))[:most]
    wrong = mistakes(found)
    pairs = []
    for i, j in zip(labels[order].tolist(), said[order].tolist(), strict=True):
        rows = wrong[(found.scores.labels[wrong] == i) & (found.classes[wrong, 0] == j)]
        pairs.append(Pair(i, j, len(rows), int(sizes[i]), rows))
    return tuple(pairs)


def label_doubts(found: Guesses) -> NDArray[np.int64]:
    """int64: the rows whose label is in doubt, the net's most confident first: see DOUBT."""
    wrong = mistakes(found)
    return np.asarray(wrong[(found.probabilities[wrong, 0] >= SURE) & (found.of_label[wrong] <= UNLIKELY)], np.int64)


def classes_csv(rows: Sequence[Row], names: Sequence[str]) -> bytes:
    """The classes as a table: errors 0 to 1 with the 95 % interval of the first. No cell is a formula."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "n", "top1_error", "top1_low", "top1_high", "top5_error", "taken_for", "times"])
    for row in rows:
        low, high = row.interval or (None, None)
        said, times = row.taken_for or (None, None)
        name = None if said is None else inert(names[said])
        writer.writerow([inert(names[row.k]), row.n, row.top1, low, high, row.top5, name, times])
    return text.getvalue().encode(errors="replace")
