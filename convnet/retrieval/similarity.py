"""Do two nets, or two stages, see pictures alike? Numbers from their features of the same n pictures, in one order."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convnet.errors import UsageError

COLUMNS = 1 << 14  # numbers of each picture that are held in float64 at a time


def dissimilarities(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """float64 (n, n): 1 minus the correlation of each two pictures' activations (n, ...), from 0 to 2.

    Raises: UsageError for a picture whose activations are all equal, as they correlate with nothing.
    Paper: Kriegeskorte, Mur and Bandettini 2008, representational similarity analysis.
    """
    products = _products(features, "each picture's")
    lengths = np.sqrt(np.diag(products))
    if not lengths.all():
        raise UsageError(
            f"the activations of picture {int(lengths.argmin())} are all equal: they correlate with nothing"
        )
    distances: NDArray[np.float64] = (1 - products / np.outer(lengths, lengths)).clip(0, 2)
    np.fill_diagonal(distances, 0)
    return distances


def rsa(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Spearman's rank correlation of the pictures' dissimilarities under two features, from -1 to 1."""
    _check(first, second)
    pairs = np.triu_indices(len(first), 1)
    of_both = [dissimilarities(features)[pairs] for features in (first, second)]
    ranks = [_ranks(values.round(12)) for values in of_both]  # what differs by rounding is equal
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def linear_cka(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Centred kernel alignment with linear kernels, from 0 to 1; rotations and scales of the features leave it.

    Paper: Kornblith, Norouzi, Lee and Hinton 2019, similarity of neural network representations, eq. 4.
    """
    _check(first, second)
    k, m = (_products(features, "each unit's") for features in (first, second))
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def _check(first: NDArray[np.floating], second: NDArray[np.floating]) -> None:
    if len(first) != len(second) or len(first) < 3:
        raise UsageError(f"{len(first)} and {len(second)} pictures; both need the same ones, at least 3")


def _products(features: NDArray[np.floating], of: Literal["each picture's", "each unit's"]) -> NDArray[np.float64]:
    """(n, n): the products of each two pictures' activations, less each picture's or each unit's mean."""
    flat = features.reshape(len(features), -1)
    means = flat.mean(1, np.float64, keepdims=True) if of == "each picture's" else None
    products = np.zeros((len(flat), len(flat)))
    for start in range(0, flat.shape[1], COLUMNS):
        part = flat[:, start : start + COLUMNS].astype(np.float64)
        part -= part.mean(0) if means is None else means
        products += part @ part.T
    return products


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[places])
