"""Which classes are taken for which? The confusion matrix as a picture, and whole as a table beside it."""

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convnet.evaluation.metrics import MATRIX, Scores
from convnet.training.metrics_log import Value, inert
from convnet.visualize import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 40  # classes: up to so many have their names at the picture, and numbers in the cells
LETTERS = 20  # of a name
CELL = 0.32  # inches of a cell with a number in it
DARK = 0.25  # shares up to here are dark in cividis, by the root of the share
CELLS = 1000  # across a matrix of more than MATRIX classes: drawing twice as many takes 1.4 GB
TICKS = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)
SIDE = 7.0  # inches of a matrix without names; it grows so that each cell has at least two dots


def per_cell(n_classes: int) -> int:
    """How many consecutive classes share a row and a column of the matrix: 1 up to MATRIX classes."""
    return 1 if n_classes <= MATRIX else -(-n_classes // CELLS)


def shares(scores: Scores) -> NDArray[np.float64]:
    """float64 (m, m), 0 to 1: of the pictures of class i, the share taken for class j. 0 where class i has none.

    Of more than MATRIX classes each i and j are `per_cell` classes: all pairs of 21,841 would have 3.8 GB.
    """
    by, n_classes = per_cell(len(scores.classes)), len(scores.classes)
    m = -(-n_classes // by)
    counts = np.bincount(scores.labels // by * m + scores.predicted // by, minlength=m * m).reshape(m, m)
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1))


def confusion_csv(scores: Scores, names: Sequence[str]) -> bytes:
    """The whole matrix of counts: a row each true class, a column each class that was said. No cell is a formula.

    Of more than MATRIX classes a row each entry that is not 0.
    """
    if len(names) > MATRIX:
        entries = ([names[i], names[j], count] for i, j, count in scores.confused().tolist())
        return csv_table(chain([["true class", "taken for", "pictures"]], entries))
    rows = zip(names, scores.confusion.tolist(), strict=True)
    return csv_table([["true class", *names], *([name, *counts] for name, counts in rows)])


def csv_table(rows: Iterable[Iterable[Value]]) -> bytes:
    """Rows as CSV in UTF-8, in which no cell is a formula."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([inert(cell) for cell in row] for row in rows)
    return text.getvalue().encode(errors="replace")


def draw_confusion(scores: Scores, names: Sequence[str]) -> "Figure":
    """The matrix: true classes down, said classes across, coloured by `shares`; numbers in the cells are counts.

    A cell of a large matrix stands for several classes, which is said below it.
    """
    from matplotlib.colors import PowerNorm

    n_classes, share = len(names), shares(scores)
    side = CELL * n_classes + 2.2 if n_classes <= NAMED else max(SIDE, 2 * len(share) / plot.DPI + 1)
    with plot.figure(side + 0.9, side) as fig:
        axes = fig.add_subplot()
        image = axes.imshow(share, cmap=plot.AMOUNT, norm=PowerNorm(0.5, 0, 1))
        axes.set(xlabel="class that the net holds most probable", ylabel="true class")
        axes.xaxis.set_label_position("top")
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        axes.spines[:].set_visible(False)
        if n_classes <= NAMED:
            labels = [plot.shortened(name, LETTERS) for name in names]
            axes.set_xticks(range(n_classes), labels, rotation=45, ha="left", rotation_mode="anchor")
            axes.set_yticks(range(n_classes), labels)
            for edge in range(1, n_classes):
                axes.axhline(edge - 0.5, color=plot.PAPER, linewidth=1)
                axes.axvline(edge - 0.5, color=plot.PAPER, linewidth=1)
            for i, j in np.argwhere(scores.confusion):
                ink = plot.PAPER if share[i, j] < DARK else plot.INK
                axes.text(j, i, f"{scores.confusion[i, j]:,}", ha="center", va="center", fontsize=7, color=ink)
        bar = fig.colorbar(image, ax=axes, shrink=0.6, aspect=30, ticks=TICKS)
        bar.ax.set_yticklabels([f"{tick:.0%}" for tick in TICKS])
        bar.set_label("share of the true class")
        bar.ax.spines["outline"].set_visible(False)
        text = f"{scores.split}, n {scores.n:,}, top-1 error {scores.top1:.1%}"
        text += "; numbers: pictures" if n_classes <= NAMED else ""
        if (by := per_cell(n_classes)) > 1:
            text += f"; a cell is {by} x {by} of {n_classes:,} classes that follow each other"
        plot.note(fig, f"{text}.")
    return fig
