"""What does a net hold most probable in a picture? AlexNet's figure 4, left: five bars, the right one in red."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from convnet.errors import UsageError
from convnet.evaluation.inference import probabilities
from convnet.evaluation.metrics import TOP, Scores, most_probable
from convnet.evaluation.seen import Seen
from convnet.evaluation.trained_net import TrainedNet
from convnet.io import rng
from convnet.nets import evaluating
from convnet.visualize import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH = 32  # pictures at a time
COLUMNS = 4  # panels side by side
LETTERS = 24  # of a class's name
Which = Literal["any", "errors", "confident errors"]


@dataclass(frozen=True)
class Panel:
    """A picture and its m <= 5 most probable classes, best first: int64 (m,), and float64 (m,), 0 to 1."""

    picture: Seen
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def right(self) -> int | None:
        """The place of the right class among them, 0 is the best; None where it isn't there or isn't known."""
        places = np.flatnonzero(self.classes == self.picture.label)
        return int(places[0]) if len(places) else None


def panels(net: TrainedNet, pictures: Sequence[Seen]) -> list[Panel]:
    """What a net says of pictures, one look at each; of equally probable classes the lower is first. Paper: fig. 4."""
    shown = []
    for first in range(0, len(pictures), BATCH):
        part = pictures[first : first + BATCH]
        with torch.no_grad(), evaluating(net.net):
            rows = probabilities(net.net, net.images(part), net.device)
        for picture, row, best in zip(part, rows, most_probable(rows, TOP), strict=True):
            shown.append(Panel(picture, best, row[best]))
    return shown


def choose(scores: Scores, n: int, which: Which = "any", seed: int = 0) -> NDArray[np.int64]:
    """int64 (<= n,): positions in the split: any, or errors, both sampled by the seed; or the most confident errors.

    Raises: UsageError when there are none.
    """
    if n < 1:
        raise UsageError(f"--n {n}: at least 1 picture")
    rows = np.arange(len(scores.ids)) if which == "any" else scores.mistakes()
    if not len(rows):
        raise UsageError(f"all {len(scores.ids):,} pictures are right: there is no error to show")
    if which != "confident errors":
        rows = np.sort(rows)[rng.permutation(len(rows), seed, rng.stream("panels"))]
    return scores.ids[rows[:n]]


def draw_panels(shown: Sequence[Panel], classes: Sequence[str]) -> "Figure":
    """Pictures with their true class, and under each a bar for each of its most probable classes, the right one in red.

    classes: the K names.
    """
    columns = min(COLUMNS, len(shown))
    n_rows = -(-len(shown) // columns)
    with plot.figure(1.75 * columns, 3.1 * n_rows + 0.3) as fig:
        grid = fig.add_gridspec(3 * n_rows, columns, height_ratios=[1.6, 1.0, 0.05] * n_rows)
        for i, panel in enumerate(shown):
            row, column = divmod(i, columns)
            above, below = (fig.add_subplot(grid[3 * row + k, column]) for k in (0, 1))
            label = panel.picture.label
            plot.show_picture(above, panel.picture.pixels)
            name = panel.picture.name.rpartition("/")[2] if label is None else classes[label]
            below.set_title(plot.shortened(name, LETTERS), fontweight="bold", pad=4)
            _draw_bars(below, panel, classes)
        known = any(panel.picture.label is not None for panel in shown)
        text = f"Under each picture its {'true class' if known else 'name'}; bars: the classes that the net holds most"
        plot.note(fig, f"{text} probable{', the right one red' if known else ''}.")
    return fig


def _draw_bars(axes: "Axes", panel: Panel, classes: Sequence[str]) -> None:
    """Bars from the left; the class's name lies over its bar, the probability stands at the right."""
    places = range(len(panel.classes))
    colours = [plot.RIGHT if place == panel.right else plot.WRONG for place in places]
    axes.barh(places, panel.probabilities, color=colours, alpha=0.75, height=0.82)
    for place, label, p in zip(places, panel.classes, panel.probabilities, strict=True):
        weight = "bold" if place == panel.right else "normal"
        name = plot.shortened(classes[label], LETTERS)
        axes.text(0.02, place, name, va="center", fontsize=7, fontweight=weight)
        axes.text(1.0, place, percent(p), va="center", ha="right", fontsize=7, fontweight=weight)
    axes.set(xlim=(0, 1), ylim=(TOP - 0.4, -0.6))
    plot.bare(axes)


def percent(p: float) -> str:
    """A probability in few letters, which says 0 % and 100 % of nothing else.

    >>> percent(0.004), percent(0.25), percent(0.999), percent(1.0)
    ('<1%', '25%', '>99%', '100%')
    """
    if 0 < p < 0.005 or 0.995 <= p < 1:
        return "<1%" if p < 0.5 else ">99%"
    return f"{p:.0%}"
