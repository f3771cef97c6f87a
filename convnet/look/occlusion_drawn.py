"""How do the maps of an occluded picture look? As figure 6 of Zeiler and Fergus: a row for each picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from convnet.look import draw
from convnet.look.occlusion import Occlusion

NAMED = 5  # classes that get a colour; the others share one
LETTERS = 20  # of a class's name
LEAST_RANGE = 0.1  # of a scale of probabilities, so that changes of no weight are not shown as large ones


def draw_occlusion(found: Sequence[Occlusion], classes: Sequence[str]) -> Figure:
    """A row for each picture: the picture with the square where it costs most, and the three maps of its places.

    A map's value stands at the square's centre; the frame is the picture's. The line in a scale is the value without
    the square. Paper: figure 6.
    """
    n = len(found)
    with draw.figure(7.2, 2.55 * n + 0.4) as made:
        cells = made.subplots(2 * n, 4, height_ratios=[1, 0.36] * n, squeeze=False)
        for i, each in enumerate(found):
            _draw_row(made, cells[2 * i], cells[2 * i + 1], each, classes)
        box, grey = found[0].box, found[0].grey
        text = f"Square: {box} x {box} pixels of grey {grey}; left: where the class loses most. "
        draw.note(made, f"{text}A value stands at the square's centre. Line in a scale: without the square.")
    return made


def _draw_row(made: Figure, row: NDArray[Any], below: NDArray[Any], each: Occlusion, classes: Sequence[str]) -> None:
    """The four pictures; `below` are the places for their scales."""
    for axes in below:
        axes.set_axis_off()
    label = draw.shortened(classes[each.label], LETTERS)
    place = np.unravel_index(each.probability.argmin(), each.probability.shape)
    truth = "" if each.picture.label == each.label else " (predicted)" if each.label == each.whole_best else " (chosen)"
    draw.show_picture(row[0], each.covered(int(place[0]), int(place[1])), f"{label}{truth}")
    activity = _mesh(row[1], each, each.activity, f"sum of {each.layer}, map {each.map}", cmap=draw.AMOUNT)
    low, high = float(each.probability.min()), float(each.probability.max())
    if high - low < LEAST_RANGE:
        low, high = max(0.0, high - LEAST_RANGE), max(high, LEAST_RANGE)
    probability = _mesh(row[2], each, each.probability, "its probability", cmap=draw.AMOUNT, vmin=low, vmax=high)
    for axes, mesh, whole in (
        (below[1], activity, each.whole_activity),
        (below[2], probability, each.whole_probability),
    ):
        scale = made.colorbar(mesh, cax=axes.inset_axes((0.05, 0.78, 0.9, 0.16)), orientation="horizontal")
        scale.ax.set_xlim(min(scale.ax.get_xlim()[0], whole), max(scale.ax.get_xlim()[1], whole))
        scale.ax.axvline(whole, ymin=-0.3, ymax=1.3, color=draw.RIGHT, linewidth=2, clip_on=False)
        scale.ax.xaxis.set_major_locator(MaxNLocator(3))
    _draw_classes(row[3], below[3], each, classes)


def _draw_classes(axes: Axes, below: Axes, each: Occlusion, classes: Sequence[str]) -> None:
    """The class without the square has the first colour, the others follow by the places that they hold."""
    counts = np.bincount(each.best.ravel(), minlength=len(classes))
    order = [k for k in np.argsort(-counts, kind="stable") if counts[k] and k != each.whole_best]
    order = [each.whole_best, *map(int, order)]
    named = order if len(order) <= NAMED + 1 else order[:NAMED]
    at = np.full(len(classes), len(named))
    at[named] = np.arange(len(named))
    colours = [*draw.COLOURS[: len(named)], draw.FAINT]
    how = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": len(named) + 0.5}
    _mesh(axes, each, at[each.best], "most probable class", **how)
    shares = [f"{draw.shortened(classes[k], LETTERS)}: {_share(counts[k], each.best.size)}" for k in named]
    if len(named) < len(order):
        rest = each.best.size - int(counts[named].sum())
        shares.append(f"{len(order) - len(named)} others: {_share(rest, each.best.size)}")
    patches = [Patch(color=colour) for colour in colours[: len(shares)]]
    names = [draw.in_legend(name) for name in shares]
    below.legend(patches, names, loc="upper left", bbox_to_anchor=(-0.05, 1.1), fontsize=6, handlelength=1,
                 handleheight=1, labelspacing=0.25, borderaxespad=0.0)  # fmt: skip


def _share(n: int, total: int) -> str:
    """Rounded, but all only if it is all, and nothing only if it is nothing."""
    if n in (0, total):
        return f"{n / total:.0%}"
    return "<1%" if n / total < 0.01 else f"{min(n / total, 0.99):.0%}"


def _mesh(axes: Axes, each: Occlusion, values: NDArray[Any], title: str, **how: Any) -> QuadMesh:
    """Values (P, Q) as rectangles around the square's centres, in the picture's frame."""
    side = len(each.picture.pixels)
    edges = [_edges(firsts + each.box / 2) for firsts in (each.lefts, each.tops)]
    draw.show_picture(axes, _faded(each.picture.pixels), title, extent=(0, side, side, 0))
    return axes.pcolormesh(*edges, values, rasterized=True, **how)


def _edges(centres: NDArray[Any]) -> NDArray[Any]:
    """Halfway between the centres; outside as far as inside."""
    if len(centres) == 1:
        return np.array([centres[0] - 2, centres[0] + 2])
    between = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])


def _faded(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    grey = pixels.mean(2, dtype=np.float32) / 255
    return np.repeat(0.55 + 0.45 * grey[..., None], 3, 2)
