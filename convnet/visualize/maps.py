"""What does a layer make of a picture? The activations of all its maps, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convnet.errors import UsageError
from convnet.evaluation.seen import Seen
from convnet.evaluation.trained_net import TrainedNet
from convnet.visualize import plot
from convnet.visualize.stages import check_finite, check_maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches
STRONG = 0.998  # the part of the activations that the colours tell apart
SIDE = 1.3  # inches: the picture
MOST_TICKS = 24  # rows whose first map's number is there


@dataclass(frozen=True, eq=False)
class Maps:
    """A picture's activations in a stage."""

    stage: str
    picture: Seen
    maps: NDArray[np.int64]  # (M,), their numbers
    activations: NDArray[np.float32]  # (M, H, W); (D, 1, 1) where the stage has features (N, D)
    columns: int  # equal parts of the stage's maps that are a net's columns; 1 for a part


def maps(net: TrainedNet, picture: Seen, stage: str, chosen: Sequence[int] | None = None) -> Maps:
    """The activations of the maps `chosen` of a stage, or of all.

    stage: of the net, or of a column of it, as "conv2.0". Raises: UsageError for a stage or map that the net doesn't
    have; NotFinite.
    """
    values = net.trace(net.images([picture]), [stage])[stage].float().cpu().numpy()
    check_finite(stage, values, [picture.name])
    n_maps, *sides = values.shape[1:]
    check_maps(stage, n_maps, chosen or ())
    numbers = np.arange(n_maps) if chosen is None else np.array(chosen, np.int64)
    whole = chosen is None and "." not in stage and stage != net.net.last
    return Maps(
        stage, picture, numbers, values.reshape(n_maps, *(sides or (1, 1)))[numbers], net.net.columns if whole else 1
    )


def draw_maps(shown: Maps) -> "Figure":
    """The picture, and each map as a tile, all on one scale; a net's columns one below the other.

    Where no activation is negative the scale begins at 0; else it's blue below and orange above 0.
    """
    if len(shown.maps) == 0:
        raise UsageError(f"{shown.stage}: name at least one map")
    parts = np.split(shown.activations, shown.columns)
    numbers = np.split(shown.maps, shown.columns)
    n, height, width = parts[0].shape
    n_rows = ceil(n / max(1, ceil(sqrt(3 * n * height / width))))  # about three times as wide as high
    a_row = ceil(n / n_rows)
    gap = max(1, round(0.06 * height)) if height * width > 1 else 0  # units of features stand close
    sheets = [plot.tiles(list(part), a_row, gap, np.nan)[..., 0] for part in parts]
    high, wide = sheets[0].shape
    cells = np.arange(n)
    tops, lefts = cells // a_row * (height + gap), cells % a_row * (width + gap)
    inches = min((WIDTH - SIDE - 0.6) * high / wide, 8.0)
    with plot.figure(WIDTH, max((inches + 0.25) * len(parts) + 0.6, 2.0)) as fig:
        grid = fig.add_gridspec(len(parts), 2, width_ratios=[SIDE, WIDTH - SIDE])
        picture = fig.add_subplot(grid[:, 0])
        plot.show_picture(picture, shown.picture.pixels)
        picture.set_anchor("N")
        low, most = _limits(shown.activations)
        shown_axes = []
        for i, sheet in enumerate(sheets):
            axes = fig.add_subplot(grid[i, 1])
            image = axes.imshow(sheet, cmap=plot.signed() if low < 0 else plot.AMOUNT, vmin=low, vmax=most)
            plot.bare(axes, _title(shown, i))
            axes.title.set(horizontalalignment="left", x=0.0)
            _number(axes, numbers[i], tops, lefts, height)
            shown_axes.append(axes)
        below, above = shown.activations.min() < low, shown.activations.max() > most
        extend = "both" if below and above else "min" if below else "max" if above else "neither"
        bar = fig.colorbar(image, ax=shown_axes, shrink=0.5, aspect=40, location="bottom", pad=0.02, extend=extend)
        bar.set_label("activation")
        bar.ax.spines["outline"].set_visible(False)
    return fig


def _limits(activations: NDArray[np.float32]) -> tuple[float, float]:
    """The ends of the colours; the strongest few are not told apart, so that weak maps can be seen."""
    strong = float(np.quantile(np.abs(activations), STRONG)) or float(np.abs(activations).max()) or 1.0
    return (-strong if activations.min() < 0 else 0.0), strong


def _number(
    axes: "Axes", numbers: NDArray[np.int64], tops: NDArray[np.int64], lefts: NDArray[np.int64], height: int
) -> None:
    """Maps in their order: each row's first number; chosen ones: each its own."""
    from matplotlib.patheffects import withStroke

    if np.array_equal(numbers, np.arange(numbers[0], numbers[0] + len(numbers))):
        rows = np.flatnonzero(lefts == 0)
        rows = rows[:: max(1, len(rows) // MOST_TICKS)]
        axes.set_yticks((tops[rows] + (height - 1) / 2).tolist())
        axes.set_yticklabels([str(number) for number in numbers[rows]], fontsize=6, color=plot.FAINT)
        axes.tick_params(length=0)
        return
    for number, top, left in zip(numbers.tolist(), tops.tolist(), lefts.tolist(), strict=True):
        label = axes.text(left, top, str(number), fontsize=6, va="top", color=plot.PAPER)
        label.set_path_effects([withStroke(linewidth=1.5, foreground=plot.INK)])


def _title(shown: Maps, column: int) -> str:
    n, height, width = shown.activations.shape
    size = f" of {height} x {width}" if height * width > 1 else ""
    what = f"{n // shown.columns:,} {'maps' if size else 'units'}{size}"
    return f"{shown.stage}, column {column}: {what}" if shown.columns > 1 else f"{shown.stage}: {what}"
