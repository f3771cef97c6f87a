"""What does a layer make of a picture? The activations of all its maps, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from convnet.errors import UsageError
from convnet.evaluation.inference import NotFinite
from convnet.evaluation.seen import Seen
from convnet.evaluation.trained_net import TrainedNet
from convnet.visualize import plot
from convnet.visualize.deconv import check_maps

WIDTH = 7.0  # inches
STRONG = 0.998  # the part of the activations that the colours tell apart
SIDE = 1.3  # inches: the picture
MOST_TICKS = 24  # rows whose first map's number is there


@dataclass(frozen=True, eq=False)
class Maps:
    """A picture's activations in a stage: float32 (M, H, W), or (D, 1, 1) where the stage has features (N, D).

    maps: int64 (M,), their numbers. columns: equal parts of the stage's maps that are a net's columns; 1 for a part.
    """

    stage: str
    picture: Seen
    maps: NDArray[np.int64]
    activations: NDArray[np.float32]
    columns: int


def maps(net: TrainedNet, picture: Seen, stage: str, chosen: Sequence[int] | None = None) -> Maps:
    """The activations of the maps `chosen` of a stage, or of all.

    stage: of the net, or of a column of it, as "conv2.0". Raises: UsageError for a stage or map that the net doesn't
    have; NotFinite.
    """
    activation = net.trace(net.images([picture]), [stage])[stage][0]
    values = np.asarray(activation.float().cpu().numpy())
    values = values[:, None, None] if values.ndim == 1 else values
    if not np.isfinite(values).all():
        raise NotFinite(f"{stage} of {picture.name!r} is not finite; the net's weights may be damaged")
    check_maps(stage, len(values), chosen or ())
    numbers = np.arange(len(values)) if chosen is None else np.array(chosen, np.int64)
    whole = chosen is None and "." not in stage and stage != net.net.last
    return Maps(stage, picture, numbers, np.ascontiguousarray(values[numbers]), net.net.columns if whole else 1)


def draw_maps(found: Maps) -> Figure:
    """The picture, and each map as a tile, all on one scale; a net's columns one below the other.

    Where no activation is negative the scale begins at 0; else it's blue below and orange above 0.
    """
    if len(found.maps) == 0:
        raise UsageError(f"{found.stage}: name at least one map")
    parts = np.split(found.activations, found.columns)
    numbers = np.split(found.maps, found.columns)
    a_row = _a_row(parts[0].shape)
    sheets = [_sheet(part, a_row) for part in parts]
    high, wide = sheets[0].shape
    each = min((WIDTH - SIDE - 0.6) * high / wide, 8.0)
    with plot.figure(WIDTH, max((each + 0.25) * len(parts) + 0.6, 2.0)) as made:
        grid = made.add_gridspec(len(parts), 2, width_ratios=[SIDE, WIDTH - SIDE])
        picture = made.add_subplot(grid[:, 0])
        plot.show_picture(picture, found.picture.pixels)
        picture.set_anchor("N")
        shown = []
        for i, sheet in enumerate(sheets):
            axes = made.add_subplot(grid[i, 1])
            plot.show_picture(axes, sheet, _title(found, i), **_scale(found.activations))
            axes.title.set(horizontalalignment="left", x=0.0)
            _number(axes, numbers[i], parts[i].shape, a_row)
            shown.append(axes)
        bar = made.colorbar(
            shown[-1].images[0],
            ax=shown,
            shrink=0.5,
            aspect=40,
            location="bottom",
            pad=0.02,
            extend=_extend(found.activations, shown[-1].images[0].get_clim()),
        )
        bar.set_label("activation")
        bar.outline.set_visible(False)  # type: ignore[operator]
    return made


def _scale(activations: NDArray[np.float32]) -> dict[str, Any]:
    """How values become colours; the strongest few are not told apart, so that weak maps can be seen."""
    strong = float(np.quantile(np.abs(activations), STRONG)) or float(np.abs(activations).max()) or 1.0
    if activations.min() < 0:
        return {"cmap": plot.SIGNED, "vmin": -strong, "vmax": strong}
    return {"cmap": plot.AMOUNT, "vmin": 0.0, "vmax": strong}


def _extend(activations: NDArray[np.float32], limits: tuple[float, float]) -> str:
    """Which ends of the colours stand for all that lies beyond."""
    below, above = activations.min() < limits[0], activations.max() > limits[1]
    return "both" if below and above else "min" if below else "max" if above else "neither"


def _number(axes: Axes, numbers: NDArray[np.int64], shape: tuple[int, ...], a_row: int) -> None:
    """Maps in their order: each row's first number; chosen ones: each its own."""
    n, height, width = shape
    gap = _gap(height, width)
    if np.array_equal(numbers, np.arange(numbers[0], numbers[0] + n)):
        rows = range(0, n, a_row)
        every = max(1, len(rows) // MOST_TICKS)
        axes.set_yticks([i // a_row * (height + gap) + (height - 1) / 2 for i in rows[::every]])
        axes.set_yticklabels([str(numbers[i]) for i in rows[::every]], fontsize=6, color=plot.FAINT)
        axes.tick_params(length=0)
        return
    for i, number in enumerate(numbers):
        top, left = i // a_row * (height + gap), i % a_row * (width + gap)
        label = axes.text(left, top, str(number), fontsize=6, va="top", color=plot.PAPER)
        label.set_path_effects([withStroke(linewidth=1.5, foreground=plot.INK)])


def _title(found: Maps, column: int) -> str:
    n, height, width = found.activations.shape
    size = f" of {height} x {width}" if height * width > 1 else ""
    what = f"{n // found.columns:,} {'maps' if size else 'units'}{size}"
    return f"{found.stage}, column {column}: {what}" if found.columns > 1 else f"{found.stage}: {what}"


def _a_row(shape: tuple[int, ...]) -> int:
    """Tiles in a row, so that the sheet is about three times as wide as high, and its rows are equally long."""
    n, height, width = shape
    n_rows = ceil(n / max(1, ceil(sqrt(3 * n * height / width))))
    return ceil(n / n_rows)


def _sheet(activations: NDArray[np.float32], a_row: int) -> NDArray[np.float32]:
    """float32 (H, W): the maps in rows of `a_row`, NaN between them."""
    n, height, width = activations.shape
    gap = _gap(height, width)
    sheet = np.full((ceil(n / a_row) * (height + gap) - gap, a_row * (width + gap) - gap), np.nan, np.float32)
    for i, tile in enumerate(activations):
        top, left = i // a_row * (height + gap), i % a_row * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def _gap(height: int, width: int) -> int:
    """Pixels between maps; units of features stand close."""
    return max(1, round(0.06 * height)) if height * width > 1 else 0
