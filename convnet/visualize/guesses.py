"""What does a net say of each picture of a split? Its most probable classes, and how probable the true one is.

One look at a picture, the centre crop at the training's scale, as `convnet evaluate` without options: the errors are
the same. Panels, the confusion matrix and every list of mistakes are made of this.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnet.data.preprocess import Preprocessing
from convnet.data.store import Split
from convnet.device import Device
from convnet.errors import UsageError
from convnet.evaluation.evaluate import Scores, Tally, check_gives, finite, read
from convnet.evaluation.inference import BATCH, posteriors
from convnet.evaluation.views import protocol
from convnet.io import rng
from convnet.io.signals import Stop
from convnet.nets.layers import Net
from convnet.progress import SILENT, Progress

TOP = 5  # classes that are kept of each picture


@dataclass(frozen=True)
class Guesses:
    """What a net says of n pictures of a split, and the scores of that.

    ids: int64 (n,), positions in the split. classes: int64 (n, m), the m <= 5 most probable classes, best first.
    probabilities: float64 (n, m), theirs, 0 to 1. of_label: float64 (n,), that of the true class.
    """

    ids: NDArray[np.int64]
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    of_label: NDArray[np.float64]
    scores: Scores


def guesses(
    net: Net,
    split: Split,
    preprocessing: Preprocessing,
    device: Device,
    *,
    ids: NDArray[np.int64] | None = None,
    batch: int = BATCH,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> Guesses:
    """Asks a net about the pictures `ids` of a split (None: all). It holds no more than a batch of pictures at a time.

    Raises: UsageError when the store can't give what the net sees; NotFinite; Interrupted when `stop` is asked for.
    """
    asked = protocol("single", preprocessing)
    check_gives(split, asked.looks, preprocessing)
    chosen = np.arange(split.n) if ids is None else ids
    tally = Tally(split.labels[chosen])
    best = np.empty((len(chosen), min(TOP, len(split.store.classes))), np.int64)
    probabilities = np.empty(best.shape)
    net.eval()
    progress.start(f"looking ({split.name})", len(chosen))
    for part, pictures in read(split, chosen, asked.looks, stop):
        rows = asked.mean(finite(split, part, posteriors(net, pictures, asked.looks, preprocessing, device, batch)))
        at = slice(tally.n, tally.n + len(part))
        best[at] = np.argsort(-rows, axis=1, kind="stable")[:, : best.shape[1]]
        probabilities[at] = np.take_along_axis(rows, best[at], 1)
        tally.add(rows)
        progress.update(tally.n)
    progress.finish()
    scores = tally.scores("single", split.name, split.store.classes)
    return Guesses(chosen, best, probabilities, tally.of_label, scores)


def some(n: int, most: int, seed: int = 0) -> NDArray[np.int64]:
    """int64: `most` of the positions 0 .. n-1 in rising order, drawn by the seed; all where there are no more.

    >>> some(10, 3).tolist(), some(2, 3).tolist()
    ([4, 7, 8], [0, 1])
    """
    if most < 1:
        raise UsageError(f"{most} pictures: at least 1 must be looked at")
    return np.sort(rng.permutation(n, seed, rng.stream("look"))[:most])


def mistakes(found: Guesses) -> NDArray[np.int64]:
    """int64: the rows of `found` whose most probable class is wrong, the net's most confident first."""
    wrong = np.flatnonzero(found.scores.ranks >= 1)
    return np.asarray(wrong[np.argsort(-found.probabilities[wrong, 0], kind="stable")], np.int64)
