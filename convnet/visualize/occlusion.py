"""What does a net look at? A grey square slides over the picture, and we see what it costs. Paper: ZF 4.2, figure 6.

The square has the mean grey of the training pictures: the level g is the mean of the preprocessing's mean colour or
picture, rounded (128 where nothing is subtracted), in R, G and B. The net's input there is what it would be of a
picture with such pixels: (g - mean) x scale + offset, about 0 for nets that subtract a mean. The paper says no more
than "a grey square".

The square's upper left corner takes the rows and columns 0, stride, 2 stride ... as far as the square fits, and the
last that fits, so that strides up to the square's side leave no pixel out. For each place three things are noted:

    activity      the sum over the feature map that has the largest sum in the whole picture, of a chosen stage
    probability   of a class: the true one where it is known, else the most probable of the whole picture
    best          the most probable class
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.data.preprocess import Preprocessing
from convnet.errors import UsageError
from convnet.evaluation.inference import BATCH
from convnet.evaluation.seen import Seen
from convnet.evaluation.trained_net import TrainedNet
from convnet.nets import SelectedStages
from convnet.progress import SILENT, Progress
from convnet.visualize import plot
from convnet.visualize.stages import check_finite, check_has_maps, last_maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

BOX, STRIDE = 32, 8  # pixels; the paper gives none
MID_GREY = 128


@dataclass(frozen=True, eq=False)
class Occlusion:
    """The three maps of a picture, (P, P): by the square's row and column; each also of the whole picture."""

    picture: Seen
    layer: str  # a stage, and
    map: int  # the number of its map whose sum is `activity`
    label: int  # the class whose probability is noted
    grey: int  # the square's level, 0..255, and
    box: int  # its side, pixels
    corners: NDArray[np.int64]  # (P,), pixels: the squares' tops, and lefts
    activity: NDArray[np.float32]
    probability: NDArray[np.float64]  # 0..1
    best: NDArray[np.int64]  # classes
    whole_activity: float
    whole_probability: float
    whole_best: int


def occlusion(
    net: TrainedNet,
    picture: Seen,
    *,
    label: int | None = None,
    layer: str | None = None,
    box: int = BOX,
    stride: int = STRIDE,
    batch: int = BATCH,
    progress: Progress = SILENT,
) -> Occlusion:
    """The three maps of a picture; the net is in eval mode. layer: None is the last stage with maps, after its ReLU.

    label: None is the picture's own class, or the most probable one where that isn't known.

    Raises: UsageError for a square or stride that doesn't fit, or a stage without maps; NotFinite.
    """
    check_square(box, stride, net.preprocessing.crop)
    image = net.images([picture])
    stages = net.trace(image)
    layer = last_maps(stages) if layer is None else layer
    check_has_maps(stages, layer)
    sums = stages[layer].float().sum((2, 3))[0]
    chosen = int(sums.argmax())
    whole = next(reversed(stages.values())).float().softmax(1)[0].double().cpu().numpy()
    label = label if label is not None else picture.label if picture.label is not None else int(whole.argmax())

    grey = level(net.preprocessing)
    square = net.images([Seen("", np.full_like(picture.pixels, grey))])
    corners = places(net.preprocessing.crop, box, stride)
    activity, probabilities = _slide(net, image, square, corners.tolist(), layer, chosen, box, batch, progress)
    check_finite("the net's output", probabilities[None], [picture.name])
    shape = len(corners), len(corners)
    return Occlusion(
        picture=picture,
        layer=layer,
        map=chosen,
        label=label,
        grey=grey,
        box=box,
        corners=corners,
        activity=activity.reshape(shape),
        probability=probabilities[:, label].reshape(shape).copy(),
        best=probabilities.argmax(1).reshape(shape),
        whole_activity=float(sums[chosen]),
        whole_probability=float(whole[label]),
        whole_best=int(whole.argmax()),
    )


def level(preprocessing: Preprocessing) -> int:
    """The grey of the square, 0..255.

    >>> from convnet.data.preprocess import Preprocessing
    >>> level(Preprocessing(256, 0, 224, "rgb", np.float32([124, 117, 104]), 1.0, 0.0))
    115
    """
    mean = preprocessing.mean
    return MID_GREY if mean is None else round(float(np.clip(mean.mean(dtype=np.float64), 0, 255)))


def places(side: int, box: int, stride: int) -> NDArray[np.int64]:
    """int64: the first pixels of the squares along a side.

    >>> places(224, 32, 64).tolist(), places(224, 32, 50).tolist()
    ([0, 64, 128, 192], [0, 50, 100, 150, 192])
    """
    return np.unique([*range(0, side - box + 1, stride), side - box])


def check_square(box: int, stride: int, side: int) -> None:
    """Raises: UsageError when a square doesn't fit into the net's input of `side` pixels, or the stride is below 1."""
    if not 1 <= box <= side:
        raise UsageError(f"--box {box}: must be 1 to {side} pixels, the side of the net's input")
    if stride < 1:
        raise UsageError(f"--stride {stride}: must be at least 1 pixel")


@torch.no_grad()
def _slide(
    net: TrainedNet,
    image: Tensor,
    square: Tensor,
    corners: Sequence[int],
    layer: str,
    chosen: int,
    box: int,
    batch: int,
    progress: Progress,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """float32 (places,): the sum over map `chosen` of the layer; float64 (places, K): probabilities.

    The pictures of a batch differ only under their squares, which are painted and wiped off in place.
    """
    squares = [np.s_[:, top : top + box, left : left + box] for top, left in product(corners, corners)]
    images = image.repeat(min(batch, len(squares)), 1, 1, 1)
    images = images.contiguous(memory_format=net.device.memory_format)
    sums, rows = [], []
    progress.start("occlusion", len(squares), unit="places")
    with net.device.autocast():  # around all passes, so that weights are cast once
        for first in range(0, len(squares), batch):
            part = squares[first : first + batch]
            for i, under in enumerate(part):
                images[i][under] = square[0][under]
            stages = SelectedStages([layer])  # the others' memory is used again
            logits = net.net(images[: len(part)], stages)
            sums.append(stages[layer][:, chosen].float().sum((1, 2)))
            rows.append(logits.float().softmax(1))
            for i, under in enumerate(part):
                images[i][under] = image[0][under]
            progress.update(first + len(part))
    progress.finish()
    return torch.cat(sums).cpu().numpy(), torch.cat(rows).double().cpu().numpy()  # a device synchronisation


NAMED = 5  # classes that get a colour; the others share one
LETTERS = 20  # of a class's name
LEAST_RANGE = 0.1  # of a scale of probabilities, so that changes of no weight are not shown as large ones


def draw_occlusion(shown: Sequence[Occlusion], classes: Sequence[str]) -> "Figure":
    """A row for each picture: the picture with the square where it costs most, and the three maps of its places.

    A map's value stands at the square's centre; the frame is the picture's. The line in a scale is the value without
    the square. Paper: figure 6.
    """
    n = len(shown)
    with plot.figure(7.2, 2.55 * n + 0.4) as fig:
        cells = fig.subplots(2 * n, 4, height_ratios=[1, 0.36] * n, squeeze=False)
        for i, each in enumerate(shown):
            _draw_row(fig, cells[2 * i].tolist(), cells[2 * i + 1].tolist(), each, classes)
        box, grey = shown[0].box, shown[0].grey
        text = f"Square: {box} x {box} pixels of grey {grey}; left: where the class loses most. "
        plot.note(fig, f"{text}A value stands at the square's centre. Line in a scale: without the square.")
    return fig


def _draw_row(fig: "Figure", row: "list[Axes]", below: "list[Axes]", shown: Occlusion, classes: Sequence[str]) -> None:
    """The four pictures; `below` are the places for their scales."""
    from matplotlib.ticker import MaxNLocator

    for axes in below:
        axes.set_axis_off()
    label = plot.shortened(classes[shown.label], LETTERS)
    pixels = shown.picture.pixels.copy()
    top, left = (shown.corners[i] for i in divmod(int(shown.probability.argmin()), len(shown.corners)))
    pixels[top : top + shown.box, left : left + shown.box] = shown.grey
    truth = (
        "" if shown.picture.label == shown.label else " (predicted)" if shown.label == shown.whole_best else " (chosen)"
    )
    plot.show_picture(row[0], pixels, f"{label}{truth}")
    activity = _mesh(row[1], shown, shown.activity, f"sum of {shown.layer}, map {shown.map}")
    probability = _mesh(row[2], shown, shown.probability, "its probability")
    low, high = float(shown.probability.min()), float(shown.probability.max())
    if high - low < LEAST_RANGE:
        probability.set_clim(max(0.0, high - LEAST_RANGE), max(high, LEAST_RANGE))
    for axes, mesh, whole in (
        (below[1], activity, shown.whole_activity),
        (below[2], probability, shown.whole_probability),
    ):
        scale = fig.colorbar(mesh, cax=axes.inset_axes((0.05, 0.78, 0.9, 0.16)), orientation="horizontal")
        scale.ax.set_xlim(min(scale.ax.get_xlim()[0], whole), max(scale.ax.get_xlim()[1], whole))
        scale.ax.axvline(whole, ymin=-0.3, ymax=1.3, color=plot.RIGHT, linewidth=2, clip_on=False)
        scale.ax.xaxis.set_major_locator(MaxNLocator(3))
    _draw_classes(row[3], below[3], shown, classes)


def _draw_classes(axes: "Axes", below: "Axes", shown: Occlusion, classes: Sequence[str]) -> None:
    """The class without the square has the first colour, the others follow by the places that they hold."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    counts = np.bincount(shown.best.ravel(), minlength=len(classes))
    others = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k] and k != shown.whole_best]
    order = [shown.whole_best, *others]
    named = order if len(order) <= NAMED + 1 else order[:NAMED]
    at = np.full(len(classes), len(named))
    at[named] = np.arange(len(named))
    colours = [*plot.COLOURS[: len(named)], plot.FAINT]
    mesh = _mesh(axes, shown, at[shown.best], "most probable class", ListedColormap(colours))
    mesh.set_clim(-0.5, len(named) + 0.5)
    n = shown.best.size
    shares = [f"{plot.shortened(classes[k], LETTERS)}: {share(counts[k], n)}" for k in named]
    if len(named) < len(order):
        shares.append(f"{len(order) - len(named)} others: {share(n - int(counts[named].sum()), n)}")
    patches = [Patch(color=colour) for colour in colours[: len(shares)]]
    names = [plot.in_legend(name) for name in shares]
    below.legend(patches, names, loc="upper left", bbox_to_anchor=(-0.05, 1.1), fontsize=6, handlelength=1,
                 handleheight=1, labelspacing=0.25, borderaxespad=0.0)  # fmt: skip


def share(n: int, total: int) -> str:
    """Rounded, but all only if it is all, and nothing only if it is nothing."""
    if n in (0, total):
        return f"{n / total:.0%}"
    return "<1%" if n / total < 0.01 else f"{min(n / total, 0.99):.0%}"


def _mesh(
    axes: "Axes", shown: Occlusion, values: NDArray[np.generic], title: str, colours: "str | Colormap" = plot.AMOUNT
) -> "QuadMesh":
    """Values (P, P) as rectangles around the square's centres, in the picture's frame."""
    side = len(shown.picture.pixels)
    edges = _edges(shown.corners + shown.box / 2)
    grey = shown.picture.pixels.mean(2, dtype=np.float32) / 255
    axes.imshow(np.repeat(0.55 + 0.45 * grey[..., None], 3, 2), extent=(0, side, side, 0))
    plot.bare(axes, title)
    return axes.pcolormesh(edges, edges, values, rasterized=True, cmap=colours)


def _edges(centres: NDArray[np.floating]) -> NDArray[np.floating]:
    """Halfway between the centres; outside as far as inside."""
    if len(centres) == 1:
        return np.array([centres[0] - 2, centres[0] + 2])
    between = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])
