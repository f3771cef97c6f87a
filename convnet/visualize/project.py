"""What does a map look for? The pictures that excite it, and what of them did: projections beside their patches.

Zeiler and Fergus 2013, figure 2 (a trained net), figure 4 (over training): the deconvnet's projection of a unit, cut to
the unit's receptive field, and the same pixels of the picture.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from convnet.checkpoint import KEPT
from convnet.data.store import Pixels, Split
from convnet.device import Device
from convnet.errors import UsageError
from convnet.evaluation.seen import Seen, from_store
from convnet.evaluation.trained_net import TrainedNet
from convnet.progress import SILENT, Progress
from convnet.visualize import plot
from convnet.visualize.deconv import Form, Unit, deconv, peaks
from convnet.visualize.receptive_fields import Field, Fields, fields_of
from convnet.visualize.search import Ints
from convnet.visualize.stages import check_maps
from convnet.visualize.top_activations import TopActivations, top_activations

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

T = TypeVar("T", bound=np.generic)
BATCH = 4  # pictures at a time; all their activations are held for the way back


@dataclass(frozen=True, eq=False)
class Feature:
    """A map of a stage, and n pictures that excite it, each by one unit."""

    stage: str
    map: int
    units: tuple[Unit, ...]
    names: tuple[str, ...]
    fields: tuple[Field, ...]  # the exact bounds of what the units see of their pictures; a larger one is cut to it
    activations: NDArray[np.float32]  # (n,)
    patches: Pixels  # (n, h, w, 3): the pictures within the fields, white where these reach over an edge
    projections: NDArray[np.float32]  # (n, h, w, C), signed, the deconvnet's; NaN over an edge


def project(
    net: TrainedNet, top: TopActivations, which: Sequence[int] | Ints, split: Split, form: Form = "deconv"
) -> list[Feature]:
    """The strongest pictures of some maps of a stage, projected; `which` are positions in `top.maps`.

    Paper: Zeiler and Fergus, figure 2.
    """
    jobs = [(i, unit) for m in which for i, unit in zip(top.ids[m].tolist(), top.units(m), strict=True)]
    ids = sorted({i for i, _ in jobs})
    pictures = dict(zip(ids, from_store(split, ids, net.preprocessing), strict=True))
    parts = _project(net, top.stage, [(pictures[i], unit) for i, unit in jobs], form)
    return [_feature(top.stage, [next(parts) for _ in top.ids[m]]) for m in which]


def project_picture(
    net: TrainedNet,
    picture: Seen,
    stage: str,
    maps: Sequence[int] | None,
    form: Form = "deconv",
    most: int = 8,
) -> list[Feature]:
    """The strongest unit of each map for one picture, projected; None is the `most` maps it excites most.

    Raises: UsageError for a stage or map that the net doesn't have.
    """
    activation = net.trace(net.images([picture]), [stage])[stage]
    check_maps(stage, activation.shape[1], maps or ())
    if maps is None:
        strength = activation[0].reshape(activation.shape[1], -1).amax(1)
        maps = strength.argsort(descending=True, stable=True)[:most].tolist()
    units = [peaks(activation, [channel])[0] for channel in maps]
    return [_feature(stage, [part]) for part in _project(net, stage, [(picture, unit) for unit in units], form)]


def epoch_checkpoints(run: Path) -> dict[int, Path]:
    """{epoch: checkpoint} that a run kept by its recipe's `keep_epochs`, in order. Raises: UsageError for none."""
    if not run.is_dir():
        raise UsageError(f"{run}: no such folder; name a run, as convnet train --out makes it")
    pattern = re.compile(re.escape(KEPT).replace(r"\{:04d\}", r"(\d{4,})"))
    matches = {path: pattern.fullmatch(path.name) for path in run.iterdir()}
    files = {int(match[1]): path for path, match in matches.items() if match}
    if not files:
        raise UsageError(f"{run} keeps no epochs; train with --set keep_epochs=[1,2,5,10], say, to look at them later")
    return dict(sorted(files.items()))


def over_training(
    checkpoints: Mapping[int, Path],
    stages: Mapping[str, Sequence[int] | None],
    split: Split,
    device: Device,
    *,
    most: int = 6,
    form: Form = "deconv",
    ids: Ints | None = None,
    progress: Progress = SILENT,
) -> dict[str, list[tuple[Feature, ...]]]:
    """How maps came to look for what they look for: {stage: for each map the strongest picture after each epoch}.

    checkpoints: {epoch: file}. stages: {stage: numbers of maps}; None is the `most` maps that are excited most in the
    end. The store is read once an epoch. Paper: Zeiler and Fergus, figure 4. Differs: the paper samples maps at random.
    """
    maps: dict[str, list[int]] = {}
    features: dict[str, list[list[Feature]]] = {stage: [] for stage in stages}
    n = split.n if ids is None else len(ids)
    for later, epoch in enumerate(sorted(checkpoints, reverse=True), 1):  # the last chooses the maps
        progress.note(f"epoch {epoch}")
        net = TrainedNet.load(checkpoints[epoch], device)
        after = (len(checkpoints) - later) * n
        best = top_activations(net, split, maps or stages, n=1, ids=ids, after=after, progress=progress)
        for stage, top in best.items():
            which = np.arange(len(top.maps))
            if later == 1 and stages[stage] is None:
                which = top.strongest_maps(most)
            maps[stage] = top.maps[which].tolist()
            features[stage].insert(0, project(net, top, which, split, form))
    return {stage: list(zip(*epochs, strict=True)) for stage, epochs in features.items()}


Part = tuple[Unit, str, Field, np.float32, Pixels, NDArray[np.float32]]  # what a feature has of one picture


def _project(net: TrainedNet, stage: str, jobs: Sequence[tuple[Seen, Unit]], form: Form) -> Iterator[Part]:
    """The jobs' parts, computed some at a time."""
    crop = net.preprocessing.crop
    fields = fields_of(net.net, stage, crop)
    for first in range(0, len(jobs), BATCH):
        part = jobs[first : first + BATCH]
        projections = deconv(net.net, net.images([seen for seen, _ in part]), stage, [unit for _, unit in part], form)
        for (seen, unit), activation, pixels in zip(part, projections.activations, projections.pixels, strict=True):
            field, frame = _bounds(fields, unit, crop)
            patch, projection = _cut(seen.pixels, field, frame, 255), _cut(pixels, field, frame, np.nan)
            yield unit, seen.name, field, activation, patch, projection


def _feature(stage: str, parts: Sequence[Part]) -> Feature:
    """The parts of one map."""
    units, names, fields, activations, patches, projections = zip(*parts, strict=True)
    return Feature(
        stage, units[0].map, units, names, fields, np.array(activations), np.stack(patches), np.stack(projections)
    )


def _bounds(fields: Fields, unit: Unit, side: int) -> tuple[Field, Field]:
    """What the unit sees of the picture, and the frame to show it in, which has one size for all units of a stage."""
    row, column = unit.row or 0, unit.column or 0
    top, left, height, width = fields.whole(row, column)
    top, height = (top, height) if height < side else (0, side)
    left, width = (left, width) if width < side else (0, side)
    return fields.of(row, column), Field(top, left, height, width)


def _cut(pixels: NDArray[T], field: Field, frame: Field, outside: float) -> NDArray[T]:
    """The field's pixels (H, W, C) in their place within the frame."""
    cut = np.full((frame.height, frame.width, pixels.shape[2]), outside, pixels.dtype)
    top, left = field.top - frame.top, field.left - frame.left
    inside = pixels[field.top : field.top + field.height, field.left : field.left + field.width]
    cut[top : top + field.height, left : left + field.width] = inside
    return cut


WIDTH = 7.0  # inches
OUTSIDE = 0.93  # grey: what lies past the edge of a picture
LINE = 0.8  # grey: between tiles, so that white ones have an end
GREY = 0.5  # a projection's zero
STRONG = 0.997  # this part of a projection's values is not clipped: a few pixels would leave the others grey
GAP = 0.03  # between tiles, of a tile's side


def draw_features(features: Sequence[Feature], note: str = "") -> "Figure":
    """For each map the projections on the left, and on the right what the units saw; a block a stage.

    Every projection is scaled by itself: grey is 0, its largest value black or white.
    """
    blocks = [list(block) for _, block in groupby(features, key=lambda feature: feature.stage)]
    a_row = 2 if len(features[0].units) > 1 else 4
    n_rows = [ceil(len(block) / a_row) for block in blocks]
    height = WIDTH / a_row / 2 + 0.22
    with plot.figure(WIDTH, sum(n_rows) * height + 0.3 * len(blocks) + 0.35) as fig:
        parts = _parts(fig, [n * height + 0.3 for n in n_rows], [block[0] for block in blocks])
        for part, block, n in zip(parts, blocks, n_rows, strict=True):
            grid = part.subplots(n, a_row, squeeze=False)
            for axes in grid.flat[len(block) :]:
                axes.set_axis_off()
            for axes, feature in zip(grid.flat, block, strict=False):
                _draw_feature(axes, feature)
        plot.note(fig, note)
    return fig


def draw_evolution(
    evolutions: Mapping[str, Sequence[Sequence[Feature]]], epochs: Sequence[int], note: str = ""
) -> "Figure":
    """A column an epoch, two rows a map: the projection of the picture that then excited it most, and the patch."""
    side = min(1.0, (WIDTH - 0.6) / len(epochs))
    heights = [len(rows) * (2 * side + 0.08) + 0.45 for rows in evolutions.values()]
    with plot.figure(side * len(epochs) + 0.6, sum(heights) + 0.3) as fig:
        parts = _parts(fig, heights, [rows[0][0] for rows in evolutions.values()])
        for part, rows in zip(parts, evolutions.values(), strict=True):
            grid = part.subplots(len(rows), len(epochs), squeeze=False)
            for m, row in enumerate(rows):
                for axes, epoch, feature in zip(grid[m], epochs, row, strict=True):
                    pair = [shown_projections(feature)[0], shown_patches(feature)[0]]
                    _show(axes, _sheet(pair, 1), f"epoch {epoch}" if m == 0 else "")
                    axes.set_xlabel(_number(feature.activations[0]), labelpad=1, fontsize=6)
                grid[m, 0].set_ylabel(f"map {row[0].map}")
        plot.note(fig, note)
    return fig


def _parts(fig: "Figure", heights: Sequence[float], firsts: Sequence[Feature]) -> "list[SubFigure]":
    """A part of the figure for each stage, with a heading; the stages' first features."""
    parts = list(fig.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    for part, feature in zip(parts, firsts, strict=True):
        height, width = feature.patches.shape[1:3]
        text = f"{feature.stage}: units see up to {height} x {width} pixels"
        part.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=9)
    return parts


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


def _draw_feature(axes: "Axes", feature: Feature) -> None:
    columns = ceil(sqrt(len(feature.units)))
    left, right = (_sheet(tiles, columns) for tiles in (shown_projections(feature), shown_patches(feature)))
    gap = np.ones((left.shape[0], left.shape[1] // 16, 3), np.float32)
    values = [float(value) for value in feature.activations]
    reach = _number(values[0]) if len(values) == 1 else f"{_number(values[0])} to {_number(values[-1])}"
    _show(axes, np.concatenate([left, gap, right], 1), f"map {feature.map}: {reach}")


def _sheet(tiles: Sequence[NDArray[np.float32]], columns: int) -> NDArray[np.float32]:
    """Tiles side by side; missing ones are paper. Small ones are enlarged, so that the gaps stay narrow."""
    times = ceil(64 / min(tiles[0].shape[:2]))
    enlarged = [tile.repeat(times, 0).repeat(times, 1) for tile in tiles]
    return plot.tiles(enlarged, columns, gap=max(1, round(GAP * max(enlarged[0].shape[:2]))), ground=LINE)


def _show(axes: "Axes", sheet: NDArray[np.float32], title: str) -> None:
    axes.imshow(sheet, interpolation="antialiased")
    plot.bare(axes, title)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
