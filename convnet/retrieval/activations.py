"""What does a net make of pictures? The activations of its stages, some pictures at a time, whatever their number.

Each picture is prepared as in training: the net's own scale, crop, mean and colours. Over the views of a test protocol
they are averaged, as probabilities are; over a whole picture (`dense`) over all places too: VGG, appendix B.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnet import nets
from convnet.device import Device
from convnet.errors import Interrupted, UsageError
from convnet.evaluation.inference import BATCH
from convnet.evaluation.trained_net import TrainedNet
from convnet.evaluation.views import protocol
from convnet.io.signals import Stop
from convnet.nets.layers import Net
from convnet.progress import SILENT, Progress
from convnet.retrieval.pictures import Odd, Pictures

MOST = 1 << 24  # numbers of the activations of the pictures that are held at a time
SAME = r"data|(avg)?pool|norm|within|bn|s\d"  # stages that are what came before, pooled or normalised
Floats = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]  # {stage: (C, H, W), or (D,)}


class Activations(NamedTuple):
    """Of the next n pictures that could be read.

    keys    their names
    labels  int64 (n,), or None where the source has none
    stages  {stage: float32 (n, C, H, W), or (n, D)}
    done    how many pictures of the source were looked at so far
    odd     what is odd about these, or why they could not be read
    """

    keys: list[str]
    labels: NDArray[np.int64] | None
    stages: dict[str, Floats]
    done: int
    odd: list[Odd]


def activations(
    net: TrainedNet,
    pictures: Pictures,
    stages: Sequence[str],
    *,
    views: str = "single",
    scales: str | None = None,
    first: int = 0,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> Iterator[Activations]:
    """The activations of `pictures` from position `first` on, under the names of `trace`: stage after stage, in order.

    They are a function of pictures, stages and views alone: who begins at a `done` gets the same to the last bit.

    Raises: UsageError for a stage or view that isn't known, or that the store can't give; DataError; NotFinite naming
    the picture; Interrupted.
    """
    if "dense" in views and views != "dense":
        raise UsageError(f"--views {views}: dense averages over places and crops do not; choose one of them")
    asked, shapes = protocol(views, net.preprocessing, scales), shapes_of(net, stages, views)
    computing, batch = net.narrowed(), _batch(shapes)

    def rows(module: nn.Module, images: Tensor, device: Device) -> NDArray[np.float64]:
        assert isinstance(module, Net)
        traced = nets.trace(module, images, shapes)
        flat = [
            (x.mean((2, 3)) if views == "dense" and x.ndim == 4 else x.flatten(1))
            for x in map(_floats, traced.values())
        ]
        return np.asarray(torch.cat(flat, 1).cpu().double())  # a device synchronisation: the result is needed

    progress.start(f"asking the net ({pictures.name})", pictures.n, first)
    ids, done = np.arange(first, pictures.n), first
    for part in pictures.read(ids, asked.looks, net.preprocessing, batch, stop):
        done = min(done + batch, pictures.n)
        keys, found = [pictures.keys[i] for i in part.ids.tolist()], np.zeros((0, sum(map(np.prod, shapes.values()))))
        if keys:
            found = asked.mean(computing.infer(part.pictures, asked.looks, keys, batch, rows))
        labels = None if pictures.labels is None else pictures.labels[part.ids]
        yield Activations(keys, labels, _by_stage(found, shapes), done, part.odd)
        progress.update(done)
        if stop and done < pictures.n:
            raise Interrupted(f"stopped after {done:,} of {pictures.n:,} pictures")
    progress.finish()


def stages_of(net: TrainedNet, text: str) -> list[str]:
    """The stages that "fc7,pool5" or "all" names. Raises: UsageError for one that the net lacks."""
    names = list(shapes_of(net, None)) if text == "all" else [word.strip() for word in text.split(",")]
    return list(shapes_of(net, dict.fromkeys(names)))


def before_classes(net: TrainedNet) -> str:
    """The stage that the last layer with weights reads: relu7 in AlexNet, f6 in LeNet-5, pool5 in GoogLeNet."""
    stages = list(shapes_of(net, None))
    return stages[max(stages.index(net.net.last) - 1, 0)]


def shapes_of(net: TrainedNet, stages: Iterable[str] | None, views: str = "single") -> Shapes:
    """{stage: shape for one picture}; None: of all stages. Raises: UsageError for a stage that the net lacks."""
    crop = net.preprocessing.crop
    black = torch.zeros(1, net.net.in_channels, crop, crop)
    shapes = {stage: tuple(x.shape[1:]) for stage, x in net.trace(black, stages).items()}
    return {stage: shape[:1] for stage, shape in shapes.items()} if views == "dense" else shapes


def states(net: Net, stages: Iterable[str]) -> dict[str, str]:
    """What each of all stages of a net is: "before ReLU", "after ReLU" or tanh, "logits" (before the softmax), "input".

    Pooling and normalisation leave it what it is.
    """
    names, what = list(stages), "input"
    outside = next((match[0] for name in names if (match := re.match("relu|tanh", name))), None)
    squashed = {"relu": "ReLU", "tanh": "tanh"}[outside or ("relu" if net.relu_inside else "tanh")]
    told = {}
    for name in names:
        if name == names[-1] or name.startswith("head"):
            told[name] = "logits"
            continue
        if re.match("relu|tanh", name) or not (outside or re.match(SAME, name)):
            what = f"after {squashed}"
        elif not re.match(SAME, name):
            what = f"before {squashed}"
        told[name] = what
    return told


def _batch(shapes: Shapes) -> int:
    """How many pictures are read at a time, and crops are in a forward pass."""
    return max(1, min(BATCH, MOST // sum(int(np.prod(shape)) for shape in shapes.values())))


def _floats(x: Tensor) -> Tensor:
    return x.float()


def _by_stage(rows: NDArray[np.float64], shapes: Shapes) -> dict[str, Floats]:
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
    parts = np.split(rows, ends[:-1], 1)
    return {
        stage: part.astype(np.float32).reshape(len(rows), *shape)
        for (stage, shape), part in zip(shapes.items(), parts, strict=True)
    }
