"""Which training pictures does a net hold nearest to a picture? AlexNet's figure 4, right: the distance of features.

The paper (section 6.1): two pictures are alike for the higher layers when their activations in the last hidden layer
have a small Euclidean distance, though their pixels are generally far from each other. So both are searched for, in one
pass over the store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.data.store import Split
from convnet.errors import UsageError
from convnet.evaluation.pictures import check_gives
from convnet.evaluation.seen import Seen, from_store
from convnet.evaluation.trained_net import TrainedNet
from convnet.evaluation.views import protocol
from convnet.progress import SILENT, Progress
from convnet.retrieval.activations import before_classes
from convnet.visualize import plot
from convnet.visualize.search import BATCH, Ints, Smallest, batches
from convnet.visualize.stages import check_finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEAREST = 6  # as in the paper
LETTERS = 16  # of a class's name
SAME = plot.COLOURS[2]
PIXELS = "pixels"  # the measure of the raw pixels


@dataclass(frozen=True)
class Neighbours:
    """The n pictures nearest to each of Q queries, nearest first; ties: the earlier in the store."""

    measure: str  # the stage whose activations were compared, or "pixels" (the centre crop, RGB, 0 to 255)
    queries: tuple[Seen, ...]
    ids: Ints  # (Q, n), positions in the split
    distances: NDArray[np.float64]  # (Q, n), Euclidean
    nearest: tuple[tuple[Seen, ...], ...]  # (Q, n)
    searched: int  # among how many


def neighbours(
    net: TrainedNet,
    queries: Sequence[Seen],
    split: Split,
    *,
    layer: str | None = None,
    n: int = NEAREST,
    ids: Ints | None = None,
    progress: Progress = SILENT,
) -> tuple[Neighbours, Neighbours]:
    """The pictures of a split (or among its pictures `ids`) nearest to each query: by a layer's features, by pixels.

    layer: a stage of the net; None is the one before the classes, AlexNet's fc7 after its ReLU. The store is read once,
    a few pictures at a time; distances are taken in float64, difference by difference. Paper: 6.1, figure 4.

    Raises: UsageError for a stage that the net lacks or a store that doesn't fit; NotFinite.
    """
    if n < 1:
        raise UsageError(f"--n {n}: at least 1 neighbour")
    check_gives(split, protocol("single", net.preprocessing).looks, net.preprocessing)
    layer = layer or before_classes(net)
    of_queries = {layer: _features(net, queries, layer), PIXELS: _pixels(queries)}
    nearest = {measure: Smallest(len(queries), n) for measure in of_queries}
    for part, pictures in batches(split, ids, net.preprocessing, progress):
        for measure, features in ((layer, _features(net, pictures, layer)), (PIXELS, _pixels(pictures))):
            # by differences, so that a picture's distance to itself is 0
            distances = torch.cdist(of_queries[measure], features, compute_mode="donot_use_mm_for_euclid_dist")
            nearest[measure].add(distances.numpy(), part)
    searched = split.n if ids is None else len(ids)
    by_layer, by_pixels = (
        Neighbours(
            measure,
            tuple(queries),
            best.numbers,
            best.values,
            tuple(tuple(from_store(split, row, net.preprocessing)) for row in best.numbers),
            searched,
        )
        for measure, best in nearest.items()
    )
    return by_layer, by_pixels


def _features(net: TrainedNet, pictures: Sequence[Seen], layer: str) -> Tensor:
    """float64 (N, D), on the CPU. Raises: NotFinite naming the picture."""
    parts = [pictures[first : first + BATCH] for first in range(0, len(pictures), BATCH)]
    features = torch.cat([net.features(part, layer).cpu().double() for part in parts])  # a device synchronisation
    check_finite(layer, features.numpy(), [picture.name for picture in pictures])
    return features


def _pixels(pictures: Sequence[Seen]) -> Tensor:
    """float64 (N, crop * crop * 3), 0 to 255."""
    return torch.from_numpy(np.stack([picture.pixels for picture in pictures])).flatten(1).double()


def draw_neighbours(measures: Sequence[Neighbours], classes: Sequence[str]) -> "Figure":
    """A row a query and measure: the query, then its neighbours with class and distance (AlexNet, figure 4, right).

    classes: the K names. A frame marks neighbours of the query's own class.
    """
    queries, n = measures[0].queries, max(nearest.ids.shape[1] for nearest in measures)
    n_rows = len(queries) * len(measures)
    with plot.figure(1.05 * (n + 1) + 0.4, 1.3 * n_rows + 0.5) as fig:
        grid = fig.add_gridspec(n_rows, n + 1, width_ratios=[1.0] * (n + 1))
        for q, query in enumerate(queries):
            axes = fig.add_subplot(grid[q * len(measures), 0])
            name = "the picture" if query.label is None else plot.shortened(classes[query.label], LETTERS - 2)  # bold
            plot.show_picture(axes, query.pixels)
            axes.set_xlabel(name, labelpad=2, fontsize=7, fontweight="bold")
            for r, nearest in enumerate(measures):
                for k, picture in enumerate(nearest.nearest[q]):
                    axes = fig.add_subplot(grid[q * len(measures) + r, k + 1])
                    _draw_one(axes, picture, query, nearest.distances[q, k], classes)
                    if k == 0:
                        axes.set_ylabel(plot.shortened(nearest.measure, LETTERS))
        text = f"Nearest of {measures[0].searched:,} training pictures, with the Euclidean distance"
        plot.note(fig, f"{text}; framed: of the picture's own class. Pixels: the centre crop's, 0 to 255.")
    return fig


def _draw_one(axes: "Axes", picture: Seen, query: Seen, distance: float, classes: Sequence[str]) -> None:
    plot.show_picture(axes, picture.pixels)
    name = "" if picture.label is None else f"{plot.shortened(classes[picture.label], LETTERS)}\n"
    axes.set_xlabel(f"{name}{distance_text(distance)}", labelpad=2, fontsize=7)
    if query.label is not None and picture.label == query.label:
        axes.spines[:].set(visible=True, color=SAME, linewidth=2)


def distance_text(distance: float) -> str:
    """With as many digits as say something."""
    return f"{distance:,.0f}" if distance >= 100 else f"{distance:.2f}"
