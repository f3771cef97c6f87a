"""What do a net's kernels look like, and how selective for colour are they? Column by column; AlexNet's figure 3.

A kernel w is drawn as 1/2 + w / (2 max |w|): its own largest weight is black or white (in colour: a channel at 0 or
1), 0 is mid-grey. Every kernel is scaled by this one rule, so that weak and strong ones compare in form, not in size.

How much of a kernel is colour: with g(x, y) the mean over R, G and B of w(x, y, c),

    colour = sum over x, y, c of (w - g)^2  /  sum of w^2,

the share of its energy that is not grey. 0: equal in R, G and B; 1: blind to light and dark; 2/3: what independent
random weights have. A column's is that of all its kernels' energies together, so that kernels that learned nothing
hardly count. The measure is ours: the paper states by eye that one GPU's kernels are "color-agnostic" (section 6.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from convnet.errors import UsageError, unknown
from convnet.nets.convolutions import Columns
from convnet.nets.layers import Net
from convnet.nets.lenet5 import SparseConv2d
from convnet.visualize import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

A_ROW = 16  # kernels: figure 3 has six rows of sixteen
WIDTH = 7.0  # inches


@dataclass(frozen=True, eq=False)
class Kernels:
    """A layer's kernels by column; how much of them is colour is known of a layer that reads the picture."""

    layer: str
    columns: tuple[NDArray[np.float32], ...]  # (O, I, h, w): O maps that read I maps or the picture's channels
    colour: tuple[NDArray[np.float64], ...]  # (O,), of each kernel, 0..1; NaN for a kernel of zeros
    column_colour: tuple[float, ...]  # of each column, 0..1


def filters(net: Net, layer: str | None = None) -> Kernels:
    """The kernels of a layer; None is the first, which reads the picture.

    Raises: UsageError for a layer that has no kernels that can be shown, with the names of those that have.
    """
    layers = dict(_convolutions(net))
    first = next(iter(layers))
    name = first if layer is None else layer
    if name not in layers:
        raise UsageError(unknown("layer with kernels", name, layers))
    columns = tuple(column.detach().float().cpu().numpy() for column in layers[name])
    if len(columns) == 1 and net.columns > 1:
        columns = tuple(np.split(columns[0], net.columns))
    if name != first:
        return Kernels(name, columns, (), ())
    return Kernels(name, columns, tuple(map(colour_of, columns)), tuple(map(column_colour_of, columns)))


def colour_of(kernels: NDArray[np.floating]) -> NDArray[np.float64]:
    """float64 (O,), 0..1: the share of each kernel's energy that is not grey, for kernels (O, C, h, w) of C channels.

    NaN for a kernel of zeros.
    """
    w = kernels.astype(np.float64)
    coloured, whole = (np.square(part).sum((1, 2, 3)) for part in (w - w.mean(1, keepdims=True), w))
    share: NDArray[np.float64] = np.divide(coloured, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return share


def column_colour_of(kernels: NDArray[np.floating]) -> float:
    """The share of all kernels' energy together that is not grey, 0..1: that of one kernel made of all."""
    return float(colour_of(np.concatenate(list(kernels), 1)[None])[0])


def pictures_of(kernels: NDArray[np.floating]) -> NDArray[np.float32]:
    """float32 (O, h, w, C), 0..1: each kernel of (O, C, h, w) scaled by its own largest weight, 0 at 1/2."""
    largest = np.abs(kernels).max((1, 2, 3), keepdims=True)
    pictures: NDArray[np.float32] = np.full(kernels.shape, 0.5, np.float32)
    pictures += np.divide(kernels, 2 * largest, out=np.zeros_like(pictures), where=largest > 0)
    return pictures.transpose(0, 2, 3, 1)


def draw_filters(shown: Kernels, most: int = 16, slices: int = 24) -> "Figure":
    """Figure 3: all kernels that read the picture. Of another layer `most` kernels a column, of each `slices` inputs.

    The bar under a kernel that reads colours is as long as its share of colour; of the others those of the largest norm
    are shown. Paper: AlexNet figure 3.
    """
    whole = shown.colour and shown.columns[0].shape[1] in (1, 3)
    return _draw_whole(shown) if whole else _draw_slices(shown, most, slices)


def draw_sheet(axes: "Axes", kernels: NDArray[np.float32], colour: NDArray[np.float64] | None, columns: int) -> None:
    """Kernels (O, 1 or 3, h, w) side by side, under each a bar as long as its share of colour."""
    height, width = kernels.shape[2:]
    gap = _gap(height, colour is not None)
    plot.show_picture(axes, plot.tiles(list(pictures_of(kernels)), columns, gap=gap))
    if colour is None:
        return
    axes.set_ylim(-(-len(kernels) // columns) * (height + gap) - 0.5, -0.5)  # room for the last row's bars
    for i, share in enumerate(np.nan_to_num(colour)):
        y = (i // columns + 1) * (height + gap) - gap / 2 - 0.5
        left = i % columns * (width + gap) - 0.5
        axes.plot([left, left + width], [y, y], color="#dddddd", linewidth=1.2, solid_capstyle="butt")
        axes.plot([left, left + width * share], [y, y], color=plot.RIGHT, linewidth=1.2, solid_capstyle="butt")


def name_of(shown: Kernels, column: int) -> str:
    """A heading: the column, if there are several, and how much of it is colour."""
    parts = [f"column {column}"] if len(shown.columns) > 1 else []
    if shown.column_colour and shown.columns[column].shape[1] == 3:
        parts.append(f"{shown.column_colour[column]:.0%} of the energy is colour")
    return ": ".join(parts)


def _draw_whole(shown: Kernels) -> "Figure":
    n, channels, height, width = shown.columns[0].shape
    columns, coloured, total = -(-n // -(-n // A_ROW)), channels == 3, len(shown.columns)
    gap = _gap(height, coloured)
    inches = max(WIDTH * columns / A_ROW, 4.0)
    rows = -(-n // columns) * (height + gap) + gap
    with plot.figure(inches, total * (inches * rows / (columns * (width + gap)) + 0.25) + 0.4) as fig:
        for i, axes in enumerate(fig.subplots(total, 1, squeeze=False)[:, 0]):
            draw_sheet(axes, shown.columns[i], shown.colour[i] if coloured else None, columns)
            axes.set_title(name_of(shown, i), loc="left")
        text = f"{shown.layer}: {n * total} kernels of {channels} x {height} x {width}, "
        text += "each scaled by its largest weight; 0 is mid-grey."
        text += " Bar: share of the kernel's energy that is not grey (random weights: 2/3)." if coloured else ""
        plot.note(fig, text)
    return fig


def _draw_slices(shown: Kernels, most: int, slices: int) -> "Figure":
    total, (n, inputs, height, width) = len(shown.columns), shown.columns[0].shape
    most, slices = min(most, n), min(slices, inputs)
    columns = 1 if total == 1 else 2
    n_rows = -(-total // columns)
    tile = min(WIDTH / columns / (slices + 3), 0.25)  # inches
    inches = max(columns * tile * (slices + 3), 4.0)
    with plot.figure(inches, n_rows * (tile * most * height / width + 0.3) + 0.5) as fig:
        for i, axes in enumerate(fig.subplots(n_rows, columns, squeeze=False).flat):
            if i >= total:
                axes.set_axis_off()
                continue
            chosen, sheet = _strongest(shown.columns[i], most, slices)
            plot.show_picture(axes, sheet)
            step = height + _gap(height, False)
            axes.set_yticks([row * step + (height - 1) / 2 for row in range(most)], [str(o) for o in chosen])
            axes.tick_params("y", length=0, labelsize=5)
            axes.set_title(name_of(shown, i), loc="left")
        rows = f"the {most} of the largest norm" if most < n else "all, by their norm"
        rows += " of each column" if most < n and total > 1 else ""
        inside = f"its {slices} inputs of the largest norm" if slices < inputs else "its inputs, by their norm"
        text = f"{shown.layer}: {n * total} kernels of {inputs} x {height} x {width}. Rows: {rows}, with the map's "
        plot.note(fig, f"{text}number; in a row {inside}. Each kernel is scaled by its largest weight; 0 is mid-grey.")
    return fig


def _gap(height: int, barred: bool) -> int:
    """Pixels between kernels: room for a bar, or a line; 1x1 kernels are a matrix."""
    return max(1, round(height / 5)) if barred else min(1, height - 1)


def _strongest(kernels: NDArray[np.float32], most: int, slices: int) -> tuple[list[int], NDArray[np.float32]]:
    """The maps of the kernels with the largest norms, and their strongest slices as one picture, a kernel a row."""
    energies = np.square(kernels.astype(np.float64)).sum((2, 3))
    chosen = np.argsort(-energies.sum(1), kind="stable")[:most]
    tiles: list[NDArray[np.float32]] = []
    for o in chosen:
        inputs = np.argsort(-energies[o], kind="stable")[:slices]
        tiles += list(pictures_of(kernels[[o]])[0].transpose(2, 0, 1)[inputs])
    return chosen.tolist(), plot.tiles(tiles, slices, gap=_gap(kernels.shape[2], False))


def _convolutions(net: Net) -> Iterator[tuple[str, list[Tensor]]]:
    """(name, the kernels of its columns) of each layer that shares its kernels over the picture, in the net's order."""
    inside: tuple[str, ...] = ()
    for name, module in net.named_modules():
        if isinstance(module, Columns):
            inside = (f"{name}.",)
            yield name, [conv.weight for conv in module if isinstance(conv, nn.Conv2d)]
        elif isinstance(module, SparseConv2d):
            yield name, [module.dense()]
        elif isinstance(module, nn.Conv2d) and not name.startswith(inside):
            yield name.removesuffix(".conv"), [module.weight]
