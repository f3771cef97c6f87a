"""Which classes does a net get wrong, what does it take them for, and where may the labels be to blame?

From the scores of a split: errors class by class, the most confused pairs, the most confident mistakes, and
pictures whose label is in doubt. Doubt is a hint, no verdict: the net gives another class at least 90 % and the label
at most 1 %; a net can be sure and wrong. Pictures that are in the training split too are found by `duplicates`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convnet.data.preprocess import Preprocessing
from convnet.data.store import Pixels, Split
from convnet.evaluation.metrics import Scores, interval
from convnet.evaluation.seen import from_store
from convnet.training.metrics_log import Value
from convnet.visualize import plot
from convnet.visualize.confusion import csv_table
from convnet.visualize.duplicates import Duplicate
from convnet.visualize.panels import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SURE, UNLIKELY = 0.9, 0.01  # of another class and of the label: the label is in doubt
DOUBT = f"the net gives another class at least {SURE:.0%} and the label at most {UNLIKELY:.0%}; a hint, no verdict"


@dataclass(frozen=True)
class Row:
    """A class: its errors are None where it has no pictures."""

    k: int
    n: int  # pictures
    top1: float | None
    interval: tuple[float, float] | None  # 95 %, of the top-1 error
    top5: float | None
    confused_with: tuple[int, int] | None  # the wrong class predicted most often, and how often; None: all are right


@dataclass(frozen=True)
class Pair:
    """`count` of the `n` pictures of class `label` were predicted to be `predicted`."""

    label: int
    predicted: int
    count: int
    n: int
    rows: NDArray[np.int64]  # theirs in the scores, the most confident first


@dataclass(frozen=True)
class Classes:
    """What a test says of the classes."""

    scores: Scores
    rows: tuple[Row, ...]  # the K classes in order
    pairs: tuple[Pair, ...]  # the most frequent first
    mistakes: NDArray[np.int64]  # rows of `scores`, the net's most confident first; and so
    doubts: NDArray[np.int64]  # those whose label is in doubt
    duplicates: tuple[Duplicate, ...] | None  # pictures that are in the training split too; None where nobody looked


def classes(scores: Scores, duplicates: Sequence[Duplicate] | None = None, pairs: int = 20) -> Classes:
    """What scores say of the classes; of the pairs of classes so many."""
    wrong = scores.mistakes()
    doubtful = (scores.probabilities[wrong, 0] >= SURE) & (scores.of_label[wrong] <= UNLIKELY)
    duplicates = None if duplicates is None else tuple(duplicates)
    return Classes(scores, class_rows(scores), confused_pairs(scores, pairs), wrong, wrong[doubtful], duplicates)


def class_rows(scores: Scores) -> tuple[Row, ...]:
    """A row for each class, in order."""
    confused_with: dict[int, tuple[int, int]] = {}
    for label, predicted, n in scores.confused().tolist():  # ties: the first
        if label != predicted and n > confused_with.get(label, (0, 0))[1]:
            confused_with[label] = predicted, n
    rows = []
    for k, row in enumerate(scores.per_class()):
        n, error = row["n"], row["top1_error"]
        rows.append(Row(k, n, error, interval(error, n) if n else None, row["top5_error"], confused_with.get(k)))
    return tuple(rows)


def confused_pairs(scores: Scores, most: int) -> tuple[Pair, ...]:
    """The pairs (true class, predicted class) with the most pictures; ties: the larger share of the class."""
    entries = scores.confused()
    labels, predicted, counts = entries[entries[:, 0] != entries[:, 1]].T
    sizes = np.bincount(scores.labels)
    order = np.lexsort((predicted, labels, -counts / sizes[labels], -counts))[:most]
    wrong = scores.mistakes()
    pairs = []
    for i, j in zip(labels[order].tolist(), predicted[order].tolist(), strict=True):
        rows = wrong[(scores.labels[wrong] == i) & (scores.predicted[wrong] == j)]
        pairs.append(Pair(i, j, len(rows), int(sizes[i]), rows))
    return tuple(pairs)


def classes_csv(rows: Sequence[Row], names: Sequence[str]) -> bytes:
    """The classes as a table: errors 0 to 1 with the 95 % interval of the first. No cell is a formula."""
    table: list[list[Value]] = [
        ["class", "n", "top1_error", "top1_low", "top1_high", "top5_error", "taken_for", "times"]
    ]
    for row in rows:
        low, high = row.interval or (None, None)
        k, times = row.confused_with or (None, None)
        table.append([names[row.k], row.n, row.top1, low, high, row.top5, None if k is None else names[k], times])
    return csv_table(table)


WORST = 20  # classes with a bar
PAIRS = 6  # confused pairs with pictures, two side by side
ACROSS = 8  # pictures side by side
LETTERS = 16  # of a class's name
WIDTH = 9.0  # inches
HEAD, BAR, TILE = 0.45, 0.21, 1.55  # inches of a section's title, of a bar, of a picture with its text


@dataclass(frozen=True)
class _Sheet:
    """What the sections are drawn from."""

    classes: Classes
    split: Split
    train: Split
    preprocessing: Preprocessing
    names: tuple[str, ...]

    def picture(self, row: int) -> Pixels:
        return from_store(self.split, [int(self.classes.scores.ids[row])], self.preprocessing)[0].pixels


Section = tuple[str, float, Callable[["SubFigure", _Sheet], None]]  # its title, its height in inches, who draws it


def draw_classes(
    shown: Classes, split: Split, train: Split, preprocessing: Preprocessing, names: Sequence[str]
) -> "Figure":
    """One sheet of what `classes` says; pictures come from the split that was tested and the training split.

    names: of the K classes.
    """
    sheet = _Sheet(shown, split, train, preprocessing, tuple(plot.shortened(name, LETTERS) for name in names))
    sections = list(_sections(shown))
    heights = [height + HEAD for _, height, _ in sections]
    with plot.figure(WIDTH, sum(heights)) as fig:
        parts = fig.subfigures(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (title, _, draw) in zip(parts, sections, strict=True):
            part.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
            draw(part, sheet)
    return fig


def _sections(shown: Classes) -> Iterator[Section]:
    scores, n_tested = shown.scores, sum(row.n > 0 for row in shown.rows)
    which = f"the {WORST} worst of {n_tested:,} classes" if n_tested > WORST else "class by class"
    title = f"Top-1 error, {which}, with 95 % intervals ({scores.split}, n {scores.n:,}: {scores.top1:.1%})"
    yield title, BAR * min(n_tested, WORST) + 0.5, _errors
    if shown.pairs:
        rows = -(-len(shown.pairs[:PAIRS]) // 2)
        yield "Most often confused, and how probable the wrong class was", rows * TILE, _pairs
    if len(shown.mistakes):
        title = "Most confident mistakes: the label above, the net's class below"
        title += f"; framed: a label to look at ({len(shown.doubts):,} such)" if len(shown.doubts) else ""
        yield title, TILE * -(-len(shown.mistakes[: 2 * ACROSS]) // ACROSS), _mistakes
    if shown.duplicates:
        pairs = f"{len(shown.duplicates):,} pairs"
        yield (
            f"In {scores.split} and in train: the same bytes, or thumbnails that correlate ({pairs})",
            TILE,
            _duplicates,
        )


def _errors(part: "SubFigure", sheet: _Sheet) -> None:
    rows = [(row.top1, row.interval, row) for row in sheet.classes.rows if row.top1 is not None and row.interval]
    rows = sorted(rows, key=lambda each: (-each[0], each[2].k))[:WORST]
    axes = part.subplots()
    places = range(len(rows))
    axes.barh(places, [error for error, _, _ in rows], color=plot.WRONG, alpha=0.6, height=0.75)
    for place, (_, (low, high), row) in zip(places, rows, strict=True):
        axes.plot([low, high], [place, place], color=plot.INK, linewidth=1)
        text = f"n {row.n:,}"
        if row.confused_with is not None:
            text += f"; {row.confused_with[1]:,} taken for {sheet.names[row.confused_with[0]]}"
        axes.text(high + 0.01, place, text, va="center", fontsize=7, color=plot.FAINT)
    axes.set_yticks(places, [sheet.names[row.k] for _, _, row in rows])
    axes.set(xlim=(0, 1.3), ylim=(len(rows) - 0.4, -0.6), xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_xticklabels(["0%", "25%", "50%", "75%", "100%"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_bounds(0, 1)


def _pairs(part: "SubFigure", sheet: _Sheet) -> None:
    pairs = sheet.classes.pairs[:PAIRS]
    half = ACROSS // 2
    axes = _axes(part, -(-len(pairs) // 2))
    for i, pair in enumerate(pairs):
        places = axes[i * half : (i + 1) * half]
        names = f"{sheet.names[pair.label]} taken for {sheet.names[pair.predicted]}"
        places[0].set_title(" ")  # the room for what reaches over the other pictures
        text = f"{names}: {pair.count:,} of {pair.n:,}"
        places[0].text(0, 1.06, text, transform=places[0].transAxes, in_layout=False)
        for place, row in zip(places, pair.rows[:half].tolist(), strict=False):
            _show(place, sheet.picture(row), "", percent(sheet.classes.scores.probabilities[row, 0]))


def _mistakes(part: "SubFigure", sheet: _Sheet) -> None:
    scores, rows = sheet.classes.scores, sheet.classes.mistakes[: 2 * ACROSS].tolist()
    doubts = set(sheet.classes.doubts.tolist())
    if doubts:
        part.supxlabel(f"In doubt: {DOUBT}", x=0.01, ha="left", fontsize=7, color=plot.FAINT)
    for axes, row in zip(_axes(part, -(-len(rows) // ACROSS)), rows, strict=False):
        text = f"{sheet.names[scores.predicted[row]]}\n{percent(scores.probabilities[row, 0])}"
        _show(axes, sheet.picture(row), sheet.names[scores.labels[row]], text)
        axes.xaxis.label.set(color=plot.WRONG, fontsize=7)
        if row in doubts:
            axes.spines[:].set(visible=True, color=plot.COLOURS[1], linewidth=2.5)


def _duplicates(part: "SubFigure", sheet: _Sheet) -> None:
    places = _axes(part)
    for i, pair in enumerate((sheet.classes.duplicates or ())[: ACROSS // 2]):
        text = "same bytes" if pair.exact else f"{'mirror ' if pair.mirrored else ''}{pair.correlation:.3f}"
        pictures = ((sheet.split, pair.first), (sheet.train, pair.second))
        for axes, (split, position) in zip(places[2 * i : 2 * i + 2], pictures, strict=True):
            seen = from_store(split, [position], sheet.preprocessing)[0]
            _show(axes, seen.pixels, sheet.names[split.labels[position]], f"{split.name}: {text}")


def _axes(part: "SubFigure", rows: int = 1) -> "list[Axes]":
    """Rows of places for pictures, all empty."""
    places = list(part.subplots(rows, ACROSS, squeeze=False).flat)
    for axes in places:
        axes.set_axis_off()
    return places


def _show(axes: "Axes", pixels: Pixels, title: str, text: str) -> None:
    """A picture in its place, with a text below."""
    axes.set_axis_on()
    plot.show_picture(axes, pixels, title)
    axes.set_xlabel(text, labelpad=2, color=plot.FAINT)
