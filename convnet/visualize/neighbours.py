"""Which training pictures does a net hold nearest to a picture? AlexNet's figure 4, right: the distance of features.

The paper (section 6.1): two pictures are alike for the higher layers when their activations in the last hidden layer
have a small Euclidean distance, though their pixels are generally far from each other. So both are searched for, in one
pass over the store.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from convnet.data.preprocess import Preprocessing
from convnet.data.store import Split
from convnet.errors import Interrupted, UsageError
from convnet.evaluation.inference import NotFinite
from convnet.evaluation.pictures import check_gives
from convnet.evaluation.seen import Seen, from_store, in_parts
from convnet.evaluation.trained_net import TrainedNet
from convnet.evaluation.views import protocol
from convnet.io.signals import Stop
from convnet.nets import trace
from convnet.nets.layers import Net
from convnet.progress import SILENT, Progress
from convnet.visualize import plot

NEAREST = 6  # as in the paper
BATCH = 16  # pictures at a time
LETTERS = 16  # of a class's name
SAME = plot.COLOURS[2]
PIXELS = "pixels"  # the measure of the raw pixels


@dataclass(frozen=True)
class Neighbours:
    """The n pictures nearest to each of Q queries, nearest first; of equals the earlier in the store.

    measure: the stage whose activations were compared, or "pixels" (the centre crop, RGB, 0 to 255). ids: int64 (Q, n),
    positions in the split. distances: float64 (Q, n), Euclidean. nearest: (Q, n) pictures. searched: among how many.
    """

    measure: str
    queries: tuple[Seen, ...]
    ids: NDArray[np.int64]
    distances: NDArray[np.float64]
    nearest: tuple[tuple[Seen, ...], ...]
    searched: int


def neighbours(
    net: TrainedNet,
    queries: Sequence[Seen],
    split: Split,
    *,
    layer: str | None = None,
    n: int = NEAREST,
    ids: NDArray[np.int64] | None = None,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> tuple[Neighbours, Neighbours]:
    """The pictures of a split (or among its pictures `ids`) nearest to each query: by a layer's features, by pixels.

    layer: a stage of the net; None is the one before the classes, AlexNet's fc7 after its ReLU. The store is read once,
    a few pictures at a time; distances are taken in float64, difference by difference. Paper: 6.1, figure 4.

    Raises: UsageError for a stage that the net lacks or a store that doesn't fit; NotFinite; Interrupted.
    """
    if n < 1:
        raise UsageError(f"--n {n}: at least 1 neighbour")
    check_gives(split, protocol("single", net.preprocessing).looks, net.preprocessing)
    layer = layer or before_classes(net.net, net.images(queries[:1]))
    chosen = np.arange(split.n) if ids is None else ids
    nearest = {measure: _Nearest(len(queries), n) for measure in (layer, PIXELS)}
    asked = _features(net, queries, layer)
    asked_pixels = _pixels(queries)
    done = 0
    progress.start(f"searching ({split.name})", len(chosen))
    for part, pictures in in_parts(split, chosen, net.preprocessing, BATCH):
        nearest[layer].add(part, _distances(asked, _features(net, pictures, layer)))
        nearest[PIXELS].add(part, _distances(asked_pixels, _pixels(pictures)))
        done += len(part)
        progress.update(done)
        if stop:
            raise Interrupted(f"stopped after {done:,} of {len(chosen):,} pictures")
    progress.finish()
    by_layer, by_pixels = (
        Neighbours(
            measure, tuple(queries), found.ids, found.distances, _seen(split, found.ids, net.preprocessing), done
        )
        for measure, found in nearest.items()
    )
    return by_layer, by_pixels


def before_classes(net: Net, images: Tensor) -> str:
    """The stage that the last layer with weights reads: relu7 in AlexNet, f6 in LeNet-5, pool5 in GoogLeNet."""
    stages = list(trace(net, images[:1]))
    return stages[max(stages.index(net.last) - 1, 0)]


class _Nearest:
    """The n smallest distances so far for each query: float64 (Q, <= n), with the pictures' positions."""

    def __init__(self, queries: int, n: int) -> None:
        self.n = n
        self.ids = np.empty((queries, 0), np.int64)
        self.distances = np.empty((queries, 0))

    def add(self, ids: NDArray[np.int64], distances: NDArray[np.float64]) -> None:
        """ids: int64 (N,), rising from call to call; distances: (Q, N)."""
        everything = np.concatenate([self.distances, distances], 1)
        places = np.argsort(everything, axis=1, kind="stable")[:, : self.n]
        known = np.concatenate([self.ids, np.broadcast_to(ids, distances.shape)], 1)
        self.ids = np.take_along_axis(known, places, 1)
        self.distances = np.take_along_axis(everything, places, 1)


def _features(net: TrainedNet, pictures: Sequence[Seen], layer: str) -> Tensor:
    """float64 (N, D), on the CPU. Raises: NotFinite naming the picture."""
    blocks = []
    for first in range(0, len(pictures), BATCH):
        images = net.images(pictures[first : first + BATCH])
        blocks.append(net.features(images, layer).cpu().double())  # a device synchronisation
    found = torch.cat(blocks)
    good = found.isfinite().all(1)
    if not bool(good.all()):
        name = pictures[int(good.int().argmin())].name
        raise NotFinite(f"{layer} of {name!r} is not finite; the net's weights may be damaged")
    return found


def _pixels(pictures: Sequence[Seen]) -> Tensor:
    """float64 (N, crop * crop * 3), 0 to 255."""
    return torch.from_numpy(np.stack([picture.pixels for picture in pictures])).flatten(1).double()


def _distances(queries: Tensor, block: Tensor) -> NDArray[np.float64]:
    """float64 (Q, N): Euclidean, by differences, so that a picture's distance to itself is 0."""
    return torch.cdist(queries, block, compute_mode="donot_use_mm_for_euclid_dist").numpy()


def _seen(split: Split, ids: NDArray[np.int64], preprocessing: Preprocessing) -> tuple[tuple[Seen, ...], ...]:
    return tuple(tuple(from_store(split, row, preprocessing)) for row in ids)


def draw_neighbours(found: Sequence[Neighbours], classes: Sequence[str]) -> Figure:
    """A row a query and measure: the query, then its neighbours with class and distance (AlexNet, figure 4, right).

    classes: the K names. A frame marks neighbours of the query's own class.
    """
    n_queries, n = len(found[0].queries), max(each.ids.shape[1] for each in found)
    n_rows = n_queries * len(found)
    with plot.figure(1.05 * (n + 1) + 0.4, 1.3 * n_rows + 0.5) as made:
        grid = made.add_gridspec(n_rows, n + 1, width_ratios=[1.0] * (n + 1))
        for q, query in enumerate(found[0].queries):
            axes = made.add_subplot(grid[q * len(found), 0])
            name = "the picture" if query.label is None else plot.shortened(classes[query.label], LETTERS - 2)  # bold
            plot.show_picture(axes, query.pixels)
            axes.set_xlabel(name, labelpad=2, fontsize=7, fontweight="bold")
            for r, each in enumerate(found):
                for k, picture in enumerate(each.nearest[q]):
                    axes = made.add_subplot(grid[q * len(found) + r, k + 1])
                    _draw_one(axes, picture, query, each.distances[q, k], classes)
                    if k == 0:
                        axes.set_ylabel(plot.shortened(each.measure, LETTERS))
        text = f"Nearest of {found[0].searched:,} training pictures, with the Euclidean distance"
        plot.note(made, f"{text}; framed: of the picture's own class. Pixels: the centre crop's, 0 to 255.")
    return made


def _draw_one(axes: Axes, picture: Seen, query: Seen, distance: float, classes: Sequence[str]) -> None:
    plot.show_picture(axes, picture.pixels)
    name = "" if picture.label is None else f"{plot.shortened(classes[picture.label], LETTERS)}\n"
    axes.set_xlabel(f"{name}{distance:,.0f}" if distance >= 100 else f"{name}{distance:.2f}", labelpad=2, fontsize=7)
    if query.label is not None and picture.label == query.label:
        for spine in axes.spines.values():
            spine.set(visible=True, color=SAME, linewidth=2)
