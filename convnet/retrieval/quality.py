"""How good is a search? Against labels, and against the search that it stands for.

All take what was found as bool (Q, n): whether the picture at each place, nearest first, is relevant.
"""

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def precision(relevant: Bools, k: int) -> Floats:
    """(Q,): the share of relevant pictures among the first k."""
    return np.asarray(relevant[:, :k].mean(1), np.float64)


def recall(relevant: Bools, k: int, n_relevant: Ints) -> Floats:
    """(Q,): the share of all n_relevant (Q,) that are among the first k; 1 where there are none."""
    return np.where(n_relevant > 0, relevant[:, :k].sum(1) / np.maximum(n_relevant, 1), 1.0)


def average_precision(relevant: Bools) -> Floats:
    """(Q,): the mean, over the relevant ones of all n pictures, of the precision at each one's place; 1 without any."""
    hits = relevant.cumsum(1)
    total = (hits / np.arange(1, relevant.shape[1] + 1) * relevant).sum(1)
    return np.where(hits[:, -1] > 0, total / np.maximum(hits[:, -1], 1), 1.0)


def by_class(values: Floats, labels: Ints) -> dict[int, float]:
    """{label: mean of the values (Q,) of its queries}."""
    return {int(label): float(values[labels == label].mean()) for label in np.unique(labels)}


def among(found: Ints, right: Ints) -> Bools:
    """(Q, n): whether each of the positions found (Q, n) is among the right ones (Q, k): those of an exact search."""
    return np.array([np.isin(*rows) for rows in zip(found, right, strict=True)])


def interval(values: Floats) -> tuple[float, float]:
    """The 95 % interval of the mean of independent values, by the normal distribution."""
    half = 1.96 * float(values.std(ddof=1)) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()) - half, float(values.mean()) + half
