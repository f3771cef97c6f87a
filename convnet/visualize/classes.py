"""Which classes does a net get wrong, what does it take them for, and where may the labels be to blame?

From the scores of a split: errors class by class, the most confused pairs, the most confident mistakes, and
pictures whose label is in doubt. Doubt is a hint, no verdict: the net gives another class at least 90 % and the label
at most 1 %; a net can be sure and wrong. Pictures that are in the training split too are found by `duplicates`.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from convnet.data.preprocess import Preprocessing
from convnet.data.store import Split
from convnet.evaluation.metrics import Scores, interval
from convnet.evaluation.seen import Seen, from_store
from convnet.training.metrics_log import inert
from convnet.visualize import plot
from convnet.visualize.duplicates import Twin
from convnet.visualize.panels import percent

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
    """`count` of the `n` pictures of class `label` were taken for `said`. rows: theirs in the scores, surest first."""

    label: int
    said: int
    count: int
    n: int
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Classes:
    """What a test says of the classes. mistakes, doubts: int64, rows of `scores`, the net's most confident first.

    rows: the K classes in order. pairs: the most frequent first. twins: pictures of `scores`' split (first) that are in
    the training split (second) too; None where nobody looked.
    """

    scores: Scores
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    mistakes: NDArray[np.int64]
    doubts: NDArray[np.int64]
    twins: tuple[Twin, ...] | None


def classes(found: Scores, twins: Sequence[Twin] | None = None, pairs: int = 20) -> Classes:
    """What scores say of the classes; of the pairs of classes so many."""
    return Classes(
        found,
        class_rows(found),
        confused_pairs(found, pairs),
        found.mistakes(),
        label_doubts(found),
        None if twins is None else tuple(twins),
    )


def class_rows(found: Scores) -> tuple[Row, ...]:
    """A row for each class, in order."""
    taken_for: dict[int, tuple[int, int]] = {}
    for label, said, n in found.confused().tolist():  # of equals the first
        if label != said and n > taken_for.get(label, (0, 0))[1]:
            taken_for[label] = said, n
    rows = []
    for k, each in enumerate(found.per_class()):
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


def confused_pairs(found: Scores, most: int) -> tuple[Pair, ...]:
    """The pairs (true class, another that was said) with the most pictures; of equals the larger share of the class."""
    entries = found.confused()
    labels, said, counts = entries[entries[:, 0] != entries[:, 1]].T
    sizes = np.bincount(found.labels)
    order = np.lexsort((said, labels, -counts / sizes[labels], -counts))[:most]
    wrong = found.mistakes()
    pairs = []
    for i, j in zip(labels[order].tolist(), said[order].tolist(), strict=True):
        rows = wrong[(found.labels[wrong] == i) & (found.predicted[wrong] == j)]
        pairs.append(Pair(i, j, len(rows), int(sizes[i]), rows))
    return tuple(pairs)


def label_doubts(found: Scores) -> NDArray[np.int64]:
    """int64: the rows whose label is in doubt, the net's most confident first: see DOUBT."""
    wrong = found.mistakes()
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


WORST = 20  # classes with a bar
PAIRS = 6  # confused pairs with pictures, two side by side
ACROSS = 8  # pictures side by side
LETTERS = 16  # of a class's name
WIDTH = 9.0  # inches
HEAD, BAR, TILE = 0.45, 0.21, 1.55  # inches of a section's title, of a bar, of a picture with its text


@dataclass(frozen=True)
class _Sheet:
    """What the sections are drawn from."""

    found: Classes
    split: Split
    train: Split
    preprocessing: Preprocessing
    names: tuple[str, ...]

    def tested(self, row: int) -> Seen:
        return from_store(self.split, [int(self.found.scores.ids[row])], self.preprocessing)[0]

    def name(self, label: int, letters: int = LETTERS) -> str:
        return plot.shortened(self.names[label], letters)


Section = tuple[str, float, Callable[[SubFigure, _Sheet], None]]  # its title, its height in inches, who draws it


def draw_classes(
    found: Classes, split: Split, train: Split, preprocessing: Preprocessing, names: Sequence[str]
) -> Figure:
    """One sheet of what `classes` found; pictures come from the split that was tested and the training split.

    names: of the K classes.
    """
    sheet = _Sheet(found, split, train, preprocessing, tuple(names))
    sections = list(_sections(found, len(names)))
    heights = [height + HEAD for _, height, _ in sections]
    with plot.figure(WIDTH, sum(heights)) as made:
        parts = made.subfigures(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (title, _, drawn) in zip(parts, sections, strict=True):
            part.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
            drawn(part, sheet)
    return made


def _sections(found: Classes, n_classes: int) -> list[Section]:
    scores, n_tested = found.scores, sum(row.n > 0 for row in found.rows)
    which = f"the {WORST} worst of {n_tested:,} classes" if n_tested > WORST else "class by class"
    title = f"Top-1 error, {which}, with 95 % intervals ({scores.split}, n {scores.n:,}: {scores.top1:.1%})"
    sections: list[Section] = [(title, BAR * min(n_tested, WORST) + 0.5, _errors)]
    if found.pairs:
        rows = -(-len(found.pairs[:PAIRS]) // 2)
        sections.append(("Most often confused, and how probable the wrong class was", rows * TILE, _pairs))
    if len(found.mistakes):
        title = "Most confident mistakes: the label above, the net's class below"
        title += f"; framed: a label to look at ({len(found.doubts):,} such)" if len(found.doubts) else ""
        sections.append((title, TILE * -(-len(found.mistakes[: 2 * ACROSS]) // ACROSS), _mistakes))
    if found.twins:
        title = (
            f"In {scores.split} and in train: the same bytes, or thumbnails that correlate ({len(found.twins):,} pairs)"
        )
        sections.append((title, TILE, _twins))
    return sections


def _errors(part: SubFigure, sheet: _Sheet) -> None:
    rows = [(row.top1, row.interval, row) for row in sheet.found.rows if row.top1 is not None and row.interval]
    rows = sorted(rows, key=lambda each: (-each[0], each[2].k))[:WORST]
    axes = part.subplots()
    places = range(len(rows))
    axes.barh(places, [error for error, _, _ in rows], color=plot.WRONG, alpha=0.6, height=0.75)
    for place, (_, (low, high), row) in zip(places, rows, strict=True):
        axes.plot([low, high], [place, place], color=plot.INK, linewidth=1)
        text = f"n {row.n:,}"
        if row.taken_for is not None:
            text += f"; {row.taken_for[1]:,} taken for {sheet.name(row.taken_for[0])}"
        axes.text(high + 0.01, place, text, va="center", fontsize=7, color=plot.FAINT)
    axes.set_yticks(places, [sheet.name(row.k) for _, _, row in rows])
    axes.set(xlim=(0, 1.3), ylim=(len(rows) - 0.4, -0.6), xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_xticklabels(["0%", "25%", "50%", "75%", "100%"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_bounds(0, 1)


def _pairs(part: SubFigure, sheet: _Sheet) -> None:
    pairs = sheet.found.pairs[:PAIRS]
    half = ACROSS // 2
    axes = _axes(part, -(-len(pairs) // 2))
    for i, pair in enumerate(pairs):
        places = axes[i * half : (i + 1) * half]
        text = f"{sheet.name(pair.label)} taken for {sheet.name(pair.said)}: {pair.count:,} of {pair.n:,}"
        places[0].set_title(" ")  # the room for what reaches over the other pictures
        places[0].text(0, 1.06, text, transform=places[0].transAxes, in_layout=False)
        for place, row in zip(places, pair.rows[:half].tolist(), strict=False):
            place.set_axis_on()
            plot.show_picture(place, sheet.tested(row).pixels)
            place.set_xlabel(percent(sheet.found.scores.probabilities[row, 0]), labelpad=2, color=plot.FAINT)


def _mistakes(part: SubFigure, sheet: _Sheet) -> None:
    found, rows = sheet.found.scores, sheet.found.mistakes[: 2 * ACROSS].tolist()
    doubts = set(sheet.found.doubts.tolist())
    if doubts:
        part.supxlabel(f"In doubt: {DOUBT}", x=0.01, ha="left", fontsize=7, color=plot.FAINT)
    for axes, row in zip(_axes(part, -(-len(rows) // ACROSS)), rows, strict=False):
        label, said = int(found.labels[row]), int(found.predicted[row])
        plot.show_picture(axes, sheet.tested(row).pixels, sheet.name(label))
        axes.set_axis_on()
        text = f"{sheet.name(said)}\n{percent(found.probabilities[row, 0])}"
        axes.set_xlabel(text, labelpad=2, color=plot.WRONG, fontsize=7)
        if row in doubts:
            for spine in axes.spines.values():
                spine.set(visible=True, color=plot.COLOURS[1], linewidth=2.5)


def _twins(part: SubFigure, sheet: _Sheet) -> None:
    places = _axes(part)
    for i, twin in enumerate((sheet.found.twins or ())[: ACROSS // 2]):
        pictures = zip((sheet.split, sheet.train), (twin.first, twin.second), strict=True)
        for axes, (split, position) in zip(places[2 * i : 2 * i + 2], pictures, strict=True):
            picture = from_store(split, [position], sheet.preprocessing)[0]
            axes.set_axis_on()
            plot.show_picture(axes, picture.pixels, sheet.name(int(split.labels[position])))
            alike = "same bytes" if twin.exact else f"{'mirror ' if twin.mirrored else ''}{twin.likeness:.3f}"
            axes.set_xlabel(f"{split.name}: {alike}", labelpad=2, color=plot.FAINT)


def _axes(part: SubFigure, rows: int = 1) -> list[Axes]:
    """Rows of places for pictures, all empty."""
    found = list(part.subplots(rows, ACROSS, squeeze=False).flat)
    for axes in found:
        axes.set_axis_off()
    return found
