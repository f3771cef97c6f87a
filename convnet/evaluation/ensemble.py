"""How good are several nets together? Their probabilities are averaged; each result alone stands beside."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convnet.errors import UsageError
from convnet.evaluation.metrics import Scores, Tally
from convnet.evaluation.predictions import Block, Predictions, Predictor
from convnet.evaluation.views import Protocol, one_if_equal
from convnet.io.strict_json import Json


class Line(NamedTuple):
    """What a row of the table is about, and how its probabilities, float64 (m, K), come from those of m pictures."""

    net: str
    trained: str
    views: str
    scales: str
    mean: Callable[[Block], NDArray[np.float64]]


@dataclass(frozen=True)
class Row:
    """A line of a table: a net (or several, averaged), its training's S, the views, at which Q, and the result."""

    net: str
    trained: str
    views: str
    scales: str
    scores: Scores

    def to_dict(self) -> Json:
        """As JSON and CSV can hold it; without classes and confusion."""
        names = {"net": self.net, "trained_at": self.trained, "views": self.views, "scales": self.scales}
        return names | self.scores.figures()


def join(files: Sequence[Predictions]) -> Predictions:
    """All members of several files. Raises: UsageError when they are not about the same pictures and classes."""
    first = files[0]
    for other in files[1:]:
        if (other.classes, other.keys) != (first.classes, first.keys) or not np.array_equal(other.labels, first.labels):
            raise UsageError(
                f"the files are about other pictures: {len(first.keys):,} of split {first.split} with "
                f"{len(first.classes)} classes, and {len(other.keys):,} of {other.split} with {len(other.classes)}; "
                "evaluate all nets on the same store"
            )
    members = tuple(member for each in files for member in each.members)
    blocks = partial(_side_by_side, files)
    return Predictions(first.store, first.split, first.classes, first.keys, first.labels, members, blocks)


def _side_by_side(files: Sequence[Predictions]) -> Iterator[Block]:
    for blocks in zip(*(each.blocks() for each in files), strict=True):
        yield [of_member for block in blocks for of_member in block]


def rows(predictions: Predictions, weights: Sequence[float] | None = None) -> list[Row]:
    """The table (VGG tables 3 to 7): for each net each scale and part by itself, and together; then all nets' ensemble.

    The last row is the whole: the last protocol, of all nets if there are several. weights: one for each net, of its
    probabilities' share in the ensemble; None: equal ones.

    Raises: UsageError for weights that don't fit.
    """
    _check_weights(predictions, weights)
    lines = [line for i, member in enumerate(predictions.members) for line in _member_lines(i, member)]
    if len(predictions.members) > 1:
        lines += [_ensemble(predictions, i, weights) for i in range(_n_protocols(predictions))]
    labels, ids = predictions.labels, np.arange(len(predictions.labels))
    tallies = [Tally(line.views, predictions.split, predictions.classes, labels, ids) for line in lines]
    for block in predictions.blocks():
        for line, tally in zip(lines, tallies, strict=True):
            tally.add(line.mean(block))
    return [Row(*line[:4], tally.scores()) for line, tally in zip(lines, tallies, strict=True)]


def _check_weights(predictions: Predictions, weights: Sequence[float] | None) -> None:
    n = len(predictions.members)
    if weights is None:
        return
    if len(weights) != n:
        raise UsageError(f"--weights: {len(weights)} numbers for {n} nets; give one for each")
    if not all(np.isfinite(w) and w >= 0 for w in weights) or sum(weights) == 0:
        raise UsageError("--weights: each must be at least 0, and one above 0")


def _n_protocols(predictions: Predictions) -> int:
    counts = {len(member.protocols) for member in predictions.members}
    if len(counts) > 1:
        raise UsageError("the nets were evaluated by different numbers of --views; use the same for all")
    return counts.pop()


def _member_lines(i: int, member: Predictor) -> list[Line]:
    """Each look by itself, each part over its scales, then the protocol; what was there already isn't repeated."""
    protocols: dict[Protocol, None] = {}
    for whole in member.protocols:
        protocols |= dict.fromkeys(Protocol(look.name, ((look,),)) for part in whole.parts for look in part)
        protocols |= dict.fromkeys(Protocol(part[0].name, (part,)) for part in whole.parts)
        protocols.pop(whole, None)
        protocols[whole] = None  # so that the last row is the last protocol
    trained = str(member.trained)
    return [Line(member.name, trained, each.name, each.scales, partial(_mean, i, each)) for each in protocols]


def _mean(i: int, protocol: Protocol, block: Block) -> NDArray[np.float64]:
    return protocol.mean(block[i])


def _ensemble(predictions: Predictions, i: int, weights: Sequence[float] | None) -> Line:
    protocols = [member.protocols[i] for member in predictions.members]
    names = " + ".join(member.name for member in predictions.members)
    if weights is not None:
        names = " + ".join(f"{w:g} {m.name}" for w, m in zip(weights, predictions.members, strict=True))
    trained = " + ".join(one_if_equal([str(member.trained) for member in predictions.members]))
    scales = " | ".join(each.scales for each in one_if_equal(protocols))
    views = " | ".join(dict.fromkeys(each.name for each in protocols))

    def mean(block: Block) -> NDArray[np.float64]:
        means = [each.mean(own) for own, each in zip(block, protocols, strict=True)]
        return np.asarray(np.average(means, axis=0, weights=weights))

    return Line(names, trained, views, scales, mean)
