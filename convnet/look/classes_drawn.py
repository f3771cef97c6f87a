"""How do the findings of `classes` look? Errors with intervals, and the pictures of each finding, on one sheet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from convnet.look import draw
from convnet.look.classes import DOUBT, Classes
from convnet.look.panels import percent
from convnet.look.seen import Seen, from_store
from convnet.preprocess import Preprocessing
from convnet.store import Split

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
        return from_store(self.split, [int(self.found.found.ids[row])], self.preprocessing)[0]

    def name(self, label: int, letters: int = LETTERS) -> str:
        return draw.shortened(self.names[label], letters)


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
    with draw.figure(WIDTH, sum(heights)) as made:
        parts = made.subfigures(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (title, _, drawn) in zip(parts, sections, strict=True):
            part.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
            drawn(part, sheet)
    return made


def _sections(found: Classes, n_classes: int) -> list[Section]:
    scores, n_tested = found.found.scores, sum(row.n > 0 for row in found.rows)
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
    axes.barh(places, [error for error, _, _ in rows], color=draw.WRONG, alpha=0.6, height=0.75)
    for place, (_, (low, high), row) in zip(places, rows, strict=True):
        axes.plot([low, high], [place, place], color=draw.INK, linewidth=1)
        text = f"n {row.n:,}"
        if row.taken_for is not None:
            text += f"; {row.taken_for[1]:,} taken for {sheet.name(row.taken_for[0])}"
        axes.text(high + 0.01, place, text, va="center", fontsize=7, color=draw.FAINT)
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
            draw.show_picture(place, sheet.tested(row).pixels)
            place.set_xlabel(percent(sheet.found.found.probabilities[row, 0]), labelpad=2, color=draw.FAINT)


def _mistakes(part: SubFigure, sheet: _Sheet) -> None:
    found, rows = sheet.found.found, sheet.found.mistakes[: 2 * ACROSS].tolist()
    doubts = set(sheet.found.doubts.tolist())
    if doubts:
        part.supxlabel(f"In doubt: {DOUBT}", x=0.01, ha="left", fontsize=7, color=draw.FAINT)
    for axes, row in zip(_axes(part, -(-len(rows) // ACROSS)), rows, strict=False):
        label, said = int(found.scores.labels[row]), int(found.classes[row, 0])
        draw.show_picture(axes, sheet.tested(row).pixels, sheet.name(label))
        axes.set_axis_on()
        text = f"{sheet.name(said)}\n{percent(found.probabilities[row, 0])}"
        axes.set_xlabel(text, labelpad=2, color=draw.WRONG, fontsize=7)
        if row in doubts:
            for spine in axes.spines.values():
                spine.set(visible=True, color=draw.COLOURS[1], linewidth=2.5)


def _twins(part: SubFigure, sheet: _Sheet) -> None:
    places = _axes(part)
    for i, twin in enumerate((sheet.found.twins or ())[: ACROSS // 2]):
        pictures = zip((sheet.split, sheet.train), (twin.first, twin.second), strict=True)
        for axes, (split, position) in zip(places[2 * i : 2 * i + 2], pictures, strict=True):
            picture = from_store(split, [position], sheet.preprocessing)[0]
            axes.set_axis_on()
            draw.show_picture(axes, picture.pixels, sheet.name(int(split.labels[position])))
            alike = "same bytes" if twin.exact else f"{'mirror ' if twin.mirrored else ''}{twin.likeness:.3f}"
            axes.set_xlabel(f"{split.name}: {alike}", labelpad=2, color=draw.FAINT)


def _axes(part: SubFigure, rows: int = 1) -> list[Axes]:
    """Rows of places for pictures, all empty."""
    found = list(part.subplots(rows, ACROSS, squeeze=False).flat)
    for axes in found:
        axes.set_axis_off()
    return found
