"""How do projections look? Beside their patches, map by map, as Zeiler and Fergus's figures 2 and 4."""

from collections.abc import Sequence
from itertools import groupby
from math import ceil, sqrt
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from convnet.look import draw
from convnet.look.project import Evolution, Feature

WIDTH = 7.0  # inches
OUTSIDE = 0.93  # grey: what lies past the edge of a picture
LINE = 0.8  # grey: between tiles, so that white ones have an end
GREY = 0.5  # a projection's zero
STRONG = 0.997  # this part of a projection's values is not clipped: a few pixels would leave the others grey
GAP = 0.03  # between tiles, of a tile's side


def draw_features(features: Sequence[Feature], note: str = "", a_row: int | None = None) -> Figure:
    """For each map the projections on the left, and on the right what the units saw; a block a stage.

    Every projection is scaled by itself: grey is 0, its largest value black or white. a_row: maps in a row.
    """
    blocks = [(stage, list(group)) for stage, group in groupby(features, key=lambda feature: feature.stage)]
    a_row = a_row or (2 if len(features[0].units) > 1 else 4)
    n_rows = [ceil(len(block) / a_row) for _, block in blocks]
    height = WIDTH / a_row / 2 + 0.22
    with draw.figure(WIDTH, sum(n_rows) * height + 0.3 * len(blocks) + 0.35) as made:
        parts = made.subfigures(len(blocks), 1, height_ratios=[n * height + 0.3 for n in n_rows], squeeze=False)
        for part, (stage, block), n in zip(parts[:, 0], blocks, n_rows, strict=True):
            _heading(part, f"{stage}: {_size(block[0])}")
            grid = part.subplots(n, a_row, squeeze=False)
            for axes in grid.flat[len(block) :]:
                axes.set_axis_off()
            for axes, feature in zip(grid.flat, block, strict=False):
                _draw_feature(axes, feature)
        if note:
            draw.note(made, note)
    return made


def draw_evolution(evolutions: Sequence[Evolution], note: str = "") -> Figure:
    """A column an epoch, two rows a map: the projection of the picture that then excited it most, and the patch."""
    n_epochs = len(evolutions[0].epochs)
    side = min(1.0, (WIDTH - 0.6) / n_epochs)
    heights = [len(each.maps) * (2 * side + 0.08) + 0.45 for each in evolutions]
    with draw.figure(side * n_epochs + 0.6, sum(heights) + 0.3) as made:
        parts = made.subfigures(len(evolutions), 1, height_ratios=heights, squeeze=False)
        for part, each in zip(parts[:, 0], evolutions, strict=True):
            _heading(part, f"{each.stage}: {_size(each.features[0][0])}")
            grid = part.subplots(len(each.maps), n_epochs, squeeze=False)
            for m, row in enumerate(each.features):
                for e, feature in enumerate(row):
                    axes = grid[m, e]
                    pair = [shown_projections(feature)[0], shown_patches(feature)[0]]
                    _show(axes, _sheet(pair, 1), f"epoch {each.epochs[e]}" if m == 0 else "")
                    axes.set_xlabel(_number(feature.activations[0]), labelpad=1, fontsize=6)
                grid[m, 0].set_ylabel(f"map {each.maps[m]}")
        if note:
            draw.note(made, note)
    return made


def shown_projections(feature: Feature) -> list[NDArray[np.float32]]:
    """Projections as pictures (h, w, 3) in 0..1: each scaled by its own largest value, 0 is mid-grey."""
    shown = []
    for projection in feature.projections:
        strong = float(np.nanquantile(np.abs(projection), STRONG)) or float(np.nanmax(np.abs(projection))) or 1.0
        scaled = (GREY + GREY * projection / strong).clip(0, 1)
        shown.append(np.broadcast_to(np.where(np.isnan(scaled), OUTSIDE, scaled), (*scaled.shape[:2], 3)))
    return shown


def shown_patches(feature: Feature) -> list[NDArray[np.float32]]:
    """Patches as pictures (h, w, 3) in 0..1; what lies past the edge of the picture is light grey."""
    outside = np.isnan(feature.projections[..., :1])
    return list(np.where(outside, OUTSIDE, feature.patches / 255).astype(np.float32))


def _draw_feature(axes: Axes, feature: Feature) -> None:
    columns = ceil(sqrt(len(feature.units)))
    left, right = (_sheet(tiles, columns) for tiles in (shown_projections(feature), shown_patches(feature)))
    gap = np.ones((left.shape[0], left.shape[1] // 16, 3), np.float32)
    values = [float(value) for value in feature.activations]
    reach = _number(values[0]) if len(values) == 1 else f"{_number(values[0])} to {_number(values[-1])}"
    _show(axes, np.concatenate([left, gap, right], 1), f"map {feature.map}: {reach}")


def _sheet(tiles: Sequence[NDArray[Any]], columns: int) -> NDArray[np.float32]:
    """Tiles side by side; missing ones are paper. Small ones are enlarged, so that the gaps stay narrow."""
    times = ceil(64 / min(tiles[0].shape[:2]))
    enlarged = [tile.repeat(times, 0).repeat(times, 1) for tile in tiles]
    return draw.tiles(enlarged, columns, gap=max(1, round(GAP * max(enlarged[0].shape[:2]))), ground=LINE)


def _show(axes: Axes, sheet: NDArray[np.float32], title: str) -> None:
    draw.show_picture(axes, sheet, title, interpolation="antialiased")


def _heading(part: SubFigure, text: str) -> None:
    part.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=9)


def _size(feature: Feature) -> str:
    height, width = feature.patches.shape[1:3]
    return f"units see up to {height} x {width} pixels"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
