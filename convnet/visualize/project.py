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
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from convnet.checkpoint import KEPT
from convnet.data.store import Pixels, Split
from convnet.device import Device
from convnet.errors import UsageError
from convnet.evaluation.seen import Seen, from_store
from convnet.evaluation.trained_net import TrainedNet
from convnet.io.signals import Stop
from convnet.nets.layers import Net
from convnet.progress import SILENT, Progress
from convnet.visualize import plot
from convnet.visualize.deconv import Form, Unit, check_maps, deconv, peaks
from convnet.visualize.receptive_fields import Field, Fields, fields_of, receptive_fields
from convnet.visualize.top_activations import Ints, Strongest, top_activations

BATCH = 4  # pictures at a time; all their activations are held for the way back


@dataclass(frozen=True, eq=False)
class Feature:
    """A map of a stage, and n pictures that excite it, each by one unit.

    units, names, fields: n each; `fields` are the exact bounds of what the units see of their pictures.
    activations: float32 (n,). patches: uint8 (n, h, w, 3), the pictures within the fields, white where these reach over
    an edge. projections: float32 (n, h, w, C), signed, the deconvnet's; NaN over an edge. A field that is larger than
    the picture is cut to it.
    """

    stage: str
    map: int
    units: tuple[Unit, ...]
    names: tuple[str, ...]
    fields: tuple[Field, ...]
    activations: NDArray[np.float32]
    patches: Pixels
    projections: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Evolution:
    """M maps after E epochs: `features[m][e]` has the strongest picture that map m then had."""

    stage: str
    epochs: tuple[int, ...]
    maps: tuple[int, ...]
    features: tuple[tuple[Feature, ...], ...]


def project(
    net: TrainedNet, found: Strongest, which: Sequence[int] | Ints, split: Split, form: Form = "deconv"
) -> list[Feature]:
    """The strongest pictures of some maps of a stage, projected; `which` are positions in `found.maps`.

    Paper: Zeiler and Fergus, figure 2.
    """
    jobs = [(i, unit) for m in which for i, unit in zip(found.ids[m].tolist(), found.units(m), strict=True)]
    ids = sorted({i for i, _ in jobs})
    pictures = dict(zip(ids, from_store(split, ids, net.preprocessing), strict=True))
    pairs = [(pictures[i], unit) for i, unit in jobs]
    everything = _project(net, found.stage, pairs, form)
    return [_joined([next(everything) for _ in found.ids[m]]) for m in which]


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
    return list(_project(net, stage, [(picture, unit) for unit in units], form))


def deepest(net: Net) -> str:
    """The last stage with more than one unit a map that isn't a pooling, a normalisation or a ReLU.

    AlexNet's is conv5, GoogLeNet's inception_5b, LeNet-5's c3.
    """
    kinds = ("pool", "avgpool", "norm", "within", "relu", "tanh", "bn", "data", "s")
    found = receptive_fields(net)
    maps = [stage for stage, each in found.items() if len(each.rows.first) > 1]
    return next((stage for stage in reversed(maps) if stage.rstrip("0123456789_") not in kinds), next(iter(found)))


def kept_epochs(run: Path) -> dict[int, Path]:
    """{epoch: checkpoint} that a run kept by its recipe's `keep_epochs`, in order. Raises: UsageError for none."""
    if not run.is_dir():
        raise UsageError(f"{run}: no such folder; name a run, as convnet train --out makes it")
    pattern = re.compile(re.escape(KEPT).replace(r"\{:04d\}", r"(\d{4,})"))
    found = {int(match[1]): path for path in run.iterdir() if (match := pattern.fullmatch(path.name))}
    if not found:
        raise UsageError(f"{run} keeps no epochs; train with --set keep_epochs=[1,2,5,10], say, to look at them later")
    return dict(sorted(found.items()))


def over_training(
    kept: Mapping[int, Path],
    wanted: Mapping[str, Sequence[int] | None],
    split: Split,
    device: Device,
    *,
    most: int = 6,
    form: Form = "deconv",
    ids: Ints | None = None,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> list[Evolution]:
    """How maps came to look for what they look for: for each kept epoch the strongest picture then, projected.

    kept: {epoch: checkpoint}. wanted: {stage: numbers of maps}; None is the `most` maps that are excited most in the
    end. The store is read once an epoch. Paper: Zeiler and Fergus, figure 4. Differs: the paper draws maps at random.
    """
    chosen: dict[str, list[int]] = {}
    at: dict[str, list[list[Feature]]] = {stage: [] for stage in wanted}
    n = split.n if ids is None else len(ids)
    for later, epoch in enumerate(sorted(kept, reverse=True), 1):  # the last chooses the maps
        progress.note(f"epoch {epoch}")
        net = TrainedNet.load(kept[epoch], device)
        found = top_activations(
            net,
            split,
            chosen or wanted,
            n=1,
            ids=ids,
            after=(len(kept) - later) * n,
            progress=progress,
            stop=stop,
        )
        for stage, each in found.items():
            places = np.arange(len(each.maps))
            if stage not in chosen:
                places = each.most_excited(most) if wanted[stage] is None else places
                chosen[stage] = each.maps[places].tolist()
            at[stage].insert(0, project(net, each, places, split, form))
    return [
        Evolution(stage, tuple(sorted(kept)), tuple(chosen[stage]), tuple(zip(*features, strict=True)))
        for stage, features in at.items()
    ]


def _project(net: TrainedNet, stage: str, jobs: Sequence[tuple[Seen, Unit]], form: Form) -> Iterator[Feature]:
    """A feature of one picture for each job, some at a time."""
    crop = net.preprocessing.crop
    fields = fields_of(net.net, stage, crop)
    for first in range(0, len(jobs), BATCH):
        part = jobs[first : first + BATCH]
        images = net.images([picture for picture, _ in part])
        found = deconv(net.net, images, stage, [unit for _, unit in part], form)
        for n, (picture, unit) in enumerate(part):
            field, frame = _bounds(fields, unit, crop)
            yield Feature(
                stage,
                unit.map,
                (unit,),
                (picture.name,),
                (field,),
                found.activations[n : n + 1],
                _cut(picture.pixels, field, frame, 255)[None],
                _cut(found.pixels[n], field, frame, np.nan)[None],
            )


def _joined(parts: Sequence[Feature]) -> Feature:
    """Features of one map as one feature."""
    return Feature(
        parts[0].stage,
        parts[0].map,
        tuple(part.units[0] for part in parts),
        tuple(part.names[0] for part in parts),
        tuple(part.fields[0] for part in parts),
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("activations", "patches", "projections")
        ),
    )


def _bounds(fields: Fields, unit: Unit, side: int) -> tuple[Field, Field]:
    """What the unit sees of the picture, and the frame to show it in, which has one size for all units of a stage."""
    row, column = unit.row or 0, unit.column or 0
    top, left, height, width = fields.whole(row, column)
    top, height = (top, height) if height < side else (0, side)
    left, width = (left, width) if width < side else (0, side)
    return fields.of(row, column), Field(top, left, height, width)


def _cut(pixels: NDArray[Any], field: Field, frame: Field, outside: float) -> NDArray[Any]:
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


def draw_features(features: Sequence[Feature], note: str = "", a_row: int | None = None) -> Figure:
    """For each map the projections on the left, and on the right what the units saw; a block a stage.

    Every projection is scaled by itself: grey is 0, its largest value black or white. a_row: maps in a row.
    """
    blocks = [(stage, list(group)) for stage, group in groupby(features, key=lambda feature: feature.stage)]
    a_row = a_row or (2 if len(features[0].units) > 1 else 4)
    n_rows = [ceil(len(block) / a_row) for _, block in blocks]
    height = WIDTH / a_row / 2 + 0.22
    with plot.figure(WIDTH, sum(n_rows) * height + 0.3 * len(blocks) + 0.35) as made:
        parts = made.subfigures(len(blocks), 1, height_ratios=[n * height + 0.3 for n in n_rows], squeeze=False)
        for part, (stage, block), n in zip(parts[:, 0], blocks, n_rows, strict=True):
            _heading(part, f"{stage}: {_size(block[0])}")
            grid = part.subplots(n, a_row, squeeze=False)
            for axes in grid.flat[len(block) :]:
                axes.set_axis_off()
            for axes, feature in zip(grid.flat, block, strict=False):
                _draw_feature(axes, feature)
        if note:
            plot.note(made, note)
    return made


def draw_evolution(evolutions: Sequence[Evolution], note: str = "") -> Figure:
    """A column an epoch, two rows a map: the projection of the picture that then excited it most, and the patch."""
    n_epochs = len(evolutions[0].epochs)
    side = min(1.0, (WIDTH - 0.6) / n_epochs)
    heights = [len(each.maps) * (2 * side + 0.08) + 0.45 for each in evolutions]
    with plot.figure(side * n_epochs + 0.6, sum(heights) + 0.3) as made:
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
            plot.note(made, note)
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
    return plot.tiles(enlarged, columns, gap=max(1, round(GAP * max(enlarged[0].shape[:2]))), ground=LINE)


def _show(axes: Axes, sheet: NDArray[np.float32], title: str) -> None:
    plot.show_picture(axes, sheet, title, interpolation="antialiased")


def _heading(part: SubFigure, text: str) -> None:
    part.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=9)


def _size(feature: Feature) -> str:
    height, width = feature.patches.shape[1:3]
    return f"units see up to {height} x {width} pixels"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
