"""How good are several nets together? Their posteriors are averaged; each result alone stands beside."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convnet.answers import Answer, Answers
from convnet.errors import UsageError
from convnet.evaluate import Scores, scores_of
from convnet.views import Protocol


@dataclass(frozen=True)
class Row:
    """A line of a table: a net (or several, fused), its training's S, the views, at which Q, and the result."""

    net: str
    trained: str
    views: str
    scales: str
    scores: Scores

    def to_dict(self) -> dict[str, Any]:
        """As JSON and CSV can hold it; without classes and confusion."""
        names = {"net": self.net, "trained_at": self.trained, "views": self.views, "scales": self.scales}
        return names | self.scores.figures()


def join(files: Sequence[Answers]) -> Answers:
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
    return Answers(first.store, first.split, first.classes, first.keys, first.labels, members)


def rows(answers: Answers, weights: Sequence[float] | None = None) -> list[Row]:
    """The table (VGG tables 3 to 7): for each net each scale and part by itself, and together; then all nets fused.

    The last row is the whole: the last protocol, of all nets if there are several. weights: one for each net, of its
    posteriors' share in the fusion; None: equal ones.

    Raises: UsageError for weights that don't fit.
    """
    _check_weights(answers, weights)
    table = [row for member in answers.members for row in _member_rows(answers, member)]
    if len(answers.members) > 1:
        table += [_fused(answers, i, weights) for i in range(_n_protocols(answers))]
    return table


def _check_weights(answers: Answers, weights: Sequence[float] | None) -> None:
    n = len(answers.members)
    if weights is None:
        return
    if len(weights) != n:
        raise UsageError(f"--weights: {len(weights)} numbers for {n} nets; give one for each")
    if not all(np.isfinite(w) and w >= 0 for w in weights) or sum(weights) == 0:
        raise UsageError("--weights: each must be at least 0, and one above 0")


def _n_protocols(answers: Answers) -> int:
    counts = {len(member.protocols) for member in answers.members}
    if len(counts) > 1:
        raise UsageError("the nets were evaluated by different numbers of --views; use the same for all")
    return counts.pop()


def _member_rows(answers: Answers, member: Answer) -> list[Row]:
    """Each look by itself, each part over its scales, then the protocol; what was there already isn't repeated."""
    asked: dict[Protocol, None] = {}
    for each in member.protocols:
        asked |= dict.fromkeys(Protocol(look.name, ((look,),)) for part in each.parts for look in part)
        asked |= dict.fromkeys(Protocol(part[0].name, (part,)) for part in each.parts)
        asked.pop(each, None)
        asked[each] = None  # so that the last row is the last protocol
    return [_row(answers, member.name, str(member.trained), each, _mean(member, each)) for each in asked]


def _fused(answers: Answers, place: int, weights: Sequence[float] | None) -> Row:
    protocols = [member.protocols[place] for member in answers.members]
    means = [_mean(member, each) for member, each in zip(answers.members, protocols, strict=True)]
    mean = np.average(means, axis=0, weights=weights)
    names = " + ".join(member.name for member in answers.members)
    if weights is not None:
        names = " + ".join(f"{w:g} {m.name}" for w, m in zip(weights, answers.members, strict=True))
    trained = [str(member.trained) for member in answers.members]
    trained_at = trained[0] if len(set(trained)) == 1 else " + ".join(trained)
    if len(set(protocols)) == 1:
        return _row(answers, names, trained_at, protocols[0], mean)
    views = list(dict.fromkeys(each.name for each in protocols))
    scores = scores_of(" | ".join(views), answers.split, answers.classes, answers.labels, mean)
    return Row(names, trained_at, scores.views, " | ".join(_scales(each) for each in protocols), scores)


def _mean(member: Answer, asked: Protocol) -> np.ndarray[Any, np.dtype[np.float64]]:
    return asked.mean(member.posteriors)


def _row(answers: Answers, net: str, trained: str, asked: Protocol, mean: np.ndarray[Any, Any]) -> Row:
    scores = scores_of(asked.name, answers.split, answers.classes, answers.labels, mean)
    return Row(net, trained, asked.name, _scales(asked), scores)


def _scales(asked: Protocol) -> str:
    """`256, 384`, where all parts have the same; otherwise part by part."""
    texts = [", ".join(str(look.scale) for look in part) for part in asked.parts]
    return texts[0] if len(set(texts)) == 1 else " + ".join(texts)
