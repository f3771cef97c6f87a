"""What did each column of a net learn? Its first kernels' colour, orientation and frequency. Paper: AlexNet 6.1.

Colour is that of filters.py. Orientation and frequency are read from a kernel's power spectrum P over the frequencies f
= (fx, fy), cycles per pixel, with the polar angle a: the sum over the channels of |FFT|^2, each channel less its mean,
on a grid of 64 x 64, for 0 < |f| <= 1/2, so that no direction has more frequencies than another.

    orientation   half the angle of the sum of P exp(2ia), turned by a quarter: the direction of the kernel's bars
    selectivity   |sum of P exp(2ia)| / sum of P: 1 minus the circular variance. 1 for a grating, 0 for a round blob
    frequency     sum of |f| P / sum of P
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convnet.errors import UsageError
from convnet.nets.layers import Net
from convnet.visualize import plot
from convnet.visualize.filters import Kernels, colour_of, draw_sheet, filters, name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = 64  # frequencies on a side
WIDTH = 7.0  # inches


@dataclass(frozen=True, eq=False)
class Tuning:
    """What the kernels of a column answer to; float64 (O,) each, NaN for a kernel of zeros or of one value."""

    colour: NDArray[np.float64]  # the share of its energy that is not grey, 0..1
    orientation: NDArray[np.float64]  # of its bars, radians in 0..pi: 0 is horizontal, counter-clockwise
    selectivity: NDArray[np.float64]  # for orientation, 0..1
    frequency: NDArray[np.float64]  # cycles per pixel, 0..0.5


@dataclass(frozen=True, eq=False)
class Specialisation:
    """The first layer's kernels by column, and what they answer to."""

    kernels: Kernels
    columns: tuple[Tuning, ...]


def specialisation(net: Net) -> Specialisation:
    """What each column's first kernels answer to. Raises: UsageError for a net of one column."""
    if net.columns < 2:
        text = "this net has one column: there is nothing to compare"
        raise UsageError(f"{text}; `convnet show filters` shows its kernels")
    kernels = filters(net)
    return Specialisation(kernels, tuple(map(tuning, kernels.columns)))


def tuning(kernels: NDArray[np.floating]) -> Tuning:
    """What kernels (O, C, h, w) answer to."""
    w = kernels.astype(np.float64)
    spectrum = np.fft.fft2(w - w.mean((2, 3), keepdims=True), (GRID, GRID))
    f = np.fft.fftfreq(GRID)
    fx, fy = np.meshgrid(f, -f)  # rows run down, y upwards
    radius, angle = np.hypot(fx, fy), np.arctan2(fy, fx)
    inside = (radius > 0) & (radius <= 0.5)
    power = np.square(np.abs(spectrum)).sum(1)[:, inside]
    total = power.sum(1)
    total = np.where(total > 1e-12 * np.square(w).sum((1, 2, 3)), total, np.nan)  # rounding errors are no pattern
    share = power / total[:, None]
    vector = (share * np.exp(2j * angle[inside])).sum(1)
    orientation = (np.angle(vector) / 2 + np.pi / 2) % np.pi
    return Tuning(colour_of(kernels), orientation, np.abs(vector), (share * radius[inside]).sum(1))


def draw_specialisation(shown: Specialisation) -> "Figure":
    """A row for each column: its kernels, how much of each is colour, how oriented it is, and which way it lies."""
    kernels, n = shown.kernels, len(shown.columns)
    with plot.figure(WIDTH, 1.75 * n + 0.75) as fig:
        cells = fig.subplots(n, 4, width_ratios=(1.6, 1, 1, 1.6), squeeze=False)
        for i, (row, column) in enumerate(zip(cells, shown.columns, strict=True)):
            colour = plot.COLOURS[i % len(plot.COLOURS)]
            draw_sheet(row[0], kernels.columns[i], None, -(-len(kernels.columns[i]) // 6))
            row[0].set_title(f"column {i}", loc="left", color=colour, weight="bold")
            _draw_shares(row[1], column.colour, colour)
            _draw_shares(row[2], column.selectivity, colour)
            row[1].set_ylabel("kernels")
            _draw_directions(row[3], column, colour)
        titles = ("colour", "selectivity for orientation", "direction and frequency")
        for axes, title in zip(cells[0, 1:], titles, strict=True):
            axes.set_title(title)
        text, shares = f"{kernels.layer}. ", "; ".join(name_of(kernels, i) for i in range(n))
        if kernels.columns[0].shape[1] == 3:
            text += f"{shares[0].upper()}{shares[1:]}. "
        text += "Middle: a line at the median. Right: each kernel by the direction of its bars and by its frequency in "
        text += "cycles per pixel, the distance from the centre; the larger the dot, the more selective."
        plot.note(fig, text)
    return fig


def _draw_shares(axes: "Axes", values: NDArray[np.float64], colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    known = values[np.isfinite(values)]
    counts, _, _ = axes.hist(known, bins=np.linspace(0, 1, 11).tolist(), color=colour, rwidth=0.9)
    if len(known):
        median = float(np.median(known))
        axes.axvline(median, color=plot.INK, linewidth=1)
        shift, side = (-0.03, "right") if median > 0.6 else (0.03, "left")
        place = axes.get_xaxis_transform()
        axes.text(median + shift, 1, f"{median:.2f}", transform=place, ha=side, va="top")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.15 * max(1.0, float(np.max(counts))))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _draw_directions(axes: "Axes", column: Tuning, colour: str) -> None:
    """A half-disc, as the direction of a bar has no sign."""
    known = np.isfinite(column.frequency)
    sizes = 2 + 34 * column.selectivity[known]
    x, y = (part(column.orientation[known]) * column.frequency[known] for part in (np.cos, np.sin))
    around = np.linspace(0, np.pi, 91)
    for radius in (0.125, 0.25, 0.375, 0.5):
        axes.plot(radius * np.cos(around), radius * np.sin(around), color="#dddddd", linewidth=0.6)
    for degrees in (0, 45, 90, 135, 180):
        dx, dy = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        axes.plot([0, 0.5 * dx], [0, 0.5 * dy], color="#dddddd", linewidth=0.6)
        side = "center" if degrees == 90 else "left" if degrees < 90 else "right"
        axes.text(0.53 * dx, 0.53 * dy, f"{degrees}°", ha=side, va="bottom", fontsize=7)
    for radius in (0.25, 0.5):
        axes.text(radius, -0.02, f"{radius:g}", ha="center", va="top", fontsize=7)
    axes.scatter(x, y, sizes, color=colour, alpha=0.6, linewidth=0, zorder=3)
    axes.set(xlim=(-0.72, 0.72), ylim=(-0.1, 0.62), aspect="equal", anchor="N")
    axes.set_axis_off()
